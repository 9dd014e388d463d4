/** State of a run in the page: loaded once, then kept current by events, over every reconnection. */

import { ApiError, get, runPath } from "./api.ts";
import { pause, sleep } from "./backoff.ts";
import { apply, type RunHistory, loaded, NONE, ownPoints } from "./history.ts";
import { follow } from "./stream.ts";
import type { Caller, ClientHistory, History, RunEvent, Snapshot } from "./types.ts";

/** Points that are loaded: about one for two pixels of a chart. */
const POINTS = 400;
/** Pause between drawings, so that a burst of events is drawn once. */
const DRAW_MS = 250;
/** Pause between snapshots, whatever the number of events. */
const SNAPSHOT_MS = 2000;
/** A client's token may not follow events. */
const CLIENT_POLL_S = 5;

export type Link = "loading" | "live" | "lost" | "refused";

export interface Run {
  link: Link;
  snapshot: Snapshot | null;
  runHistory: RunHistory;
  /** Reason why ``link`` is lost or refused. */
  problem: ApiError | null;
  /** Unix time in milliseconds of the next attempt, while lost. */
  retryAt: number | null;
  /** Number of changes of alerts, samples and so on: a component that shows them reads again. */
  changes: { alert: number; samples: number; replay: number; checkpoint: number };
}

export class Feed {
  run: Run = {
    link: "loading", snapshot: null, runHistory: NONE, problem: null, retryAt: null,
    changes: { alert: 0, samples: 0, replay: 0, checkpoint: 0 },
  };
  private readonly end = new AbortController();
  private wake = new AbortController();
  private cursor: string | null = null;
  private failures = 0;
  private drawing: ReturnType<typeof setTimeout> | null = null;
  private refreshing: ReturnType<typeof setTimeout> | null = null;

  constructor(
    private readonly id: string,
    private readonly caller: Caller,
    private readonly changed: () => void,
  ) {
    void this.keep();
  }

  close(): void {
    this.end.abort();
    this.wake.abort();
    if (this.drawing !== null) clearTimeout(this.drawing);
    if (this.refreshing !== null) clearTimeout(this.refreshing);
  }

  /** Take a snapshot that came as the answer to another request. */
  setSnapshot(snapshot: Snapshot): void {
    this.set({ snapshot });
  }

  /** Try again now. */
  retry(): void {
    this.wake.abort();
  }

  private async keep(): Promise<void> {
    while (!this.end.signal.aborted) {
      try {
        await (this.caller.scope === "client" ? this.poll() : this.watch());
      } catch (error) {
        if (this.end.signal.aborted) return;
        if (!(error instanceof ApiError)) throw error;
        if (final(error)) return this.set({ link: "refused", problem: error });
        if (error.status !== 0) this.cursor = null;
        const seconds = pause(this.failures++, error.retryAfterS);
        this.set({ link: "lost", problem: error, retryAt: Date.now() + seconds * 1000 });
        await this.rest(seconds);
      }
    }
  }

  private async rest(seconds: number): Promise<void> {
    this.wake = new AbortController();
    await sleep(seconds, AbortSignal.any([this.end.signal, this.wake.signal]));
  }

  private async watch(): Promise<void> {
    if (this.cursor === null) await this.load();
    await follow(
      this.id,
      this.cursor ?? "",
      {
        opened: () => {
          this.failures = 0;
          this.set({ link: "live", problem: null, retryAt: null });
          this.refresh();
        },
        event: (event, cursor) => this.take(event, cursor),
      },
      this.end.signal,
    );
  }

  /** Load the snapshot first: events after its cursor complete the history. */
  private async load(): Promise<void> {
    const snapshot = await get<Snapshot>(runPath(this.id));
    const history = await get<History>(runPath(this.id, `/metrics?max_points=${POINTS}`));
    this.cursor = snapshot.cursor;
    this.set({ snapshot, runHistory: loaded(history) });
  }

  private async poll(): Promise<void> {
    const own = `/clients/${encodeURIComponent(this.caller.name)}?max_points=${POINTS}`;
    for (;;) {
      const snapshot = await get<Snapshot>(runPath(this.id));
      const history = await get<ClientHistory>(runPath(this.id, own));
      const { changes } = this.run;
      const samples = changes.samples + Number(snapshot.step !== this.run.snapshot?.step);
      this.failures = 0;
      const runHistory = ownPoints(this.caller.name, history);
      this.set({ link: "live", snapshot, runHistory, problem: null, retryAt: null, changes: { ...changes, samples } });
      await this.rest(CLIENT_POLL_S);
      if (this.end.signal.aborted) return;
    }
  }

  private take(event: RunEvent, cursor: string): void {
    if (event.kind === "gap") {
      this.cursor = null;
      throw new ApiError(0, "events were missed; the history is read again");
    }
    this.cursor = cursor;
    this.run = { ...this.run, runHistory: apply(this.run.runHistory, event) };
    const { changes } = this.run;
    if (event.kind in changes) {
      const kind = event.kind as keyof typeof changes;
      this.run = { ...this.run, changes: { ...changes, [kind]: changes[kind] + 1 } };
    }
    this.refresh();
    this.draw();
  }

  /** Read the snapshot soon, once for many events. */
  private refresh(): void {
    this.refreshing ??= setTimeout(() => {
      this.refreshing = null;
      get<Snapshot>(runPath(this.id)).then(
        (snapshot) => this.set({ snapshot }),
        () => undefined, // the stream fails too and shows the problem
      );
    }, this.run.snapshot === null ? 0 : SNAPSHOT_MS);
  }

  private set(change: Partial<Run>): void {
    this.run = { ...this.run, ...change };
    if (!this.end.signal.aborted) this.changed();
  }

  private draw(): void {
    this.drawing ??= setTimeout(() => {
      this.drawing = null;
      this.changed();
    }, DRAW_MS);
  }
}

/** Return whether trying again is useless: the token or the run is unknown. */
function final(error: ApiError): boolean {
  return [401, 403, 404].includes(error.status);
}
