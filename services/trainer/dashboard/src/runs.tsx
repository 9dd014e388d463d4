import { useEffect, useState } from "preact/hooks";
import { clock, duration, number, progress } from "./format.ts";
import { useRead } from "./hooks.ts";
import { Lost, Progress, State } from "./parts.tsx";
import { runAddress } from "./route.ts";
import type { ClientFigures } from "./step_metrics.ts";
import type { Alert, Caller, RunState, Snapshot } from "./types.ts";

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
  useEffect(() => {
    document.title = "Runs · MoR";
  }, []);
  const shown = (runs ?? []).filter((run) => run.id.includes(text.trim()) && (state === "" || run.state === state));
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
            <label>Name <input type="search" value={text} onInput={(event) => setText(event.currentTarget.value)} /></label>
            <label>
              State{" "}
              <select value={state} onChange={(event) => setState(event.currentTarget.value)}>
                <option value="">all</option>
                {STATES.map((name) => <option key={name}>{name}</option>)}
              </select>
            </label>
            <span role="status">{shown.length} of {runs.length} runs</span>
          </form>
          <div class="scroll" tabIndex={0} role="region" aria-label="Table of runs">
            <RunsTable runs={shown} caller={caller} />
          </div>
        </>
      )}
    </>
  );
}

function RunsTable({ runs, caller }: { runs: Snapshot[]; caller: Caller }) {
  return (
    <table>
      <thead>
        <tr>
          <th scope="col">Run</th>
          <th scope="col">State</th>
          <th scope="col">Progress</th>
          <th scope="col" class="number">Step</th>
          <th scope="col">Time left</th>
          <th scope="col" class="number">Reward</th>
          <th scope="col" class="number">KL</th>
          <th scope="col">Last change</th>
        </tr>
      </thead>
      <tbody>
        {runs.map((run) => (
          <tr key={run.id}>
            <th scope="row"><a href={runAddress(run.id)}>{run.id}</a></th>
            <td><State state={run.state} desired={run.desired} /></td>
            <td><Progress label={`Progress of ${run.id}`} value={run.progress} /> {progress(run.progress)}</td>
            <td class="number">{run.step ?? "–"} / {run.total}</td>
            <td>{duration(run.eta_s)}</td>
            <td class="number">{number(reward(run, caller))}</td>
            <td class="number">{number(run.metrics?.kl)}</td>
            <td>{clock(run.updated_at)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

/** Return the fused reward; for a client, the mean of its own scores. */
function reward(run: Snapshot, caller: Caller): unknown {
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
