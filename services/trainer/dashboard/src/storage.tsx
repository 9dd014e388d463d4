/** Page of what runs keep on the disk, and the buttons that archive, prune and delete a run. */

import { useEffect, useState } from "preact/hooks";
import { ApiError, post, remove, runPath } from "./api.ts";
import { bytes, clock, share } from "./format.ts";
import { useRead } from "./hooks.ts";
import { isOver, Lost, State } from "./parts.tsx";
import { runAddress } from "./route.ts";
import { type Column, SortedTable } from "./sorted_table.tsx";
import type { Caller, Freed, RunStorage, StorageReport } from "./types.ts";

/** Run control measures at most every ten seconds. */
const EVERY_S = 15;

export function StoragePage({ caller }: { caller: Caller }) {
  const { value: found, problem, again } = useRead<StorageReport>("v1/storage", EVERY_S);
  useEffect(() => {
    document.title = "Storage · MoR";
  }, []);
  return (
    <>
      <h1 tabIndex={-1}>Storage</h1>
      {problem && <Lost problem={problem} retryAt={null} retry={again} />}
      {found === null && !problem && <p role="status">Measuring the files of the runs …</p>}
      {found && (
        <>
          <Limits found={found} />
          {found.runs.length === 0 && <p>No runs.</p>}
          {found.runs.length > 0 && <Sizes runs={found.runs} admin={caller.scope === "admin"} changed={again} />}
        </>
      )}
    </>
  );
}

function Limits({ found }: { found: StorageReport }) {
  const { limits } = found;
  const facts: [string, string][] = [
    ["Free", `${bytes(found.free_bytes)} of ${bytes(found.disk_bytes)}`],
    ["History", bytes(found.history_bytes)],
    ["Age of ended runs", `${limits.ended_run_days} days`],
    ["Number of ended runs", String(limits.ended_runs_kept)],
    ["Size of ended runs", bytes(limits.ended_runs_bytes)],
    ["Share of the disk", share(limits.ended_runs_share)],
    ["Events and samples", `${limits.history_days} days`],
  ];
  return (
    <section class="head" aria-label="Limits">
      <dl class="facts">
        {facts.map(([name, value]) => (
          <div key={name}><dt>{name}</dt><dd>{value}</dd></div>
        ))}
      </dl>
      <p class="note">
        Above a limit, run control deletes checkpoints, weights, replay logs and exports of the oldest ended runs; final
        models stay. The limits are settings of run control: <code>MOR_ENDED_RUN_DAYS</code>,{" "}
        <code>MOR_ENDED_RUNS_KEPT</code>, <code>MOR_ENDED_RUNS_BYTES</code>, <code>MOR_ENDED_RUNS_SHARE</code>,{" "}
        <code>MOR_HISTORY_DAYS</code>.
      </p>
      {found.deleting.length > 0 && <p role="status">Being deleted: {found.deleting.join(", ")}</p>}
    </section>
  );
}

function Sizes({ runs, admin, changed }: { runs: RunStorage[]; admin: boolean; changed: () => void }) {
  const size = (name: string, of: (run: RunStorage) => number): Column<RunStorage> => (
    { name, number: true, by: of, cell: (run) => bytes(of(run)) }
  );
  const columns: Column<RunStorage>[] = [
    {
      name: "Run", heading: true, by: (run) => run.run,
      cell: (run) => <><a href={runAddress(run.run)}>{run.run}</a>{run.archived && <span class="note"> archived</span>}</>,
    },
    { name: "State", by: (run) => run.state, cell: (run) => (run.state === null ? "unreadable" : <State state={run.state} />) },
    size("Checkpoints", (run) => run.checkpoints),
    size("Weights", (run) => run.weights),
    size("Replay log", (run) => run.replay_log),
    size("Exports", (run) => run.exports),
    size("Final model", (run) => run.final),
    size("All", (run) => run.checkpoints + run.weights + run.replay_log + run.exports + run.final + run.other),
    { name: "Files go", class: "whole", by: (run) => run.expires_at, cell: (run) => clock(run.expires_at) },
  ];
  const acting: Column<RunStorage> = {
    name: "Actions",
    cell: (run) => (
      <StoredRun run={run.run} archived={run.archived} over={run.state === null || isOver(run.state)} changed={changed} />
    ),
  };
  return (
    <SortedTable label="Table of what runs keep" rows={runs} keyOf={(run) => run.run} columns={admin ? [...columns, acting] : columns} />
  );
}

type Deletion = "prune" | "delete";

interface StoredRunProps {
  run: string;
  archived: boolean;
  over: boolean;
  changed: (gone: boolean) => void;
}

/** Buttons that archive, prune and delete a run that is over. A deletion asks first, with what it frees. */
export function StoredRun({ run, archived, over, changed }: StoredRunProps) {
  const [problem, setProblem] = useState<string | null>(null);
  const [asked, setAsked] = useState<{ deletion: Deletion; freed: Freed } | null>(null);
  const attempt = async (act: () => Promise<void>) => {
    try {
      await act();
      setProblem(null);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setProblem(error.message);
    }
  };
  const move = () => attempt(async () => {
    await post(runPath(run, archived ? "/unarchive" : "/archive"));
    changed(false);
  });
  const ask = (deletion: Deletion) => attempt(async () => setAsked({ deletion, freed: await free(run, deletion, true) }));
  const act = (deletion: Deletion) => attempt(async () => {
    await free(run, deletion, false);
    changed(deletion === "delete");
  });
  if (!over) return <span class="note">not over</span>;
  return (
    <>
      <span class="actions">
        <button type="button" aria-label={`${archived ? "Unarchive" : "Archive"} ${run}`} onClick={() => void move()}>
          {archived ? "Unarchive" : "Archive"}
        </button>{" "}
        <button type="button" aria-label={`Prune ${run}`} onClick={() => void ask("prune")}>Prune</button>{" "}
        <button type="button" aria-label={`Delete ${run}`} onClick={() => void ask("delete")}>Delete</button>
      </span>
      {problem && <p class="problem" role="alert">{problem}</p>}
      {asked && (
        <Sure run={run} {...asked} chosen={(yes) => {
          setAsked(null);
          if (yes) void act(asked.deletion);
        }} />
      )}
    </>
  );
}

function free(run: string, deletion: Deletion, dryRun: boolean): Promise<Freed> {
  if (deletion === "delete") return remove<Freed>(`${runPath(run)}${dryRun ? "?dry_run=true" : ""}`);
  return post<Freed>(runPath(run, "/prune"), { dry_run: dryRun });
}

const OUTCOME: Record<Deletion, string> = {
  prune: "Its checkpoints, weights versions, replay log and exports are deleted; it cannot be resumed. The final model and the history stay.",
  delete: "It is deleted for good, with its final model, history and alerts.",
};

interface SureProps {
  run: string;
  deletion: Deletion;
  freed: Freed;
  chosen: (yes: boolean) => void;
}

function Sure({ run, deletion, freed, chosen }: SureProps) {
  const open = (dialog: HTMLDialogElement | null) => {
    if (dialog && !dialog.open) dialog.showModal();
  };
  const label = deletion === "delete" ? "Delete" : "Prune";
  return (
    <dialog ref={open} onClose={() => chosen(false)} aria-label={`${label} ${run}`}>
      <p>{label} {run}? {OUTCOME[deletion]} This frees {bytes(freed.bytes)} (files: {freed.files}).</p>
      <p class="actions">
        <button type="button" class="primary" onClick={() => chosen(true)}>{label}</button>
        <button type="button" onClick={() => chosen(false)}>Cancel</button>
      </p>
    </dialog>
  );
}
