import { useMemo, useState } from "preact/hooks";
import { Chart, type View } from "./chart.tsx";
import type { RunHistory } from "./history.ts";
import { sections } from "./series.ts";

/** All charts of a run, with a common cursor, range and smoothing. */
export function Charts({ runHistory }: { runHistory: RunHistory }) {
  const [view, setView] = useState<View>({ smoothing: 0, axis: "step", range: null });
  const found = useMemo(() => sections(runHistory), [runHistory]);
  const change = (part: Partial<View>) => setView({ ...view, ...part });
  if (found.length === 0) return <p>No step is finished yet; charts appear with the first.</p>;
  return (
    <>
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
            <option value="step">step</option>
            <option value="time">time</option>
          </select>
        </label>
        {view.range && <button type="button" onClick={() => change({ range: null })}>Show everything</button>}
      </form>
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
