import assert from "node:assert/strict";
import test from "node:test";
import { type Compared, comparedSections } from "../src/comparison.ts";
import { boundsOf } from "../src/guards.ts";
import { parse } from "../src/route.ts";
import { gateAt, gateChanges, sections } from "../src/series.ts";
import { sorted } from "../src/sorted_table.tsx";
import { differences } from "../src/spec_difference.ts";
import type { Point, Snapshot } from "../src/types.ts";

const point = (step: number, at: number, gate_version: number): Point => ({ step, at, gate_version, reward_mean: step / 10, kl: 0.1 });
const run = (id: string, points: Point[]): Compared => (
  { snapshot: { id } as Snapshot, spec: {}, runHistory: { points, evaluations: [{ step: 1, reward: 0.5 }] } }
);

test("runs with different steps share the rows of the steps that both have", () => {
  const found = comparedSections([run("a", [point(1, 100, 1), point(2, 3700, 1)]), run("b", [point(2, 9000, 1), point(4, 9360, 2)])]);
  const reward = found[0]?.charts[0];
  assert.ok(reward);
  const shown = (rows: typeof reward.rows) => rows.map((row) => [row.elapsed ?? row.step, ...reward.lines.map((line) => line.of(row) ?? null)]);
  assert.deepEqual(shown(reward.rows), [[1, 0.1, null], [2, 0.2, 0.2], [4, null, 0.4]]);
  assert.deepEqual(shown(reward.elapsedRows ?? []), [[0, 0.1, null], [0, null, 0.2], [0.1, null, 0.4], [1, 0.2, null]]);
  assert.match(reward.note, /not comparable.*a 1, b 1 to 2/);
  assert.deepEqual(found[0]?.charts.map((chart) => chart.title), ["Reward", "Evaluation reward"]);
});

test("runs that one gate version scored are comparable", () => {
  const found = comparedSections([run("a", [point(1, 0, 3)]), run("b", [point(1, 0, 3)])]);
  assert.equal(found[0]?.charts[0]?.note, "");
});

test("the difference of specifications names nested fields, and those that only one has", () => {
  const first = { name: "a", steps: 10, optimiser: { lr: 1e-4, kind: "adam" }, tags: [1, 2] };
  const second = { name: "a", steps: 10, optimiser: { lr: 2e-4, kind: "adam" }, tags: [1, 2], seed: 3 };
  assert.deepEqual(differences([first, second]), [
    { field: "optimiser.lr", values: ["0.0001", "0.0002"] },
    { field: "seed", values: [undefined, "3"] },
  ]);
  assert.deepEqual(differences([first, first]), []);
});

test("unknown values are last in both directions, and names with numbers in the order of these", () => {
  const rows = [{ n: 2 }, { n: null }, { n: 10 }, { n: 1 }];
  assert.deepEqual(sorted(rows, (row) => row.n, false).map((row) => row.n), [1, 2, 10, null]);
  assert.deepEqual(sorted(rows, (row) => row.n, true).map((row) => row.n), [10, 2, 1, null]);
  assert.deepEqual(sorted(["run-10", "run-9"], (name) => name, false), ["run-9", "run-10"]);
});

test("a gate version counts from its first step on", () => {
  const gates = gateChanges([point(1, 0, 1), point(2, 1, 1), point(3, 2, 2)]);
  assert.deepEqual(gates.map((change) => [change.step, change.version]), [[1, 1], [3, 2]]);
  assert.deepEqual([0, 2, 3, 9].map((step) => gateAt(gates, step)), [1, 1, 2, 2]);
});

test("charts have the bounds of the guards that are on", () => {
  const spec = { guards: { kl: "pause", kl_nats: 1.5, truncation: "off", truncation_share: 0.5 } };
  const bounds = boundsOf(spec);
  assert.deepEqual(bounds, { kl: [{ name: "guard pauses at", value: 1.5 }] });
  assert.deepEqual(boundsOf({}), {}, "a run of an earlier release has no guards");
  const charts = sections({ points: [point(1, 0, 1)], evaluations: [] }, bounds).flatMap((section) => section.charts);
  assert.deepEqual(charts.filter((chart) => chart.bounds?.length).map((chart) => chart.title), ["KL to the reference"]);
});

test("an address compares each run once, and no more than there are colours", () => {
  assert.deepEqual(parse("#/compare/a-1,b%2F2,a-1"), { page: "compare", runs: ["a-1", "b/2"] });
  const many = parse(`#/compare/${Array.from({ length: 20 }, (_, index) => index).join()}`);
  assert.equal(many.page === "compare" && many.runs.length, 8);
});
