import { useEffect, useState } from "preact/hooks";
import { clock, duration, number, progress } from "./format.ts";
import { useRead } from "./hooks.ts";
import { Lost, Progress, State } from "./parts.tsx";
import { Tags } from "./notes.tsx";
import { compareAddress, MOST_COMPARED, runAddress } from "./route.ts";
import { type Column, SortedTable } from "./sorted_table.tsx";
import type { ClientFigures } from "./step_metrics.ts";
import type { Alert, Caller, Figure, RunState, Snapshot } from "./types.ts";

/** An unchanged list is answered with 304. */
const EVERY_S = 4;
const STATES: RunState[] = ["running", "queued", "paused", "finished", "failed", "stopped"];

interface Worker {
  name: string;
  run: string | null;
}

/** Page of all runs, newest first. */
export function RunsPage({ caller }: { caller: Caller }) {
  const { value: runs, problem, again } = useRead<Snapshot[]>("v1/runs", EVERY_S);
  const [text, setText] = useState("");
  const [state, setState] = useState("");
  const [tag, setTag] = useState("");
  const [chosen, setChosen] = useState<ReadonlySet<string>>(new Set());
  useEffect(() => {
    document.title = "Runs · MoR";
  }, []);
  const tags = [...new Set((runs ?? []).flatMap((run) => run.tags ?? []))].sort();
  const shown = (runs ?? []).filter((run) =>
    mentions(run, text) && (state === "" || run.state === state) && (tag === "" || run.tags?.includes(tag)));
  const choose = (run: string) => {
    const next = new Set(chosen);
    if (!next.delete(run)) next.add(run);
    setChosen(next);
  };
  return (
    <>
      <h1 tabIndex={-1}>Runs</h1>
      {problem && <Lost problem={problem} retryAt={null} retry={again} />}
      {caller.scope !== "client" && <Attention runs={runs ?? []} />}
      {runs === null && !problem && <p role="status">Reading the runs …</p>}
      {runs?.length === 0 && (
        <p>No runs yet. <code>mor run create SPEC</code> or <code>POST /v1/runs</code> creates one.</p>
      )}
      {runs !== null && runs.length > 0 && (
        <>
          <form class="filters" role="search" onSubmit={(event) => event.preventDefault()}>
            <label>Name or note <input type="search" value={text} onInput={(event) => setText(event.currentTarget.value)} /></label>
            <label>
              State{" "}
              <select value={state} onChange={(event) => setState(event.currentTarget.value)}>
                <option value="">all</option>
                {STATES.map((name) => <option key={name}>{name}</option>)}
              </select>
            </label>
            {tags.length > 0 && (
              <label>
                Tag{" "}
                <select value={tag} onChange={(event) => setTag(event.currentTarget.value)}>
                  <option value="">all</option>
                  {tags.map((name) => <option key={name}>{name}</option>)}
                </select>
              </label>
            )}
            <span role="status">{shown.length} of {runs.length} runs</span>
            {chosen.size > 1 && <a class="button" href={compareAddress([...chosen])}>Compare {chosen.size} runs</a>}
          </form>
          <RunsTable runs={shown} caller={caller} chosen={chosen} choose={choose} />
        </>
      )}
    </>
  );
}

function mentions(run: Snapshot, text: string): boolean {
  const wanted = text.trim().toLowerCase();
  return [run.id, run.note ?? ""].some((part) => part.toLowerCase().includes(wanted));
}

interface TableProps {
  runs: Snapshot[];
  caller: Caller;
  chosen: ReadonlySet<string>;
  choose: (run: string) => void;
}

function RunsTable({ runs, caller, chosen, choose }: TableProps) {
  const comparing: Column<Snapshot> = {
    name: "Compare",
    cell: (run) => (
      <input type="checkbox" aria-label={`Compare ${run.id}`} checked={chosen.has(run.id)}
        disabled={!chosen.has(run.id) && chosen.size === MOST_COMPARED} onChange={() => choose(run.id)} />
    ),
  };
  const columns: Column<Snapshot>[] = [
    { name: "Run", heading: true, by: (run) => run.id, cell: (run) => <a href={runAddress(run.id)}>{run.id}</a> },
    { name: "State", by: (run) => run.state, cell: (run) => <State state={run.state} desired={run.desired} /> },
    {
      name: "Progress", class: "whole", by: (run) => run.progress,
      cell: (run) => <><Progress label={`Progress of ${run.id}`} value={run.progress} /> {progress(run.progress)}</>,
    },
    { name: "Step", number: true, by: (run) => run.step, cell: (run) => `${run.step ?? "–"} / ${run.total}` },
    { name: "Time left", class: "whole", by: (run) => run.eta_s, cell: (run) => duration(run.eta_s) },
    { name: "Reward", number: true, by: (run) => reward(run, caller), cell: (run) => number(reward(run, caller)) },
    { name: "Gate", number: true, by: (run) => run.gate_version, cell: (run) => run.gate_version ?? "–" },
    { name: "KL", number: true, by: (run) => run.metrics?.kl, cell: (run) => number(run.metrics?.kl) },
    { name: "Last change", class: "whole", by: (run) => run.updated_at, cell: (run) => clock(run.updated_at) },
    { name: "Tags", by: (run) => run.tags?.join(" ") || null, cell: (run) => <Tags tags={run.tags} /> },
    { name: "Note", by: (run) => run.note, class: "remark", cell: (run) => run.note },
  ];
  const used = columns.filter((column) => !["Tags", "Note"].includes(column.name) || runs.some((run) => column.by?.(run) != null));
  return (
    <SortedTable label="Table of runs" rows={runs} keyOf={(run) => run.id}
      columns={caller.scope === "client" ? used : [comparing, ...used]} />
  );
}

/** Return the fused reward; for a client, the mean of its own scores. */
function reward(run: Snapshot, caller: Caller): Figure {
  const own: ClientFigures | undefined = run.metrics?.clients?.[caller.name];
  return caller.scope === "client" ? own?.reward_mean : run.metrics?.reward_mean;
}

/** Notice of open alerts, and of queued runs without a training process. */
function Attention({ runs }: { runs: Snapshot[] }) {
  const alerts = useRead<Alert[]>("v1/alerts?acknowledged=false", EVERY_S).value ?? [];
  const workers = useRead<Worker[]>("v1/workers", EVERY_S).value;
  const waiting = runs.filter((run) => run.state === "queued").length;
  return (
    <>
      {alerts.length > 0 && (
        <p class="problem"><a href="#/alerts">{alerts.length} open alert{alerts.length > 1 && "s"}</a>, the latest: {alerts[0]?.reason}</p>
      )}
      {waiting > 0 && workers?.length === 0 && (
        <p class="problem">
          {waiting} run{waiting > 1 && "s"} queued, and no training process called within ten minutes: start{" "}
          <code>mor-trainer work</code>.
        </p>
      )}
    </>
  );
}
