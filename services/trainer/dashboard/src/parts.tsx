/** Components of several pages. */

import type { ComponentChildren } from "preact";
import { useEffect, useState } from "preact/hooks";
import { type ApiError, request, runPath } from "./api.ts";
import { useClock, useNarrow } from "./hooks.ts";
import type { RunState } from "./types.ts";

/** Notice of a lost connection, with the time of the next attempt. */
export function Lost({ problem, retryAt, retry }: { problem: ApiError; retryAt: number | null; retry: () => void }) {
  const now = useClock();
  const seconds = retryAt === null ? null : Math.max(0, Math.ceil((retryAt - now) / 1000));
  return (
    <div class="lost">
      <p role="alert">Not live: {problem.message}. The page may be out of date; the dashboard keeps trying.</p>
      <p>
        {seconds !== null && <span>Next attempt in {seconds} s. </span>}
        <button type="button" onClick={retry}>Try now</button>
      </p>
    </div>
  );
}

export function isOver(state: RunState): boolean {
  return state === "finished" || state === "failed" || state === "stopped";
}

export function State({ state, desired }: { state: RunState; desired?: string }) {
  const coming = { pause: "pauses", stop: "stops", run: "goes on" }[desired ?? ""];
  const reached = { pause: "paused", stop: "stopped", run: "running" }[desired ?? ""];
  const pending = desired !== undefined && coming && !(desired === "run" && state !== "paused") && state !== reached;
  return (
    <>
      <span class={`state ${state}`}>{state}</span>
      {pending && !isOver(state) && <span class="note"> {coming} after this step</span>}
    </>
  );
}

/** Content that a phone shows on request, so that more important content is on its first screen. */
export function Folded({ summary, children }: { summary: ComponentChildren; children: ComponentChildren }) {
  if (!useNarrow()) return <>{children}</>;
  return <details class="folded"><summary>{summary}</summary>{children}</details>;
}

export function Progress({ label, value }: { label: string; value: number | null }) {
  return value === null ? null : <progress max={1} value={value} aria-label={label} />;
}

/** Button that asks for confirmation of an action that cannot simply be undone. */
export function Confirmed({ label, question, act }: { label: string; question: string; act: () => void }) {
  const [asking, setAsking] = useState(false);
  const open = (dialog: HTMLDialogElement | null) => {
    if (dialog && !dialog.open) dialog.showModal();
  };
  const chosen = (yes: boolean) => {
    setAsking(false);
    if (yes) act();
  };
  return (
    <>
      <button type="button" onClick={() => setAsking(true)}>{label}</button>
      {asking && (
        <dialog ref={open} onClose={() => setAsking(false)} aria-label={label}>
          <p>{question}</p>
          <p class="actions">
            <button type="button" class="primary" onClick={() => chosen(true)}>{label}</button>
            <button type="button" onClick={() => chosen(false)}>Cancel</button>
          </p>
        </dialog>
      )}
    </>
  );
}

/** Thumbnail of a sample's picture. An ``img`` cannot send the token, so a request fetches the bytes. */
export function Picture({ run, digest, label }: { run: string; digest: string; label: string }) {
  const [found, setFound] = useState<string | null>(null);
  const [missing, setMissing] = useState(false);
  useEffect(() => {
    let address: string | null = null;
    let gone = false;
    request(runPath(run, `/images/${digest}`))
      .then((reply) => reply.blob())
      .then((content) => {
        if (gone) return;
        address = URL.createObjectURL(content);
        setFound(address);
      })
      .catch(() => setMissing(true));
    return () => {
      gone = true;
      if (address) URL.revokeObjectURL(address);
    };
  }, [run, digest]);
  if (missing) return <p class="note">The picture is no longer kept.</p>;
  return found ? <img src={found} alt={label} /> : <span class="picture" role="img" aria-label={`${label}, loading`} />;
}
