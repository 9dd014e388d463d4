/** Dead letters of a run, its checkpoints, and its specification. */

import { useState } from "preact/hooks";
import { ApiError, post, runPath } from "./api.ts";
import type { Run } from "./feed.ts";
import { bytes, clock, number } from "./format.ts";
import { useRead } from "./hooks.ts";
import type { Caller, Checkpoint, DeadGroup, Preflight, Snapshot } from "./types.ts";

interface Props {
  snapshot: Snapshot;
  changes: Run["changes"];
  caller: Caller;
}

export function Details({ snapshot, changes, caller }: Props) {
  const { id } = snapshot;
  const spec = useRead<Record<string, unknown>>(runPath(id, "/spec")).value;
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
        <div class="scroll" tabIndex={0} role="region" aria-label="Table of checkpoints">
          <table>
            <thead><tr><th scope="col">Step</th><th scope="col">Time</th><th scope="col" class="number">Seconds</th><th scope="col" class="number">Size</th><th scope="col">Path</th></tr></thead>
            <tbody>
              {checkpoints.map((row) => (
                <tr key={row.at}>
                  <th scope="row">{row.step}</th><td>{clock(row.at)}</td><td class="number">{number(row.seconds)}</td><td class="number">{bytes(row.bytes)}</td><td><code>{row.path}</code></td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
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
      <div class="scroll" tabIndex={0} role="region" aria-label="Table of bad prompts">
        <table>
          <thead><tr><th scope="col">Place</th><th scope="col">Id</th><th scope="col">Reason</th></tr></thead>
          <tbody>
            {check.found.map((row) => (
              <tr key={`${row.file}:${row.line}`}>
                <th scope="row"><code>{row.file}:{row.line}</code></th><td>{row.id}</td><td>{row.problem}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
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
  if (letters?.length === 0) return <p>None.</p>;
  return (
    <>
      {problem && <p class="problem" role="alert">{problem}</p>}
      <div class="scroll" tabIndex={0} role="region" aria-label="Table of groups that were given up">
        <table>
          <thead>
            <tr>
              <th scope="col">Group</th><th scope="col">Step</th><th scope="col">Stage</th><th scope="col">Reason</th>
              <th scope="col">Replay</th>
            </tr>
          </thead>
          <tbody>
            {letters?.map((letter) => (
              <tr key={letter.id}>
                <th scope="row"><code>{letter.group_id}</code></th>
                <td>{letter.step}</td>
                <td>{letter.stage ?? "–"}</td>
                <td>{letter.reason}</td>
                <td>
                  {letter.replay === "no" ? "not requested" : letter.replay}{" "}
                  {admin && letter.replay !== "asked" && (
                    <button type="button" aria-label={`Replay group ${letter.group_id}`} onClick={() => void replay(letter.id)}>Replay</button>
                  )}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </>
  );
}
