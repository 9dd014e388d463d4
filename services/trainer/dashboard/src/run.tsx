/** Page of a run: its state, and its parts in tabs. */

import { useEffect } from "preact/hooks";
import { RunAlerts } from "./alerts.tsx";
import { Charts } from "./charts.tsx";
import { Clients } from "./clients.tsx";
import { Controls } from "./controls.tsx";
import { Details } from "./details.tsx";
import type { Run } from "./feed.ts";
import { clock, duration, number, progress } from "./format.ts";
import { useFeed, useRead } from "./hooks.ts";
import { Notes } from "./notes.tsx";
import { Folded, Lost, Progress, State } from "./parts.tsx";
import { runAddress, type Tab, TABS } from "./route.ts";
import { Samples } from "./samples.tsx";
import type { Alert, Caller, Preflight, Snapshot } from "./types.ts";

const FOR_CLIENTS: readonly Tab[] = ["charts", "clients", "samples"];

export function RunPage({ run: id, tab, caller }: { run: string; tab: Tab; caller: Caller }) {
  const feed = useFeed(id, caller);
  const run = feed?.run;
  const snapshot = run?.snapshot ?? null;
  useEffect(() => {
    document.title = snapshot ? `${progress(snapshot.progress)} ${snapshot.state} · ${id} · MoR` : `${id} · MoR`;
  }, [id, snapshot]);
  if (run?.link === "refused") {
    return (
      <>
        <h1 tabIndex={-1}>{id}</h1>
        <p class="problem" role="alert">{run.problem?.message}</p>
        <p><a href="#/">All runs</a></p>
      </>
    );
  }
  return (
    <>
      <h1 tabIndex={-1}>{id}</h1>
      {run?.link === "lost" && run.problem && (
        <Lost problem={run.problem} retryAt={run.retryAt} retry={() => feed?.retry()} />
      )}
      {!snapshot && <p role="status">Reading the run …</p>}
      {feed && run && snapshot && (
        <>
          <Head run={run} snapshot={snapshot} admin={caller.scope === "admin"} onSnapshot={(found) => feed.setSnapshot(found)} />
          {caller.scope === "client" ? (
            <Tabs id={id} tab={tab} tabs={FOR_CLIENTS} open={0} />
          ) : (
            <AlertedTabs id={id} tab={tab} version={run.changes.alert} />
          )}
          <section aria-label={tab}>
            <Content run={run} snapshot={snapshot} tab={tab} caller={caller} />
          </section>
        </>
      )}
    </>
  );
}

function Content({ run, snapshot, tab, caller }: { run: Run; snapshot: Snapshot; tab: Tab; caller: Caller }) {
  if (tab === "clients") return <Clients runHistory={run.runHistory} run={snapshot.id} version={run.changes.samples} />;
  if (tab === "samples") return <Samples run={snapshot.id} version={run.changes.samples} />;
  if (tab === "alerts") return <RunAlerts run={snapshot.id} version={run.changes.alert} caller={caller} />;
  if (tab === "details") return <Details snapshot={snapshot} changes={run.changes} caller={caller} />;
  return <Charts runHistory={run.runHistory} run={snapshot.id} caller={caller} />;
}

interface HeadProps {
  run: Run;
  snapshot: Snapshot;
  admin: boolean;
  onSnapshot: (snapshot: Snapshot) => void;
}

function Head({ run, snapshot, admin, onSnapshot }: HeadProps) {
  const { step, total, metrics, preflight } = snapshot;
  const facts: Fact[] = [
    ["Step", `${step ?? "–"} of ${total}`],
    ["Time left", duration(snapshot.eta_s)],
    ["Reward", number(metrics?.reward_mean)],
    ["Gate", snapshot.gate_version === null ? "–" : `version ${snapshot.gate_version}`],
  ];
  const further: Fact[] = [
    ["Prompts", prompts(preflight)],
    ["KL", number(metrics?.kl)],
    ["Seconds a step", number(metrics?.step_seconds)],
    ["Weights", snapshot.weights_version === null ? "–" : `version ${snapshot.weights_version}`],
    ["Last change", clock(snapshot.updated_at)],
  ];
  return (
    <section class="head" aria-label="State of the run">
      <div class="standing">
        <span>
          <State state={snapshot.state} desired={snapshot.desired} />{" "}
          {run.link === "live" && snapshot.state === "running" && <span class="live">live</span>}
        </span>
        <span class="progress"><Progress label="Progress" value={snapshot.progress} /> {progress(snapshot.progress)}</span>
        {admin && <Controls snapshot={snapshot} onSnapshot={onSnapshot} />}
      </div>
      {snapshot.control_rewards === "shuffled" && (
        <p class="problem"><strong>Control run: its rewards are shuffled.</strong></p>
      )}
      {snapshot.error && <p class="problem" role="alert">{snapshot.error}</p>}
      {snapshot.warnings.map((warning) => <Warning key={warning} text={warning} />)}
      <Notes snapshot={snapshot} admin={admin} onSnapshot={onSnapshot} />
      <div class="figures">
        <Facts facts={facts} />
        <Folded summary="More figures"><Facts facts={further} /></Folded>
      </div>
    </section>
  );
}

/** Warning whose reason and cure open on request: the charts come first, on a phone too. */
function Warning({ text }: { text: string }) {
  const [subject, ...rest] = text.split(": ");
  return <details><summary class="problem">Warning: {subject}</summary>{rest.join(": ")}</details>;
}

type Fact = [name: string, value: string];

function Facts({ facts }: { facts: Fact[] }) {
  return (
    <dl class="facts">
      {facts.map(([name, value]) => (
        <div key={name}><dt>{name}</dt><dd>{value}</dd></div>
      ))}
    </dl>
  );
}

function prompts(check: Preflight | null): string {
  if (check === null) return "–";
  const bad = check.bad ? `, ${check.bad.toLocaleString("en")} bad` : "";
  if (check.state === "done") return `${check.rows.toLocaleString("en")} checked${bad}`;
  const of = check.total ? ` of ${check.total.toLocaleString("en")}` : "";
  return `${check.state}, ${check.rows.toLocaleString("en")}${of} done${bad}`;
}

function AlertedTabs({ id, tab, version }: { id: string; tab: Tab; version: number }) {
  const path = `v1/alerts?acknowledged=false&run=${encodeURIComponent(id)}`;
  const open = useRead<Alert[]>(path, null, `${version} ${tab}`).value?.length ?? 0;
  return <Tabs id={id} tab={tab} tabs={TABS} open={open} />;
}

function Tabs({ id, tab, tabs, open }: { id: string; tab: Tab; tabs: readonly Tab[]; open: number }) {
  return (
    <nav class="tabs" aria-label="Parts of the run">
      {tabs.map((name) => (
        <a key={name} href={runAddress(id, name)} aria-current={name === tab ? "page" : undefined}>
          {name}{name === "alerts" && open > 0 && <span class="badge"> {open} open</span>}
        </a>
      ))}
    </nav>
  );
}
