/** Connection to a run's events. ``EventSource`` cannot send a token, so the stream is read from ``fetch``. */

import { createParser } from "eventsource-parser";
import { ApiError, request, runPath } from "./api.ts";
import type { RunEvent } from "./types.ts";

/** Comments come every MOR_SSE_HEARTBEAT_S, 15 by default; a connection without any for this long is dead. */
const SILENCE_MS = 90_000;

export interface Reader {
  opened: () => void;
  event: (event: RunEvent, cursor: string) => void;
}

/** Read events after ``cursor`` until the connection ends, which is always an error.
 * @throws ApiError */
export async function follow(run: string, cursor: string, reader: Reader, signal: AbortSignal): Promise<never> {
  const connection = new AbortController();
  const close = () => connection.abort();
  signal.addEventListener("abort", close);
  addEventListener("offline", close); // the connection would be silent, and the page would call itself live
  let watchdog = setTimeout(close, SILENCE_MS);
  try {
    const headers = { "Last-Event-ID": cursor };
    const reply = await request(runPath(run, "/events"), { headers, signal: connection.signal, cache: "no-store" });
    if (!reply.body) throw new ApiError(0, "the browser offers no stream of the answer");
    reader.opened();
    const parser = createParser({
      onEvent: (message) => reader.event(JSON.parse(message.data) as RunEvent, message.id ?? cursor),
    });
    const text = new TextDecoder();
    for (const bytes = reply.body.getReader(); ; ) {
      const { done, value } = await bytes.read();
      if (done) throw new ApiError(0, "run control closed the connection");
      clearTimeout(watchdog);
      watchdog = setTimeout(close, SILENCE_MS);
      parser.feed(text.decode(value, { stream: true }));
    }
  } catch (error) {
    throw error instanceof ApiError ? error : new ApiError(0, "the connection to run control was lost");
  } finally {
    clearTimeout(watchdog);
    signal.removeEventListener("abort", close);
    removeEventListener("offline", close);
    connection.abort();
  }
}
