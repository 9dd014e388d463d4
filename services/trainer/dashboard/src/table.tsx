import { csvText, save } from "./csv.ts";
import { clock, number } from "./format.ts";
import { type ChartSpec, gateAt, type Row } from "./series.ts";

/** Rows of a table; the CSV file has all steps. */
const SHOWN = 50;

/** Table of a chart's values at evenly chosen steps, newest first, with all of them as a file. */
export function ChartTable({ spec, rows }: { spec: ChartSpec<Row>; rows: Row[] }) {
  const gates = spec.gates ?? [];
  const stride = Math.max(1, Math.ceil(rows.length / SHOWN));
  const chosen = rows.filter((_, index) => (rows.length - 1 - index) % stride === 0).reverse();
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label={`Values of ${spec.title}`}>
      <table>
        <caption>
          {rows.length} steps{stride > 1 && `, every ${stride}. shown`} ·{" "}
          <button type="button" class="link" onClick={() => saveRows(spec, rows)}>Save all as CSV</button>
        </caption>
        <thead>
          <tr>
            <th scope="col">step</th>
            {spec.lines.map((line) => <th scope="col" class="number" key={line.name}>{line.name}</th>)}
            {gates.length > 0 && <th scope="col" class="number">gate version</th>}
            <th scope="col">time</th>
          </tr>
        </thead>
        <tbody>
          {chosen.map((row) => (
            <tr key={row.step}>
              <th scope="row">{row.step}</th>
              {spec.lines.map((line) => <td class="number" key={line.name}>{number(line.of(row), 4)}</td>)}
              {gates.length > 0 && <td class="number">{gateAt(gates, row.step)}</td>}
              <td>{clock(row.at)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function saveRows(spec: ChartSpec<Row>, rows: Row[]): void {
  const gates = spec.gates ?? [];
  const head = ["step", "at", ...(gates.length ? ["gate_version"] : []), ...spec.lines.map((line) => csvText(line.name))];
  const body = rows.map((row) => [
    row.step,
    row.at === undefined ? "" : new Date(row.at * 1000).toISOString(),
    ...(gates.length ? [gateAt(gates, row.step)] : []),
    ...spec.lines.map((line) => line.of(row) ?? ""),
  ]);
  const text = [head, ...body].map((line) => line.join(",")).join("\n");
  save(new Blob([text], { type: "text/csv" }), `${spec.id}.csv`);
}
