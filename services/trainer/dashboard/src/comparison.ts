/** Charts of several runs together: one for each quantity, with a line for each run. Pure functions. */

import type { RunHistory } from "./history.ts";
import { type Beside, type ChartSpec, gateChanges, type Row, type Section, known, timeOf } from "./series.ts";
import { type NumericMetric, SECTIONS } from "./step_metrics.ts";
import type { Evaluation, Figure, Point, Snapshot, Spec } from "./types.ts";

export interface Compared {
  snapshot: Snapshot;
  spec: Spec;
  runHistory: RunHistory;
}

/** Return the charts of the quantities that a single line shows, without those that no run reports. */
export function comparedSections(runs: Compared[]): Section[] {
  const steps = beside(runs, ({ points }) => points);
  const evaluations = beside(runs, ({ evaluations }) => evaluations);
  const warning = gateWarning(runs);
  return SECTIONS.map(({ title, charts }) => ({
    title,
    charts: charts.flatMap((chart): ChartSpec<Row>[] => {
      const { id, unit } = chart;
      const note = unit === "logits" ? warning : "";
      const quantities = chart.lines.map(({ metric, name }): ChartSpec<Row> => ({
        id: `${id}-${metric}`,
        title: chart.lines.length > 1 ? `${chart.title}: ${name}` : chart.title,
        unit,
        note,
        ...steps,
        lines: linesOf(runs, (row) => (row as Point)[metric as NumericMetric]),
      }));
      const evaluation: ChartSpec<Row> = {
        id: "evaluation", title: "Evaluation reward", unit, note, ...evaluations,
        lines: linesOf(runs, (row) => (row as Evaluation).reward),
      };
      return id === "reward" ? [...quantities, evaluation] : quantities;
    }).map(known).filter((chart) => chart.lines.length > 0),
  })).filter((section) => section.charts.length > 0);
}

function linesOf(runs: Compared[], of: (row: Point | Evaluation) => Figure): ChartSpec<Row>["lines"] {
  return runs.map((run, index) => ({
    name: run.snapshot.id,
    of: (row) => {
      const own = (row as Beside).of[index];
      return own === undefined ? undefined : of(own as Point | Evaluation);
    },
    colour: index + 1,
  }));
}

/** Return the rows of all runs by step, those of the same step as one, and by the time since the run's first step. */
function beside(runs: Compared[], rowsOf: (runHistory: RunHistory) => (Point | Evaluation)[]): Pick<ChartSpec<Row>, "rows" | "elapsedRows"> {
  const elapsedRows: (Beside & { step: number; elapsed: number })[] = [];
  const bySteps = new Map<number, Beside & { step: number }>();
  runs.forEach(({ runHistory }, index) => {
    for (const row of rowsOf(runHistory)) {
      const { step } = row;
      const shared = bySteps.get(step) ?? { step, of: [] };
      shared.of[index] = row;
      bySteps.set(step, shared);
      const hours = elapsed(row, runHistory.points);
      if (hours !== null) elapsedRows.push({ step, elapsed: hours, of: runs.map((_, other) => (other === index ? row : undefined)) });
    }
  });
  return {
    rows: [...bySteps.values()].sort((a, b) => a.step - b.step),
    elapsedRows: elapsedRows.sort((a, b) => a.elapsed - b.elapsed),
  };
}

/** Return the hours from a run's first step to a row; an evaluation has the time of its step. */
function elapsed(row: Point | Evaluation, points: Point[]): number | null {
  const start = points[0]?.at;
  const { at } = "at" in row ? row : timeOf(row.step, points);
  return at === undefined || start === undefined ? null : (at - start) / 3600;
}

/** Name the gate versions that scored a run. */
export function gateRange({ runHistory }: Compared): string | null {
  const versions = gateChanges(runHistory.points).map((change) => change.version);
  const [low, high] = [Math.min(...versions), Math.max(...versions)];
  if (versions.length === 0) return null;
  return low === high ? String(low) : `${low} to ${high}`;
}

function gateWarning(runs: Compared[]): string {
  const ranges = new Set(runs.map(gateRange).filter((range) => range !== null));
  const several = ranges.size > 1 || [...ranges].some((range) => range.includes("to"));
  if (!several) return "";
  const listed = runs.map((run) => `${run.snapshot.id} ${gateRange(run) ?? "none"}`).join(", ");
  return `Rewards of different gate versions are not comparable. Versions: ${listed}.`;
}
