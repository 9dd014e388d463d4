/** Plot of lines or stacked areas (uPlot) that fits its element, shares its cursor, and is operated by keys. */

import uPlot from "uplot";
import { type ChartSpec, type Row, stack } from "./series.ts";
import { colour } from "./theme.ts";

const SYNC = "step";
/** Part of the range that one zoom step keeps. */
const ZOOM = 0.6;

interface Options {
  lines: ChartSpec<Row>["lines"];
  stacked: boolean;
  /** Whether the axis is Unix time instead of steps. */
  time: boolean;
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

  show(xs: number[], columns: Column[], range: [number, number] | null): void {
    this.xs = xs;
    // The highest area is painted first and the others over it.
    const drawn = this.options.stacked ? stack(columns).reverse() : columns;
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
    const { lines, stacked, time } = this.options;
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
      padding: [8, 16, 0, 0],
      scales: { x: { time }, y: stacked ? { range: (_, __, max) => [0, max > 0 ? max : 1] } : {} },
      axes: [{ ...axis, size: 28, space: 60 }, { ...axis, size: 52, space: 34 }],
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
        setCursor: [(plot) => this.options.onCursor(plot.cursor.idx ?? null)],
        setSelect: [(plot) => this.selected(plot)],
      },
    };
  }

  private selected(plot: uPlot): void {
    const { left, width } = plot.select;
    if (width < 4) return;
    this.options.onRange([plot.posToVal(left, "x"), plot.posToVal(left + width, "x")]);
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
  }
}
