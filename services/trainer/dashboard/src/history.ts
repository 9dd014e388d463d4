/** A run's history as the page holds it: what was loaded, and what events add. Pure. */

import type { StepMetrics } from "./step_metrics.ts";
import type { ClientHistory, Evaluation, History, Point, RunEvent } from "./types.ts";

/** Most points that the charts hold; past that, older ones are thinned. */
export const MOST_POINTS = 1200;
const WHOLE_TAIL = 300;

export interface Held {
  points: Point[];
  evaluations: Evaluation[];
}

export const NONE: Held = { points: [], evaluations: [] };

export function loaded(history: History): Held {
  return { points: history.points, evaluations: history.evaluations };
}

/** A client's own view as points that have nothing but its figures. */
export function ownPoints(name: string, history: ClientHistory): Held {
  const points = history.points.map(({ step, at, ...figures }): Point => ({ step, at, clients: { [name]: figures } }));
  const last = points.at(-1);
  const shares = Object.entries(history.weight_by_domain);
  if (last) last.domains = Object.fromEntries(shares.map(([domain, weight]) => [domain, { weights: { [name]: weight } }]));
  return { points, evaluations: [] };
}

/** The history after an event. One that was applied before changes nothing. */
export function apply(held: Held, event: RunEvent): Held {
  const step = event.step ?? 0;
  if (event.kind === "step") {
    const point: Point = { ...(event.data as StepMetrics), step, at: event.at };
    return { ...held, points: thin(placed(held.points, point)) };
  }
  if (event.kind === "evaluation") {
    const evaluation = { ...event.data, step } as Evaluation;
    return { ...held, evaluations: placed(held.evaluations, evaluation) };
  }
  const from = event.data.from_step;
  return event.kind === "state" && typeof from === "number" ? until(held, from) : held;
}

/** A run that resumes goes on from a checkpoint: the steps after it are lost with their weights. */
function until(held: Held, step: number): Held {
  const kept = <T extends { step: number }>(rows: T[]) => rows.filter((row) => row.step <= step);
  return { points: kept(held.points), evaluations: kept(held.evaluations) };
}

function placed<T extends { step: number }>(rows: T[], row: T): T[] {
  const last = rows.at(-1);
  if (!last || last.step < row.step) return [...rows, row];
  const index = rows.findIndex((other) => other.step >= row.step);
  return rows.with(index, row).toSpliced(index + 1, 0, ...(rows[index]?.step === row.step ? [] : [rows[index] as T]));
}

/** Every second of the older points goes when there are too many; the newest stay whole. */
function thin(points: Point[]): Point[] {
  if (points.length <= MOST_POINTS) return points;
  const tail = points.length - WHOLE_TAIL;
  return points.filter((_, index) => index >= tail || index % 2 === 0);
}

/** Clients in the order in which they keep their colours. */
export function clientsOf(held: Held): string[] {
  const names = new Set(held.points.flatMap((point) => Object.keys(point.clients ?? {})));
  for (const evaluation of held.evaluations) for (const name of Object.keys(evaluation.clients ?? {})) names.add(name);
  return [...names].sort();
}

export function domainsOf(held: Held): string[] {
  return [...new Set(held.points.flatMap((point) => Object.keys(point.domains ?? {})))].sort();
}
