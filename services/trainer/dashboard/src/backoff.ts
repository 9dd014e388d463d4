/** A restart of run control takes seconds: the first attempts are quick, later ones spare it. */
const FIRST_S = 0.5;
/** A page that was left open recovers within this time. */
const LONGEST_S = 20;

/** Return the seconds until the attempt after ``failures`` failed ones: doubled each time, bounded, jittered by half. */
export function pause(failures: number, retryAfterS: number | null = null): number {
  const longest = Math.min(LONGEST_S, FIRST_S * 2 ** Math.min(failures, 10));
  return (retryAfterS ?? longest) * (0.75 + 0.5 * Math.random());
}

/** Wait for the time, or until ``signal`` is aborted. */
export function sleep(seconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, seconds * 1000);
    if (signal.aborted) done();
    signal.addEventListener("abort", done);
  });
}
