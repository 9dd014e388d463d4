import type { ComponentChildren } from "preact";
import { useMemo, useState } from "preact/hooks";
import { ApiError, download, runPath } from "./api.ts";
import { Chart, type View } from "./chart.tsx";
import { zone } from "./format.ts";
import { boundsOf } from "./guards.ts";
import type { RunHistory } from "./history.ts";
import { useRead } from "./hooks.ts";
import { Folded } from "./parts.tsx";
import { type Section, sections } from "./series.ts";
import type { Caller, Spec } from "./types.ts";

/** All charts of a run. */
export function Charts({ runHistory, run, caller }: { runHistory: RunHistory; run: string; caller: Caller }) {
  return caller.scope === "client" ? <OwnCharts runHistory={runHistory} /> : <RunCharts runHistory={runHistory} run={run} />;
}

/** Charts of a client's own figures. */
function OwnCharts({ runHistory }: { runHistory: RunHistory }) {
  const found = useMemo(() => sections(runHistory), [runHistory]);
  return <ChartSections sections={found} axes={["step", "time"]} />;
}

function RunCharts({ runHistory, run }: { runHistory: RunHistory; run: string }) {
  const spec = useRead<Spec>(runPath(run, "/spec")).value;
  const found = useMemo(() => sections(runHistory, boundsOf(spec)), [runHistory, spec]);
  return <ChartSections sections={found} axes={["step", "time"]}><WholeRun run={run} /></ChartSections>;
}

/** Button that saves every step of a run; the charts have a choice of them. */
function WholeRun({ run }: { run: string }) {
  const [problem, setProblem] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  const save = async () => {
    setBusy(true);
    try {
      await download(runPath(run, "/metrics.csv"), `${run}.csv`);
      setProblem(null);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setProblem(error.message);
    }
    setBusy(false);
  };
  return (
    <>
      <button type="button" disabled={busy} onClick={() => void save()}>Save the run as CSV</button>
      {problem && <span class="problem" role="alert">{problem}</span>}
    </>
  );
}

const AXES = { step: "step", time: `time, ${zone()}`, elapsed: "hours since the start" };

interface Props {
  sections: Section[];
  axes: View["axis"][];
  children?: ComponentChildren;
}

/** Charts with a common cursor, range, smoothing, axis and scale. */
export function ChartSections({ sections: found, axes, children }: Props) {
  const [view, setView] = useState<View>({ smoothing: 0, axis: "step", scale: "linear", range: null });
  const change = (part: Partial<View>) => setView({ ...view, ...part });
  if (found.length === 0) return <p>No step is finished yet; charts appear with the first.</p>;
  return (
    <>
      <Folded summary="Chart controls">
        <form class="filters" onSubmit={(event) => event.preventDefault()}>
          <label>
            Smoothing{" "}
            <input type="range" min="0" max="0.98" step="0.02" value={view.smoothing}
              onInput={(event) => change({ smoothing: Number(event.currentTarget.value) })} />
          </label>
          <label>
            Axis{" "}
            <select value={view.axis}
              onChange={(event) => change({ axis: event.currentTarget.value as View["axis"], range: null })}>
              {axes.map((axis) => <option key={axis} value={axis}>{AXES[axis]}</option>)}
            </select>
          </label>
          <label>
            Scale{" "}
            <select value={view.scale} onChange={(event) => change({ scale: event.currentTarget.value as View["scale"] })}>
              <option value="linear">linear</option>
              <option value="log">logarithmic</option>
            </select>
          </label>
          {view.range && <button type="button" onClick={() => change({ range: null })}>Show everything</button>}
          {children}
        </form>
      </Folded>
      {found.map((section) => (
        <section key={section.title} aria-label={section.title}>
          <h2>{section.title}</h2>
          <div class="charts">
            {section.charts.map((spec) => (
              <Chart key={spec.id} spec={spec} view={view} onRange={(range) => change({ range })} />
            ))}
          </div>
        </section>
      ))}
    </>
  );
}
