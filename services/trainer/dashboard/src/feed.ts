/** A run as the page holds it, kept current: loaded once, then carried on by events, over every reconnection. */

import { ApiError, get, runPath } from "./api.ts";
import { pause, sleep } from "./backoff.ts";
import { apply, type Held, loaded, NONE, ownPoints } from "./history.ts";
import { follow } from "./stream.ts";
import type { Caller, ClientHistory, History, RunEvent, Snapshot } from "./types.ts";

const POINTS = 400;
const DRAW_MS = 250;
const SNAPSHOT_MS = 2000;
const CLIENT_POLL_S = 5;

export type Link = "loading" | "live" | "lost" | "refused";

export interface Run {
  link: Link;
  snapshot: Snapshot | null;
  held: Held;
  /** Why ``link`` is lost or refused. */
  problem: ApiError | null;
  /** Unix time in milliseconds of the next attempt, while lost. */
  retryAt: number | null;
  /** How often alerts, samples and dead letters changed: whoever shows them reads again. */
  changes: { alert: number; samples: number; replay: number; checkpoint: number };
}

export class Feed {
  run: Run = {
    link: "loading", snapshot: null, held: NONE, problem: null, retryAt: null,
    changes: { alert: 0, samples: 0, replay: 0, checkpoint: 0 },
  };
  private readonly end = new AbortController();
  private wake = new AbortController();
  private cursor: string | null = null;
  private failures = 0;
  private drawing: ReturnType<typeof setTimeout> | null = null;
  private asking: ReturnType<typeof setTimeout> | null = null;

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
    if (this.asking !== null) clearTimeout(this.asking);
  }

  /** A snapshot that came as the answer to something else. */
  took(snapshot: Snapshot): void {
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
          this.ask();
        },
        event: (event, cursor) => this.take(event, cursor),
      },
      this.end.signal,
    );
  }

  /** The snapshot first: events after its cursor make whole what the history may lack. */
  private async load(): Promise<void> {
    const snapshot = await get<Snapshot>(runPath(this.id));
    const history = await get<History>(runPath(this.id, `/metrics?max_points=${POINTS}`));
    this.cursor = snapshot.cursor;
    this.set({ snapshot, held: loaded(history) });
  }

  private async poll(): Promise<void> {
    const own = `/clients/${encodeURIComponent(this.caller.name)}?max_points=${POINTS}`;
    for (;;) {
      const snapshot = await get<Snapshot>(runPath(this.id));
      const history = await get<ClientHistory>(runPath(this.id, own));
      const { changes } = this.run;
      const samples = changes.samples + Number(snapshot.step !== this.run.snapshot?.step);
      this.failures = 0;
      const held = ownPoints(this.caller.name, history);
      this.set({ link: "live", snapshot, held, problem: null, retryAt: null, changes: { ...changes, samples } });
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
    this.run = { ...this.run, held: apply(this.run.held, event) };
    const { changes } = this.run;
    if (event.kind in changes) {
      const kind = event.kind as keyof typeof changes;
      this.run = { ...this.run, changes: { ...changes, [kind]: changes[kind] + 1 } };
    }
    this.ask();
    this.draw();
  }

  /** Read the snapshot soon; many events, one question. */
  private ask(): void {
    this.asking ??= setTimeout(() => {
      this.asking = null;
      get<Snapshot>(runPath(this.id)).then(
        (snapshot) => this.set({ snapshot }),
        () => undefined, // the stream notices the same and says so
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

/** No use to try again: the token, or the run, is not known. */
function final(error: ApiError): boolean {
  return [401, 403, 404].includes(error.status);
}
