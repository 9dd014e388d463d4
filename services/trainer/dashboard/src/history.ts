/** History of a run in the page: loaded points, and those that events add. Pure functions. */

import type { StepMetrics } from "./step_metrics.ts";
import type { ClientHistory, Evaluation, History, Point, RunEvent } from "./types.ts";

/** Most points of the charts, about one for each pixel; past that, older ones are thinned. */
export const MOST_POINTS = 1200;
/** Newest points that are never thinned. */
const WHOLE_TAIL = 300;

export interface RunHistory {
  points: Point[];
  evaluations: Evaluation[];
}

export const NONE: RunHistory = { points: [], evaluations: [] };

export function loaded(history: History): RunHistory {
  return { points: history.points, evaluations: history.evaluations };
}

/** Convert a client's own view to points that have its figures alone. */
export function ownPoints(name: string, history: ClientHistory): RunHistory {
  const points = history.points.map(({ step, at, ...figures }): Point => ({ step, at, clients: { [name]: figures } }));
  const last = points.at(-1);
  const shares = Object.entries(history.weight_by_domain);
  if (last) last.domains = Object.fromEntries(shares.map(([domain, weight]) => [domain, { weights: { [name]: weight } }]));
  return { points, evaluations: [] };
}

/** Return the history after an event. A repeated event changes nothing. */
export function apply(runHistory: RunHistory, event: RunEvent): RunHistory {
  const step = event.step ?? 0;
  if (event.kind === "step") {
    const point: Point = { ...(event.data as StepMetrics), step, at: event.at };
    return { ...runHistory, points: thin(placed(runHistory.points, point)) };
  }
  if (event.kind === "evaluation") {
    const evaluation = { ...event.data, step } as Evaluation;
    return { ...runHistory, evaluations: placed(runHistory.evaluations, evaluation) };
  }
  const from = event.data.from_step;
  return event.kind === "state" && typeof from === "number" ? until(runHistory, from) : runHistory;
}

/** Remove the steps after a checkpoint: a run that resumed from it lost them with their weights. */
function until(runHistory: RunHistory, step: number): RunHistory {
  const kept = <T extends { step: number }>(rows: T[]) => rows.filter((row) => row.step <= step);
  return { points: kept(runHistory.points), evaluations: kept(runHistory.evaluations) };
}

function placed<T extends { step: number }>(rows: T[], row: T): T[] {
  const last = rows.at(-1);
  if (!last || last.step < row.step) return [...rows, row];
  const index = rows.findIndex((other) => other.step >= row.step);
  return rows.with(index, row).toSpliced(index + 1, 0, ...(rows[index]?.step === row.step ? [] : [rows[index] as T]));
}

/** Drop every second of the older points when there are too many; the newest stay. */
function thin(points: Point[]): Point[] {
  if (points.length <= MOST_POINTS) return points;
  const tail = points.length - WHOLE_TAIL;
  return points.filter((_, index) => index >= tail || index % 2 === 0);
}

/** List the clients in the order of their colours. */
export function clientsOf(runHistory: RunHistory): string[] {
  const names = new Set(runHistory.points.flatMap((point) => Object.keys(point.clients ?? {})));
  for (const evaluation of runHistory.evaluations) for (const name of Object.keys(evaluation.clients ?? {})) names.add(name);
  return [...names].sort();
}

/** List the sources of the run's prompts. */
export function sourcesOf(runHistory: RunHistory): string[] {
  return [...new Set(runHistory.points.flatMap((point) => Object.keys(point.sources ?? {})))].sort();
}

export function domainsOf(runHistory: RunHistory): string[] {
  return [...new Set(runHistory.points.flatMap((point) => Object.keys(point.domains ?? {})))].sort();
}
