/** Chart: plot, legend with the values under the cursor, and the same as a table. */

import { useId, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { useVisible } from "./hooks.ts";
import { clock, number } from "./format.ts";
import { Plot } from "./plot.ts";
import { type Axis, type ChartSpec, gateAt, type GateChange, type Line, type Mark, place, type Row, smooth } from "./series.ts";
import { ChartTable } from "./table.tsx";
import { onTheme } from "./theme.ts";
import type { Figure } from "./types.ts";

export interface View {
  /** Smoothing factor, 0 to under 1. */
  smoothing: number;
  axis: Axis;
  scale: "linear" | "log";
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
  const rows = useMemo(() => {
    if (view.axis === "time") return spec.rows.filter((row) => row.at !== undefined);
    return view.axis === "elapsed" ? (spec.elapsedRows ?? []) : spec.rows;
  }, [spec, view.axis]);
  const lines = spec.lines.filter((line) => !hidden.has(line.name));
  const columns = lines.map((line) => {
    const values = rows.map(line.of);
    return view.smoothing && !spec.stacked ? smooth(values, view.smoothing) : values;
  });
  const gates = spec.gates ?? [];
  const log = view.scale === "log" && !spec.stacked && columns.every((column) => column.every((value) => value == null || value >= 0));
  const plot = usePlot({ spec, view, log, visible: visible && !asTable, rows, lines, columns, onRange, setCursor });
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
        <h3 id={title}>{spec.title}</h3> <span class="unit">{spec.unit}{log && ", log axis"}</span>
        <span class="tools">
          <button type="button" aria-pressed={asTable} aria-label={`${spec.title} as a table`} onClick={() => setAsTable(!asTable)}>
            Table
          </button>
          <button type="button" aria-pressed={wide} aria-label={`${spec.title} enlarged`} onClick={() => setWide(!wide)}>
            Enlarge
          </button>
        </span>
        <p class="note">
          {spec.note}
          {gates.length > 1 && " Dashed lines: a new gate version; rewards on both sides are not comparable."}
          {view.scale === "log" && !log && !spec.stacked && " Linear, because some values are below 0."}
        </p>
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
          aria-valuetext={reading(spec, rows, shown)}
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
              <b>{number(valueAt(spec, line, rows, shown))}</b>
            </button>
          </li>
        ))}
        {(spec.bounds ?? []).map((bound) => (
          <li key={bound.name} class="bound">{bound.name} <b>{number(bound.value)}</b></li>
        ))}
        <li class="at">{position(rows[shown], view.axis, gates)}</li>
      </ul>
    </figure>
  );
}

/** Return a line's value at the cursor; where runs are compared, which have different steps, the latest one before. */
function valueAt(spec: ChartSpec<Row>, line: Line<Row>, rows: Row[], index: number): Figure {
  const known = spec.elapsedRows === undefined ? rows[index] : rows.slice(0, index + 1).findLast((row) => line.of(row) != null);
  return known === undefined ? null : line.of(known);
}

/** Name the place of the cursor: step, time, and the gate version of its rewards. */
function position(row: Row | undefined, axis: Axis, gates: GateChange[]): string {
  if (row === undefined) return "step –";
  const gate = gateAt(gates, row.step);
  const parts = [
    `step ${row.step}`,
    ...(axis === "time" ? [clock(row.at)] : axis === "elapsed" ? [`${number(row.elapsed)} h`] : []),
    ...(gate === null ? [] : [`gate version ${gate}`]),
  ];
  return parts.join(" · ");
}

function reading(spec: ChartSpec<Row>, rows: Row[], index: number): string {
  const row = rows[index];
  if (row === undefined) return "no value yet";
  return `step ${row.step}: ${spec.lines.map((line) => `${line.name} ${number(valueAt(spec, line, rows, index))}`).join(", ")}`;
}

interface Drawn {
  spec: ChartSpec<Row>;
  view: View;
  log: boolean;
  visible: boolean;
  rows: Row[];
  lines: ChartSpec<Row>["lines"];
  columns: (number | null | undefined)[][];
  onRange: Props["onRange"];
  setCursor: (index: number | null) => void;
}

/** Keep a plot while the chart is visible: made anew when its lines change, drawn anew when its values do. */
function usePlot({ spec, view, log, visible, rows, lines, columns, onRange, setCursor }: Drawn) {
  const host = useRef<HTMLDivElement>(null);
  const current = useRef<Plot | null>(null);
  const callbacks = useRef({ onRange, setCursor });
  callbacks.current = { onRange, setCursor };
  const bounds = spec.bounds ?? [];
  const form = JSON.stringify([lines.map((line) => [line.name, line.colour]), view.axis, log, bounds]);
  useLayoutEffect(() => { // before the picture that a printer gets
    if (!visible || host.current === null) return;
    const made = new Plot(host.current, {
      lines,
      stacked: spec.stacked ?? false,
      time: view.axis === "time",
      log,
      bounds,
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
  useLayoutEffect(() => {
    const xs = rows.map((row) => place(row, view.axis));
    const marks = (spec.gates ?? []).slice(1).map((change): Mark => ({ x: place(change, view.axis), label: `gate ${change.version}` }));
    current.current?.show(xs, columns, view.range, marks);
  }, [visible, form, rows, view]);
  return { host, current };
}
