/** Chart: plot, legend with the values under the cursor, and the same as a table. */

import { useEffect, useId, useMemo, useRef, useState } from "preact/hooks";
import { useVisible } from "./hooks.ts";
import { number } from "./format.ts";
import { Plot } from "./plot.ts";
import { type ChartSpec, type Row, smooth } from "./series.ts";
import { ChartTable } from "./table.tsx";
import { onTheme } from "./theme.ts";

export interface View {
  /** Smoothing factor, 0 to under 1. */
  smoothing: number;
  axis: "step" | "time";
  /** Shown part of the axis; the whole axis when null. */
  range: [number, number] | null;
}

interface Props {
  spec: ChartSpec<Row>;
  view: View;
  onRange: (range: [number, number] | null) => void;
}

export function Chart({ spec, view, onRange }: Props) {
  const [watch, visible] = useVisible<HTMLElement>();
  const [hidden, setHidden] = useState<ReadonlySet<string>>(new Set());
  const [cursor, setCursor] = useState<number | null>(null);
  const [wide, setWide] = useState(false);
  const [asTable, setAsTable] = useState(false);
  const rows = useMemo(
    () => (view.axis === "time" ? spec.rows.filter((row) => row.at !== undefined) : spec.rows),
    [spec.rows, view.axis],
  );
  const lines = spec.lines.filter((line) => !hidden.has(line.name));
  const columns = lines.map((line) => {
    const values = rows.map(line.of);
    return view.smoothing && !spec.stacked ? smooth(values, view.smoothing) : values;
  });
  const plot = usePlot({ spec, view, visible: visible && !asTable, rows, lines, columns, onRange, setCursor });
  const shown = Math.min(cursor ?? rows.length - 1, rows.length - 1);
  const toggle = (name: string) => {
    const next = new Set(hidden);
    if (!next.delete(name)) next.add(name);
    setHidden(next);
  };
  const title = useId();
  return (
    <figure ref={watch} class={wide ? "chart wide" : "chart"} aria-labelledby={title}>
      <figcaption>
        <h3 id={title}>{spec.title}</h3> <span class="unit">{spec.unit}</span>
        <span class="tools">
          <button type="button" aria-pressed={asTable} aria-label={`${spec.title} as a table`} onClick={() => setAsTable(!asTable)}>
            Table
          </button>
          <button type="button" aria-pressed={wide} aria-label={`${spec.title} enlarged`} onClick={() => setWide(!wide)}>
            Enlarge
          </button>
        </span>
        <p class="note">{spec.note}</p>
      </figcaption>
      {asTable ? (
        <ChartTable spec={spec} rows={rows} />
      ) : (
        <div
          class="plot"
          ref={plot.host}
          role="slider"
          tabIndex={0}
          aria-label={`${spec.title}, ${spec.unit}. Arrow keys read values, plus and minus zoom.`}
          aria-valuemin={rows[0]?.step ?? 0}
          aria-valuemax={rows.at(-1)?.step ?? 0}
          aria-valuenow={rows[shown]?.step ?? 0}
          aria-valuetext={reading(spec, rows[shown])}
          onKeyDown={(event) => {
            if (plot.current.current?.key(event.key, shown)) event.preventDefault();
          }}
        />
      )}
      <ul class="legend">
        {spec.lines.map((line) => (
          <li key={line.name}>
            <button type="button" aria-pressed={!hidden.has(line.name)} onClick={() => toggle(line.name)}>
              <i class={`swatch c${line.colour}`} /> {line.name}{" "}
              <b>{number(rows[shown] === undefined ? null : line.of(rows[shown]))}</b>
            </button>
          </li>
        ))}
        <li class="at">step {rows[shown]?.step ?? "–"}</li>
      </ul>
    </figure>
  );
}

function reading(spec: ChartSpec<Row>, row: Row | undefined): string {
  if (row === undefined) return "no value yet";
  return `step ${row.step}: ${spec.lines.map((line) => `${line.name} ${number(line.of(row))}`).join(", ")}`;
}

interface Drawn {
  spec: ChartSpec<Row>;
  view: View;
  visible: boolean;
  rows: Row[];
  lines: ChartSpec<Row>["lines"];
  columns: (number | null | undefined)[][];
  onRange: Props["onRange"];
  setCursor: (index: number | null) => void;
}

/** Keep a plot while the chart is visible: made anew when its lines change, drawn anew when its values do. */
function usePlot({ spec, view, visible, rows, lines, columns, onRange, setCursor }: Drawn) {
  const host = useRef<HTMLDivElement>(null);
  const current = useRef<Plot | null>(null);
  const callbacks = useRef({ onRange, setCursor });
  callbacks.current = { onRange, setCursor };
  const form = `${lines.map((line) => `${line.name}/${line.colour}`).join()} ${view.axis}`;
  useEffect(() => {
    if (!visible || host.current === null) return;
    const made = new Plot(host.current, {
      lines,
      stacked: spec.stacked ?? false,
      time: view.axis === "time",
      onCursor: (index) => callbacks.current.setCursor(index),
      onRange: (range) => callbacks.current.onRange(range),
    });
    current.current = made;
    const end = onTheme(() => made.redraw());
    return () => {
      end();
      made.close();
      current.current = null;
    };
  }, [visible, form]);
  useEffect(() => {
    const xs = rows.map((row) => (view.axis === "time" ? (row.at ?? 0) : row.step));
    current.current?.show(xs, columns, view.range);
  }, [visible, form, rows, view]);
  return { host, current };
}
