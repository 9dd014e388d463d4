/** Plot of lines or stacked areas (uPlot) that fits its element, shares its cursor, and is operated by keys. */

import uPlot from "uplot";
import { type Bound, type ChartSpec, type Mark, type Row, stack } from "./series.ts";
import { colour } from "./theme.ts";

const SYNC = "step";
/** Part of the range that one zoom step keeps. */
const ZOOM = 0.6;

/** Formats of the time axis by the distance of its ticks in seconds, as uPlot takes them; 24 hours, the date below. */
const TIMES: uPlot.Axis.Values = [
  [365 * 86_400, "{YYYY}", null, null, null, null, null, null, 1],
  [28 * 86_400, "{MMM}", "\n{YYYY}", null, null, null, null, null, 1],
  [86_400, "{MMM} {D}", "\n{YYYY}", null, null, null, null, null, 1],
  [60, "{HH}:{mm}", "\n{MMM} {D}", null, "\n{MMM} {D}", null, null, null, 1],
  [0.001, "{HH}:{mm}:{ss}", "\n{MMM} {D}", null, "\n{MMM} {D}", null, null, null, 1],
];

interface Options {
  lines: ChartSpec<Row>["lines"];
  stacked: boolean;
  /** Whether the axis is Unix time instead of steps or hours. */
  time: boolean;
  log: boolean;
  bounds: Bound[];
  onCursor: (index: number | null) => void;
  onRange: (range: [number, number] | null) => void;
}

/** uPlot's typings lack the argument that moves the cursor of the other charts. */
type SetCursor = (at: { left: number; top: number }, fireHook: boolean, publish: boolean) => void;
type Column = (number | null | undefined)[];

export class Plot {
  private readonly plot: uPlot;
  private readonly resizing: ResizeObserver;
  private xs: number[] = [];
  private marks: Mark[] = [];

  constructor(
    private readonly host: HTMLElement,
    private readonly options: Options,
  ) {
    this.plot = new uPlot(this.described(), [[]], host);
    this.resizing = new ResizeObserver(() => this.plot.setSize(this.size()));
    this.resizing.observe(host);
  }

  close(): void {
    this.resizing.disconnect();
    this.plot.destroy();
  }

  redraw(): void {
    this.plot.redraw(false, true);
  }

  show(xs: number[], columns: Column[], range: [number, number] | null, marks: Mark[]): void {
    this.xs = xs;
    this.marks = marks;
    // The highest area is painted first and the others over it.
    const drawn = this.options.stacked ? stack(columns).reverse() : this.options.log ? columns.map(positive) : columns;
    this.plot.setData([xs, ...drawn] as uPlot.AlignedData, false);
    const [min, max] = range ?? this.whole();
    this.plot.setScale("x", { min, max });
  }

  /** Move the cursor from ``index``, or zoom; returns whether ``key`` has a meaning. */
  key(key: string, index: number): boolean {
    const moved: Record<string, number> = {
      ArrowLeft: index - 1, ArrowDown: index - 1, ArrowRight: index + 1, ArrowUp: index + 1,
      PageDown: index - 10, PageUp: index + 10, Home: 0, End: this.xs.length - 1,
    };
    if (key === "+" || key === "=") this.zoom(ZOOM, index);
    else if (key === "-") this.zoom(1 / ZOOM, index);
    else if (key === "Escape") this.options.onRange(null);
    else if (moved[key] !== undefined) this.moveTo(moved[key]);
    else return false;
    return true;
  }

  private moveTo(index: number): void {
    const x = this.xs[Math.min(this.xs.length - 1, Math.max(0, index))];
    if (x !== undefined) (this.plot.setCursor as SetCursor)({ left: this.plot.valToPos(x, "x"), top: 10 }, true, true);
  }

  private zoom(factor: number, index: number): void {
    const { min, max } = this.plot.scales.x ?? {};
    const centre = this.xs[index];
    const [first, last] = this.whole();
    if (min == null || max == null || centre === undefined) return;
    const half = ((max - min) * factor) / 2;
    const range: [number, number] = [Math.max(first, centre - half), Math.min(last, centre + half)];
    this.options.onRange(range[0] <= first && range[1] >= last ? null : range);
  }

  private whole(): [number, number] {
    const [first = 0, last = 1] = [this.xs[0], this.xs.at(-1)];
    return first < last ? [first, last] : [first - 1, last + 1];
  }

  private size() {
    return { width: this.host.clientWidth, height: this.host.clientHeight };
  }

