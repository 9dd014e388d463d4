import { useState } from "preact/hooks";
import { ApiError, post, runPath } from "./api.ts";
import { Confirmed } from "./parts.tsx";
import type { Snapshot } from "./types.ts";

/** Pause, resume, stop: those that the run's state allows. */
export function Controls({ snapshot, took }: { snapshot: Snapshot; took: (snapshot: Snapshot) => void }) {
  const [problem, setProblem] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  const { id, state, desired } = snapshot;
  const over = state === "finished" || state === "failed" || state === "stopped";
  const ask = async (action: "pause" | "resume" | "stop") => {
    setBusy(true);
    try {
      took(await post<Snapshot>(runPath(id, `/${action}`)));
      setProblem(null);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setProblem(`${action}: ${error.message}`);
    }
    setBusy(false);
  };
  return (
    <section aria-label="Control" aria-busy={busy}>
      <p class="actions">
        {!over && desired === "run" && <button type="button" onClick={() => void ask("pause")}>Pause</button>}
        {state !== "finished" && (over || desired !== "run") && (
          <button type="button" onClick={() => void ask("resume")}>Resume</button>
        )}
        {!over && desired !== "stop" && (
          <Confirmed label="Stop" question={`Stop ${id}? It writes a checkpoint first and can be resumed from there.`}
            act={() => void ask("stop")} />
        )}
      </p>
      {problem && <p class="problem" role="alert">{problem}</p>}
    </section>
  );
}
