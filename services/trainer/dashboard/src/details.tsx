/** Dead letters of a run, its checkpoints, and its specification. */

import { useState } from "preact/hooks";
import { ApiError, post, runPath } from "./api.ts";
import type { Run } from "./feed.ts";
import { bytes, clock, number } from "./format.ts";
import { useRead } from "./hooks.ts";
import { type Column, SortedTable } from "./sorted_table.tsx";
import type { BadPrompt, Caller, Checkpoint, DeadGroup, Preflight, Snapshot, Spec } from "./types.ts";

const CHECKPOINTS: Column<Checkpoint>[] = [
  { name: "Step", heading: true, by: (row) => row.step, cell: (row) => row.step },
  { name: "Time", by: (row) => row.at, cell: (row) => clock(row.at) },
  { name: "Seconds", number: true, by: (row) => row.seconds, cell: (row) => number(row.seconds) },
  { name: "Size", number: true, by: (row) => row.bytes, cell: (row) => bytes(row.bytes) },
  { name: "Path", by: (row) => row.path, cell: (row) => <code>{row.path}</code> },
];
const BAD_PROMPTS: Column<BadPrompt>[] = [
  { name: "Place", heading: true, by: (row) => `${row.file}:${row.line}`, cell: (row) => <code>{row.file}:{row.line}</code> },
  { name: "Id", by: (row) => row.id, cell: (row) => row.id },
  { name: "Reason", by: (row) => row.problem, cell: (row) => row.problem },
];
const DEAD_GROUPS: Column<DeadGroup>[] = [
  { name: "Group", heading: true, by: (letter) => letter.group_id, cell: (letter) => <code>{letter.group_id}</code> },
  { name: "Step", by: (letter) => letter.step, cell: (letter) => letter.step },
  { name: "Stage", by: (letter) => letter.stage, cell: (letter) => letter.stage ?? "–" },
  { name: "Reason", by: (letter) => letter.reason, cell: (letter) => letter.reason },
];

interface Props {
  snapshot: Snapshot;
  changes: Run["changes"];
  caller: Caller;
}

export function Details({ snapshot, changes, caller }: Props) {
  const { id } = snapshot;
  const spec = useRead<Spec>(runPath(id, "/spec")).value;
  const read = useRead<{ checkpoints: Checkpoint[] }>(runPath(id, "/checkpoints"), null, changes.checkpoint);
  const checkpoints = read.value?.checkpoints.toReversed();
  return (
    <>
      {snapshot.preflight !== null && snapshot.preflight.bad > 0 && <Bad check={snapshot.preflight} run={id} />}
      <h2>Groups that were given up</h2>
      <Dead run={id} version={`${changes.alert}/${changes.replay}`} admin={caller.scope === "admin"} />
      <h2>Checkpoints</h2>
      {snapshot.final && <p>Exported: <code>{snapshot.final}</code></p>}
      {checkpoints?.length === 0 && <p>None on the disk.</p>}
      {checkpoints !== undefined && checkpoints.length > 0 && (
        <SortedTable label="Table of checkpoints" rows={checkpoints} keyOf={(row) => row.at} columns={CHECKPOINTS} />
      )}
      <h2>Created with</h2>
      <p class="note">{clock(snapshot.created_at)}</p>
      {spec && <pre tabIndex={0} role="region" aria-label="Specification">{JSON.stringify(spec, null, 2)}</pre>}
    </>
  );
}

function Bad({ check, run }: { check: Preflight; run: string }) {
  return (
    <>
      <h2>Prompts that cannot be used</h2>
      {check.bad > check.found.length && (
        <p class="note">The first {check.found.length} of {check.bad}; <code>mor run bad-prompts {run}</code> lists more.</p>
      )}
      <SortedTable label="Table of bad prompts" rows={check.found} keyOf={(row) => `${row.file}:${row.line}`} columns={BAD_PROMPTS} />
    </>
  );
}

function Dead({ run, version, admin }: { run: string; version: string; admin: boolean }) {
  const { value: letters, again } = useRead<DeadGroup[]>(runPath(run, "/dead"), null, version);
  const [problem, setProblem] = useState<string | null>(null);
  const replay = async (letter: number) => {
    try {
      await post(runPath(run, `/dead/${letter}/replay`));
      setProblem(null);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setProblem(error.message);
    }
    again();
  };
  const replaying: Column<DeadGroup> = {
    name: "Replay",
    by: (letter) => letter.replay,
    cell: (letter) => (
      <>
        {letter.replay === "no" ? "not requested" : letter.replay}{" "}
        {admin && letter.replay !== "asked" && (
          <button type="button" aria-label={`Replay group ${letter.group_id}`} onClick={() => void replay(letter.id)}>Replay</button>
        )}
      </>
    ),
  };
  if (letters?.length === 0) return <p>None.</p>;
  return (
    <>
      {problem && <p class="problem" role="alert">{problem}</p>}
      <SortedTable label="Table of groups that were given up" rows={letters ?? []} keyOf={(letter) => letter.id}
        columns={[...DEAD_GROUPS, replaying]} />
    </>
  );
}