  private described(): uPlot.Options {
    const { lines, stacked, time, log } = this.options;
    const drawn = stacked ? [...lines].reverse() : lines;
    const axis = {
      stroke: () => colour("soft"),
      font: "11px system-ui, sans-serif",
      grid: { stroke: () => colour("line"), width: 1 },
      ticks: { show: false },
    };
    return {
      ...this.size(),
      legend: { show: false },
      padding: [8, endRoom, 0, 0],
      scales: { x: { time }, y: { distr: log ? 3 : 1, range: (_, min, max) => this.heights(min, max) } },
      axes: [
        { ...axis, size: (_, labels) => (labels?.some((label) => label.includes("\n")) ? 42 : 28), space: 60, ...(time ? { values: TIMES } : {}) },
        { ...axis, size: (plot, labels) => Math.max(52, Math.ceil(labelWidth(plot, labels) + 12)), space: 34 },
      ],
      series: [
        {},
        ...drawn.map((line): uPlot.Series => {
          const own = () => colour(`c${line.colour}`);
          const width = line.colour === 0 ? 2 : 1.5;
          return { stroke: own, width: stacked ? 1 : width, spanGaps: !stacked, ...(stacked ? { fill: own } : {}) };
        }),
      ],
      cursor: {
        y: false,
        sync: { key: SYNC, scales: ["x", null] },
        drag: { x: true, y: false, setScale: false },
        points: { show: !stacked },
        bind: { dblclick: () => () => (this.options.onRange(null), null) },
      },
      hooks: {
        draw: [(plot) => this.drawMarks(plot), (plot) => this.drawBounds(plot)],
        setCursor: [(plot) => this.options.onCursor(plot.cursor.idx ?? null)],
        setSelect: [(plot) => this.selected(plot)],
      },
    };
  }

  /** Return the range of the values' axis, with the bounds that are near enough to leave the values readable. */
  private heights(min: number | null, max: number | null): uPlot.Range.MinMax {
    if (min === null || max === null) return [null, null];
    if (this.options.stacked) return [0, max > 0 ? max : 1];
    const reach = Math.max(max - min, Math.abs(max) / 2);
    const near = this.options.bounds.map(({ value }) => value).filter((value) => value > min - reach && value < max + reach);
    if (!this.options.log) return uPlot.rangeNum(Math.min(min, ...near), Math.max(max, ...near), 0.1, true);
    const positives = near.filter((value) => value > 0);
    return uPlot.rangeLog(Math.min(min, ...positives), Math.max(max, ...positives), 10, false);
  }

  /** Draw a vertical line where the gate changes. */
  private drawMarks(plot: uPlot): void {
    for (const { x, label } of this.marks) {
      const at = plot.valToPos(x, "x", true);
      const { left, top, width, height } = plot.bbox;
      if (at >= left && at <= left + width) this.dashed(plot, "soft", [at, top, at, top + height], label);
    }
  }

  /** Draw a horizontal line for each bound of a guard. */
  private drawBounds(plot: uPlot): void {
    for (const { value, name } of this.options.bounds) {
      const at = plot.valToPos(value, "y", true);
      const { left, top, width, height } = plot.bbox;
      if (at >= top && at <= top + height) this.dashed(plot, "bad", [left, at, left + width, at], name);
    }
  }

  private dashed(plot: uPlot, name: string, [x0, y0, x1, y1]: [number, number, number, number], label: string): void {
    const { ctx } = plot;
    const { left, top, width } = plot.bbox;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = colour(name);
    ctx.lineWidth = uPlot.pxRatio;
    ctx.setLineDash([5 * uPlot.pxRatio, 4 * uPlot.pxRatio]);
    ctx.beginPath();
    ctx.moveTo(x0, y0);
    ctx.lineTo(x1, y1);
    ctx.stroke();
    ctx.font = `${10 * uPlot.pxRatio}px system-ui, sans-serif`;
    ctx.textAlign = "left";
    ctx.textBaseline = y0 === y1 && y0 - 14 * uPlot.pxRatio > top ? "bottom" : "top";
    const room = ctx.measureText(label).width + 3 * uPlot.pxRatio;
    ctx.fillText(label, Math.min(x0 + 3 * uPlot.pxRatio, left + width - room), y0);
    ctx.restore();
  }

  private selected(plot: uPlot): void {
    const { left, width } = plot.select;
    if (width < 4) return;
    this.options.onRange([plot.posToVal(left, "x"), plot.posToVal(left + width, "x")]);
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
  }
}

/** Return a column without the values that a logarithmic axis does not have. */
function positive(values: Column): Column {
  return values.map((value) => (value == null || value > 0 ? value : null));
}

/** Return the width of the widest of an axis's labels. */
function labelWidth(plot: uPlot, labels: string[] | null | undefined): number {
  plot.ctx.font = `${11 * uPlot.pxRatio}px system-ui, sans-serif`;
  const widths = (labels ?? []).flatMap((label) => label.split("\n")).map((line) => plot.ctx.measureText(line).width);
  return Math.max(0, ...widths) / uPlot.pxRatio;
}

/** Return the room on the right that the last label of the x axis needs. */
function endRoom(plot: uPlot): number {
  const { _values: labels } = (plot.axes[0] ?? {}) as { _values?: string[] };
  return Math.max(16, Math.ceil(labelWidth(plot, labels) / 2) + 4);
}
