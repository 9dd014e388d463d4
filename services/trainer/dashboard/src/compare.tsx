/** Page that compares runs: their charts on top of each other, and what their specifications do not share. */

import { useEffect, useMemo, useState } from "preact/hooks";
import { get, runPath } from "./api.ts";
import { ChartSections } from "./charts.tsx";
import { type Compared, comparedSections, gateRange } from "./comparison.ts";
import { number } from "./format.ts";
import { loaded } from "./history.ts";
import { useLoad } from "./hooks.ts";
import { isOver, Lost, State } from "./parts.tsx";
import { runAddress } from "./route.ts";
import { type Column, SortedTable } from "./sorted_table.tsx";
import { differences, type Difference } from "./spec_difference.ts";
import type { History, Snapshot, Spec } from "./types.ts";

/** Pause between two readings of runs that may go on. */
const EVERY_S = 10;
/** Points of each run. */
const POINTS = 400;

export function ComparePage({ runs }: { runs: string[] }) {
  const [over, setOver] = useState(false);
  const { value: found, problem, again } = useLoad(runs.join(), () => Promise.all(runs.map(read)), over ? null : EVERY_S);
  const refused = problem !== null && problem.status >= 400 && problem.status < 500;
  const sections = useMemo(() => comparedSections(found ?? []), [found]);
  useEffect(() => {
    setOver(found !== null && found.every((run) => isOver(run.snapshot.state)));
  }, [found]);
  useEffect(() => {
    document.title = "Comparison · MoR";
  }, []);
  return (
    <>
      <h1 tabIndex={-1}>Comparison of {runs.length} runs</h1>
      {refused && <p class="problem" role="alert">{problem.message}</p>}
      {problem && !refused && <Lost problem={problem} retryAt={null} retry={again} />}
      {found === null && !problem && <p role="status">Reading the runs …</p>}
      {found !== null && (
        <>
          <SortedTable label="Table of the compared runs" rows={found} keyOf={({ snapshot }) => snapshot.id} columns={COLUMNS} />
          <ChartSections sections={sections} axes={["step", "elapsed"]} />
          <h2>Differences of the specifications</h2>
          <Specifications found={found} />
        </>
      )}
    </>
  );
}

async function read(run: string): Promise<Compared> {
  const [snapshot, spec, history] = await Promise.all([
    get<Snapshot>(runPath(run)),
    get<Spec>(runPath(run, "/spec")),
    get<History>(runPath(run, `/metrics?max_points=${POINTS}`)),
  ]);
  return { snapshot, spec, runHistory: loaded(history) };
}

const COLUMNS: Column<Compared>[] = [
  { name: "Run", heading: true, by: (run) => run.snapshot.id, cell: ({ snapshot: { id } }) => <a href={runAddress(id)}>{id}</a> },
  { name: "State", by: (run) => run.snapshot.state, cell: (run) => <State state={run.snapshot.state} /> },
  { name: "Step", number: true, by: (run) => run.snapshot.step, cell: ({ snapshot: { step, total } }) => `${step ?? "–"} / ${total}` },
  {
    name: "Reward", number: true, by: (run) => run.snapshot.metrics?.reward_mean,
    cell: (run) => number(run.snapshot.metrics?.reward_mean),
  },
  {
    name: "Evaluation", number: true, by: (run) => run.runHistory.evaluations.at(-1)?.reward,
    cell: (run) => number(run.runHistory.evaluations.at(-1)?.reward),
  },
  { name: "Gate versions", cell: (run) => gateRange(run) ?? "–" },
  { name: "KL", number: true, by: (run) => run.snapshot.metrics?.kl, cell: (run) => number(run.snapshot.metrics?.kl) },
];

function Specifications({ found }: { found: Compared[] }) {
  const rows = differences(found.map((run) => run.spec));
  const columns: Column<Difference>[] = [
    { name: "Field", heading: true, by: (row) => row.field, cell: (row) => <code>{row.field}</code> },
    ...found.map((run, index): Column<Difference> => ({
      name: run.snapshot.id, by: (row) => row.values[index], cell: (row) => <code>{row.values[index] ?? "–"}</code>,
    })),
  ];
  if (rows.length === 0) return <p>The specifications are equal.</p>;
  return <SortedTable label="Differences of the specifications" rows={rows} keyOf={(row) => row.field} columns={columns} />;
}
