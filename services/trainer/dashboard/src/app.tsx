/** Frame of every page: navigation, caller, and the form for a token. */

import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError, caller as getCaller, forgetToken, hasToken, isRefusal } from "./api.ts";
import { AlertsPage } from "./alerts.tsx";
import { AuditsPage } from "./audits.tsx";
import { pause, sleep } from "./backoff.ts";
import { ComparePage } from "./compare.tsx";
import { useNarrow, useRoute } from "./hooks.ts";
import { Login } from "./login.tsx";
import { Question, useOfferedToken } from "./offer.tsx";
import { Folded, Lost } from "./parts.tsx";
import type { Route } from "./route.ts";
import { RunPage } from "./run.tsx";
import { RunsPage } from "./runs.tsx";
import { StoragePage } from "./storage.tsx";
import { setTheme, type Theme, theme } from "./theme.ts";
import type { Caller } from "./types.ts";

export function App() {
  const [version, setVersion] = useState(0);
  const offered = useOfferedToken(() => setVersion((old) => old + 1)); // before the route, which has no token
  const route = useRoute();
  const { caller, problem, again } = useCaller(version);
  const [changing, setChanging] = useState(false);
  const signIn = !offered.pending && (changing || !hasToken() || (problem !== null && isRefusal(problem)));
  const signed = () => {
    setChanging(false);
    setVersion(version + 1);
  };
  const out = () => {
    forgetToken();
    signed();
  };
  return (
    <>
      <a class="skip" href="#main" onClick={(event) => { event.preventDefault(); document.getElementById("main")?.focus(); }}>
        To the content
      </a>
      <header>
        <a class="brand" href="#/">MoR</a>
        <nav aria-label="Pages">
          {caller?.scope !== "labeller" && (
            <a href="#/" aria-current={route.page === "runs" ? "page" : undefined}>Runs</a>
          )}
          {caller?.scope !== "client" && caller?.scope !== "labeller" && (
            <a href="#/alerts" aria-current={route.page === "alerts" ? "page" : undefined}>Alerts</a>
          )}
          {caller?.scope !== "client" && caller?.scope !== "labeller" && (
            <a href="#/storage" aria-current={route.page === "storage" ? "page" : undefined}>Storage</a>
          )}
          {caller?.scope !== "client" && (
            <a href="#/audits" aria-current={route.page === "audits" ? "page" : undefined}>Audits</a>
          )}
        </nav>
        <Folded summary={caller ? `${caller.name} (${caller.scope})` : "Theme"}>
          <ThemeChoice />
          {caller && <Account caller={caller} change={() => setChanging(true)} out={out} />}
        </Folded>
      </header>
      <main id="main" tabIndex={-1}>
        {signIn ? (
          <Login problem={problem?.message ?? offered.refusal} done={signed} cancel={caller && changing ? () => setChanging(false) : null} />
        ) : (
          <>
            {offered.refusal !== null && <p class="problem" role="alert">{offered.refusal}</p>}
            {problem && <Lost problem={problem} retryAt={null} retry={again} />}
            {caller && <Page route={route} caller={caller} />}
            {!caller && !problem && <p role="status">Connecting to run control …</p>}
          </>
        )}
      </main>
      <Question offered={offered} current={caller} />
    </>
  );
}

function Account({ caller, change, out }: { caller: Caller; change: () => void; out: () => void }) {
  return (
    <p class="caller">
      {!useNarrow() && `${caller.name} (${caller.scope}) `}
      <button type="button" onClick={change}>Other token</button>{" "}
      <button type="button" onClick={out}>Forget token</button>
    </p>
  );
}

function Page({ route, caller }: { route: Route; caller: Caller }) {
  const place = JSON.stringify(route);
  const first = useRef(place);
  useEffect(() => {
    if (first.current !== place) document.querySelector<HTMLElement>("main h1")?.focus();
    first.current = place;
  }, [route.page, route.page === "run" ? route.run : null]);
  if (route.page === "audits") return <AuditsPage objective={route.objective} caller={caller} />;
  if (caller.scope === "labeller") return <AuditsPage objective={null} caller={caller} />;
  if (route.page === "runs") return <RunsPage caller={caller} />;
  if (route.page === "compare") return <ComparePage key={route.runs.join()} runs={route.runs} />;
  if (route.page === "alerts") return <AlertsPage caller={caller} />;
  if (route.page === "storage") return <StoragePage caller={caller} />;
  if (route.page === "run") return <RunPage key={route.run} run={route.run} tab={route.tab} caller={caller} />;
  return (
    <>
      <h1 tabIndex={-1}>No such page</h1>
      <p>The dashboard has no page at this address. <a href="#/">All runs</a></p>
    </>
  );
}

/** Look up the owner of the token, until there is an answer. */
function useCaller(version: number) {
  const [found, setFound] = useState<{ caller: Caller | null; problem: ApiError | null }>({ caller: null, problem: null });
  const [attempt, setAttempt] = useState(0);
  useEffect(() => {
    const end = new AbortController();
    const keep = async () => {
      for (let failures = 0; hasToken() && !end.signal.aborted; failures += 1) {
        try {
          const caller = await getCaller();
          return end.signal.aborted ? undefined : setFound({ caller, problem: null });
        } catch (error) {
          if (!(error instanceof ApiError)) throw error;
          if (end.signal.aborted) return;
          setFound({ caller: null, problem: error });
          if (isRefusal(error)) return;
          await sleep(pause(failures, error.retryAfterS), end.signal);
        }
      }
    };
    setFound({ caller: null, problem: null });
    void keep();
    return () => end.abort();
  }, [version, attempt]);
  return { ...found, again: () => setAttempt(attempt + 1) };
}

function ThemeChoice() {
  return (
    <label class="theme">
      Theme{" "}
      <select value={theme()} onChange={(event) => setTheme(event.currentTarget.value as Theme)}>
        <option value="auto">as the system</option>
        <option value="light">light</option>
        <option value="dark">dark</option>
      </select>
    </label>
  );
}
