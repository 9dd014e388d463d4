import { useState } from "preact/hooks";
import { ApiError, post, runPath } from "./api.ts";
import { Confirmed, isOver } from "./parts.tsx";
import { StoredRun } from "./storage.tsx";
import type { Snapshot } from "./types.ts";

/** Buttons to pause, resume and stop, as the run's state allows. */
export function Controls({ snapshot, onSnapshot }: { snapshot: Snapshot; onSnapshot: (snapshot: Snapshot) => void }) {
  const [problem, setProblem] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  const { id, state, desired } = snapshot;
  const over = isOver(state);
  const act = async (action: "pause" | "resume" | "stop") => {
    setBusy(true);
    try {
      onSnapshot(await post<Snapshot>(runPath(id, `/${action}`)));
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
        {!over && desired === "run" && <button type="button" onClick={() => void act("pause")}>Pause</button>}
        {state !== "finished" && (over || desired !== "run") && (
          <button type="button" onClick={() => void act("resume")}>Resume</button>
        )}
        {!over && desired !== "stop" && (
          <Confirmed label="Stop" question={`Stop ${id}? It writes a checkpoint first and can be resumed from there.`}
            act={() => void act("stop")} />
        )}
      </p>
      {over && (
        <StoredRun run={id} archived={snapshot.archived ?? false} over={over} changed={(gone) => {
          if (gone) location.hash = "#/";
        }} />
      )}
      {problem && <p class="problem" role="alert">{problem}</p>}
    </section>
  );
}
