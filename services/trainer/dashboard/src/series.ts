/** Charts of a run, and the reading of each from its history. */

import { clientsOf, domainsOf, sourcesOf, type RunHistory } from "./history.ts";
import { type ChartId, type DeclaredChart, PHASES, SECTIONS, type StepMetrics } from "./step_metrics.ts";
import type { Bounds } from "./guards.ts";
import type { Evaluation, Figure, Point } from "./types.ts";

export interface Line<Row> {
  name: string;
  of: (row: Row) => Figure;
  /** Number of the colour, --c0 to --c8 of the style. */
  colour: number;
}

export interface ChartSpec<Row> {
  id: string;
  title: string;
  unit: string;
  /** Explanation for the reader. */
  note: string;
  rows: Row[];
  /** Rows by the time since the start of their run, where the chart compares runs. */
  elapsedRows?: Row[];
  lines: Line<Row>[];
  stacked?: boolean;
  /** Bounds of the run's guards on this quantity. */
  bounds?: Bound[];
  /** Steps from which another gate version scored; rewards of different versions are not comparable. */
  gates?: GateChange[];
}

/** Value past which a guard raises an alert. */
export interface Bound {
  name: string;
  value: number;
}

export interface GateChange {
  step: number;
  /** Unix time, seconds. */
  at: number;
  version: number;
}

/** Vertical line of a chart. */
export interface Mark {
  x: number;
  label: string;
}

export interface Section {
  title: string;
  charts: ChartSpec<Row>[];
}

export type Row = (StepMetrics | Evaluation | Beside) & { step: number; at?: number; elapsed?: number };

/** Rows of several runs at the same place of the axis. */
export interface Beside {
  of: (StepMetrics | Evaluation | undefined)[];
}

/** Part of the axis that a row is at: Unix time in seconds, or hours since its run's first step. */
export type Axis = "step" | "time" | "elapsed";

export function place(row: Row, axis: Axis): number {
  return (axis === "time" ? row.at : axis === "elapsed" ? row.elapsed : row.step) ?? 0;
}

/** Colours of clients begin after that of the fused reward. */
const FIRST_CLIENT = 1;
/** Colours of the style; further clients begin again at the first. */
const CLIENT_COLOURS = 8;

export function clientColour(clients: string[], client: string): number {
  return FIRST_CLIENT + (Math.max(0, clients.indexOf(client)) % CLIENT_COLOURS);
}

/** Return the sections of charts, without charts and lines that have no value at all. */
export function sections(runHistory: RunHistory, bounds: Bounds = {}): Section[] {
  const gates = gateChanges(runHistory.points);
  const special = chartsWithLinesOfMaps(runHistory);
  return SECTIONS.map(({ title, charts }) => ({
    title,
    charts: charts
      .flatMap((declared) => {
        const chart = declaredChart(declared, runHistory);
        const drawn = special[chart.id]?.(chart) ?? [chart];
        return drawn.map((one) => ({ ...known(one), bounds: boundsFor(declared, bounds), gates: one.unit === "logits" ? gates : [] }));
      })
      .filter((chart) => chart.lines.length > 0),
  })).filter((section) => section.charts.length > 0);
}

type DeclaredSpec = ChartSpec<Row> & { id: ChartId };

function declaredChart(chart: DeclaredChart, runHistory: RunHistory): DeclaredSpec {
  const lines = chart.lines.map(({ metric, name }, colour): Line<Row> => (
    { name, of: (row) => (row as StepMetrics)[metric], colour }
  ));
  return { ...chart, rows: runHistory.points, lines };
}

