import { useCallback, useEffect, useMemo, useReducer, useRef, useState } from "preact/hooks";
import { ApiError, get } from "./api.ts";
import { pause, sleep } from "./backoff.ts";
import { Feed } from "./feed.ts";
import { onPrint } from "./printing.ts";
import { parse, type Route } from "./route.ts";
import type { Caller } from "./types.ts";

export function useRoute(): Route {
  const [hash, setHash] = useState(() => location.hash);
  useEffect(() => {
    const changed = () => setHash(location.hash);
    addEventListener("hashchange", changed);
    changed(); // The address may have changed between the first drawing and this.
    return () => removeEventListener("hashchange", changed);
  }, []);
  return useMemo(() => parse(hash), [hash]);
}

export interface Read<T> {
  value: T | null;
  /** Reason why the last attempt failed; the earlier value is kept. */
  problem: ApiError | null;
  again: () => void;
}

/** Read the JSON at ``path``: every ``everyS`` seconds (once where null), whenever ``version`` changes, and after a
 * failure with growing pauses. */
export function useRead<T>(path: string, everyS: number | null = null, version: unknown = 0): Read<T> {
  return useLoad(path, () => get<T>(path), everyS, version);
}

/** Do the same with what ``load`` returns; ``path`` names it. */
export function useLoad<T>(path: string, load: () => Promise<T>, everyS: number | null = null, version: unknown = 0): Read<T> {
  const [attempt, again] = useReducer((count: number) => count + 1, 0);
  const [read, setRead] = useState<{ path: string; value: T | null; problem: ApiError | null }>({
    path, value: null, problem: null,
  });
  useEffect(() => {
    const end = new AbortController();
    const keep = async () => {
      for (let failures = 0; !end.signal.aborted; ) {
        try {
          const value = await load();
          failures = 0;
          if (!end.signal.aborted) setRead({ path, value, problem: null });
          if (everyS === null) return;
        } catch (error) {
          if (!(error instanceof ApiError)) throw error;
          failures += 1;
          if (!end.signal.aborted) setRead((old) => ({ ...old, problem: error }));
          if (error.status >= 400 && error.status < 500) return;
        }
        await sleep(failures ? pause(failures) : (everyS ?? 0), end.signal);
        while (document.hidden && !end.signal.aborted) await sleep(1, end.signal);
      }
    };
    void keep();
    return () => end.abort();
  }, [path, everyS, version, attempt]);
  return { value: read.path === path ? read.value : null, problem: read.problem, again: () => again(undefined) };
}

export function useFeed(run: string, caller: Caller): Feed | null {
  const [, draw] = useReducer((count: number) => count + 1, 0);
  const [feed, setFeed] = useState<Feed | null>(null);
  useEffect(() => {
    const opened = new Feed(run, caller, () => draw(undefined));
    setFeed(opened);
    return () => {
      opened.close();
      setFeed(null);
    };
  }, [run, caller]);
  return feed;
}

/** Observe whether an element is near the visible part of the page, or about to be printed. */
export function useVisible<T extends Element>(): [(element: T | null) => void, boolean] {
  const [visible, setVisible] = useState(false);
  const [printed, setPrinted] = useState(false);
  useEffect(() => onPrint(setPrinted), []);
  const observer = useRef<IntersectionObserver | null>(null);
  const watch = useCallback((element: T | null) => {
    observer.current?.disconnect();
    if (element === null) return;
    const seen = (entries: IntersectionObserverEntry[]) => setVisible(entries.some((entry) => entry.isIntersecting));
    observer.current = new IntersectionObserver(seen, { rootMargin: "300px" });
    observer.current.observe(element);
  }, []);
  return [watch, visible || printed];
}

/** Return whether the page is as narrow as on a phone; style.css has the same bound. */
export function useNarrow(): boolean {
  const narrow = useMemo(() => matchMedia("(max-width: 48rem)"), []);
  const [found, setFound] = useState(narrow.matches);
  useEffect(() => {
    const changed = () => setFound(narrow.matches);
    narrow.addEventListener("change", changed);
    return () => narrow.removeEventListener("change", changed);
  }, [narrow]);
  return found;
}

/** Return the time, redrawing every second. */
export function useClock(): number {
  const [now, setNow] = useState(() => Date.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), 1000);
    return () => clearInterval(timer);
  }, []);
  return now;
}
