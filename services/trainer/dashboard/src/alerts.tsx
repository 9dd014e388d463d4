import { useEffect, useState } from "preact/hooks";
import { ApiError, post } from "./api.ts";
import { clock, words } from "./format.ts";
import { useRead } from "./hooks.ts";
import { Lost } from "./parts.tsx";
import { runAddress } from "./route.ts";
import type { Alert, Caller } from "./types.ts";

/** Alerts of all runs have no event stream. */
const EVERY_S = 5;

export function AlertsPage({ caller }: { caller: Caller }) {
  useEffect(() => {
    document.title = "Alerts · MoR";
  }, []);
  return (
    <>
      <h1 tabIndex={-1}>Alerts</h1>
      <Alerts run={null} version={0} caller={caller} />
    </>
  );
}

export function RunAlerts({ run, version, caller }: { run: string; version: number; caller: Caller }) {
  return <Alerts run={run} version={version} caller={caller} />;
}

function Alerts({ run, version, caller }: { run: string | null; version: number; caller: Caller }) {
  const [open, setOpen] = useState(true);
  const query = new URLSearchParams({ ...(run === null ? {} : { run }), ...(open ? { acknowledged: "false" } : {}) });
  const { value: alerts, problem, again } = useRead<Alert[]>(`v1/alerts?${query}`, run === null ? EVERY_S : null, version);
  return (
    <>
      <form class="filters" onSubmit={(event) => event.preventDefault()}>
        <label><input type="checkbox" checked={open} onChange={(event) => setOpen(event.currentTarget.checked)} /> only open ones</label>
        <span role="status">{alerts === null ? "Reading the alerts …" : `${alerts.length} ${alerts.length === 1 ? "alert" : "alerts"}`}</span>
      </form>
      {problem && <Lost problem={problem} retryAt={null} retry={again} />}
      {alerts?.length === 0 && <p>{open ? "Nothing needs attention." : "No alerts."}</p>}
      <ul class="alerts">
        {alerts?.map((alert) => (
          <Entry key={alert.id} alert={alert} named={run === null} admin={caller.scope === "admin"} changed={again} />
        ))}
      </ul>
    </>
  );
}

interface EntryProps {
  alert: Alert;
  /** Whether the run's name is shown. */
  named: boolean;
  admin: boolean;
  changed: () => void;
}

function Entry({ alert, named, admin, changed }: EntryProps) {
  const [problem, setProblem] = useState<string | null>(null);
  const acknowledge = async (event: SubmitEvent) => {
    event.preventDefault();
    const note = new FormData(event.currentTarget as HTMLFormElement).get("note");
    try {
      await post(`v1/alerts/${alert.id}/acknowledge`, { note: note || null });
      changed();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setProblem(error.message);
    }
  };
  return (
    <li class={alert.acknowledged_at === null ? "open" : ""}>
      <h2>{words(alert.name)}{alert.count > 1 && ` × ${alert.count}`}</h2>
      <p>{alert.reason}</p>
      <p class="note">
        {named && <a href={runAddress(alert.run, "alerts")}>{alert.run}</a>}
        {alert.step !== null && ` step ${alert.step}`} {clock(alert.last_at)}
        {alert.count > 1 && `, first ${clock(alert.first_at)}`}
      </p>
      {alert.acknowledged_at !== null && (
        <p class="note">acknowledged by {alert.acknowledged_by} {clock(alert.acknowledged_at)}{alert.note && `: ${alert.note}`}</p>
      )}
      {admin && alert.acknowledged_at === null && (
        <form class="filters" onSubmit={(event) => void acknowledge(event)}>
          <label>Note for colleagues <input name="note" autocomplete="off" /></label>
          <button aria-label={`Acknowledge ${words(alert.name)}`}>Acknowledge</button>
        </form>
      )}
      {problem && <p class="problem" role="alert">{problem}</p>}
    </li>
  );
}