/** Return the charts whose lines are clients, sources, domains or phases, and the chart of evaluations. */
function chartsWithLinesOfMaps(runHistory: RunHistory): Partial<Record<ChartId, (chart: ChartSpec<Row>) => ChartSpec<Row>[]>> {
  const clients = clientsOf(runHistory);
  const each = (of: (row: Row, client: string) => Figure) =>
    clients.map((name): Line<Row> => ({ name, of: (row) => of(row, name), colour: clientColour(clients, name) }));
  const evaluation: ChartSpec<Row> = {
    id: "evaluation",
    title: "Evaluation reward",
    unit: "logits",
    note: "Greedy answers to prompts that are never trained on.",
    rows: runHistory.evaluations.map((row) => ({ ...row, ...timeOf(row.step, runHistory.points) })),
    lines: [
      { name: "fused", of: (row) => (row as Evaluation).reward, colour: 0 },
      ...each((row, client) => (row as Evaluation).clients?.[client]),
    ],
  };
  return {
    reward: (chart) => [
      { ...chart, lines: [...chart.lines, ...each((row, client) => (row as StepMetrics).clients?.[client]?.reward_mean)] },
      evaluation,
    ],
    weights: (chart) => [
      { ...chart, lines: each((row, client) => (row as StepMetrics).clients?.[client]?.weight) },
      ...domainsOf(runHistory).map((domain) => ({
        ...chart,
        id: `${chart.id}-${domain}`,
        title: `${chart.title}: ${domain}`,
        note: `Mean share on prompts of domain ${domain}.`,
        lines: each((row, client) => (row as StepMetrics).domains?.[domain]?.weights?.[client]),
      })),
    ],
    "source-groups": (chart) => [{ ...chart, lines: ofSources(runHistory, "groups") }],
    "source-reward": (chart) => [{ ...chart, lines: ofSources(runHistory, "reward_mean") }],
    seconds: (chart) => [{
      ...chart,
      lines: PHASES.map((name, index): Line<Row> => (
        { name: name.replace("_", " "), of: (row) => (row as StepMetrics).seconds?.[name], colour: index + 1 }
      )),
    }],
  };
}

/** Return the time of an evaluation: that of its step, and before the first one that of the first. */
export function timeOf(step: number, points: Point[]): { at?: number } {
  const at = (points.findLast((point) => point.step <= step) ?? points[0])?.at;
  return at === undefined ? {} : { at };
}

function ofSources(runHistory: RunHistory, metric: "groups" | "reward_mean"): Line<Row>[] {
  const sources = sourcesOf(runHistory);
  return sources.map((name) => ({
    name,
    of: (row) => (row as StepMetrics).sources?.[name]?.[metric],
    colour: clientColour(sources, name),
  }));
}

/** Return the bounds of a chart's metrics, of several equal ones the first. */
function boundsFor(chart: DeclaredChart, bounds: Bounds): Bound[] {
  const found = chart.lines.flatMap(({ metric }) => bounds[metric] ?? []);
  return found.filter(({ value }, index) => found.findIndex((other) => other.value === value) === index);
}

/** List the gate versions that scored, from the first step of each on. */
export function gateChanges(points: Point[]): GateChange[] {
  const changes: GateChange[] = [];
  for (const { step, at, gate_version: version } of points) {
    if (version != null && version !== changes.at(-1)?.version) changes.push({ step, at, version });
  }
  return changes;
}

/** Return the gate version that scored a step. */
export function gateAt(gates: GateChange[], step: number): number | null {
  return gates.findLast((change) => change.step <= step)?.version ?? gates[0]?.version ?? null;
}

/** Remove the lines that have no value at all. */
export function known(chart: ChartSpec<Row>): ChartSpec<Row> {
  return { ...chart, lines: chart.lines.filter((line) => chart.rows.some((row) => line.of(row) != null)) };
}

/** Return the exponential moving average, without a bias at the beginning; unknown values stay unknown. */
export function smooth(values: Figure[], factor: number): (number | null)[] {
  let sum = 0;
  let mass = 0;
  return values.map((value) => {
    if (value == null) return null;
    sum = factor * sum + (1 - factor) * value;
    mass = factor * mass + (1 - factor);
    return sum / mass;
  });
}

/** Sum up the columns from the first; an unknown value counts as 0 where another of its row is known. */
export function stack(columns: Figure[][]): (number | null)[][] {
  const known = (columns[0] ?? []).map((_, row) => columns.some((column) => column[row] != null));
  const total = known.map(() => 0);
  return columns.map((column) =>
    column.map((value, row) => {
      if (!known[row]) return null;
      total[row] = (total[row] ?? 0) + (value ?? 0);
      return total[row] ?? null;
    }),
  );
}
