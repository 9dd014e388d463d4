import assert from "node:assert/strict";
import test from "node:test";
import { apply, MOST_POINTS, NONE, type RunHistory } from "../src/history.ts";
import { sections, smooth, stack } from "../src/series.ts";
import type { RunEvent } from "../src/types.ts";

const event = (kind: string, step: number, data = {}): RunEvent => ({ id: step, kind, step, at: step, data });
const steps = (runHistory: RunHistory) => runHistory.points.map((point) => point.step);
const after = (events: RunEvent[]) => events.reduce(apply, NONE);
const range = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, index) => from + index);

test("an event that comes again changes nothing", () => {
  const once = after([1, 2, 3].map((step) => event("step", step)));
  assert.deepEqual(apply(once, event("step", 2)), once);
});

test("an event that comes late takes its place", () => {
  assert.deepEqual(steps(after([1, 4, 3, 2].map((step) => event("step", step)))), [1, 2, 3, 4]);
});

test("a run that resumes from a checkpoint loses the steps after it", () => {
  const events = [1, 2, 3, 4].map((step) => event("step", step, { attempt: 1 }));
  const resumed = after([...events, event("evaluation", 4), event("state", 2, { from_step: 2 }), event("step", 3)]);
  assert.deepEqual(steps(resumed), [1, 2, 3]);
  assert.deepEqual(resumed.evaluations, []);
});

test("a long run is thinned, with its beginning and its newest steps whole", () => {
  const found = steps(after(range(1, 5000).map((step) => event("step", step))));
  assert.ok(found.length <= MOST_POINTS);
  assert.equal(found[0], 1);
  assert.deepEqual(found.slice(-300), range(4701, 5000));
});

test("smoothing begins at the first value and keeps gaps", () => {
  assert.deepEqual(smooth([2, null, 2], 0.9).map((value) => value && Math.round(value * 1e6) / 1e6), [2, null, 2]);
});

test("a stack counts an unknown share as nothing, and is unknown where all are", () => {
  assert.deepEqual(stack([[0.5, null, null], [0.5, 1, null]]), [[0.5, 0, null], [1, 1, null]]);
});

test("there are stacked weights for each domain, and no chart without a value", () => {
  const domains = { charts: { weights: { alpha: 0.9 } }, photos: { weights: { alpha: 0.1 } } };
  const runHistory = after([event("step", 1, { reward_mean: 0, clients: { alpha: { weight: 1 } }, domains })]);
  const found = sections(runHistory).flatMap((section) => section.charts);
  assert.deepEqual(found.map((chart) => chart.id), ["reward", "weights", "weights-charts", "weights-photos"]);
  assert.ok(found.slice(1).every((chart) => chart.stacked));
});

test("a run with sources has a stacked chart of their groups, and one of their rewards", () => {
  const sources = { easy: { groups: 3, reward_mean: 0.5 }, hard: { groups: 1, reward_mean: null } };
  const found = sections(after([event("step", 1, { sources })])).flatMap((section) => section.charts);
  assert.deepEqual(found.map((chart) => [chart.id, chart.stacked]), [["source-groups", true], ["source-reward", false]]);
  assert.deepEqual(found.map((chart) => chart.lines.map((line) => line.name)), [["easy", "hard"], ["easy"]]);
});
