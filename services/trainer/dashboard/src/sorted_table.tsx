/** Table whose columns sort its rows. */

import { type ComponentChildren } from "preact";
import { useState } from "preact/hooks";

export interface Column<T> {
  name: string;
  cell: (row: T) => ComponentChildren;
  /** Value to sort by; unknown ones come last. A column without it does not sort. */
  by?: (row: T) => string | number | null | undefined;
  /** Whether the column is right-aligned, and sorts from the highest value at first. */
  number?: boolean;
  /** Whether the column names the row. */
  heading?: boolean;
  class?: string;
}

interface Props<T> {
  label: string;
  columns: Column<T>[];
  rows: T[];
  keyOf: (row: T) => string | number;
}

interface Order {
  column: string;
  descending: boolean;
}

export function SortedTable<T>({ label, columns, rows, keyOf }: Props<T>) {
  const [order, setOrder] = useState<Order | null>(null);
  const by = columns.find((column) => column.name === order?.column)?.by;
  const shown = order && by ? sorted(rows, by, order.descending) : rows;
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label={label}>
      <table>
        <thead>
          <tr>
            {columns.map((column) => (
              <Head key={column.name} column={column} order={order?.column === column.name ? order : null}
                press={() => setOrder(next(column, order))} />
            ))}
          </tr>
        </thead>
        <tbody>
          {shown.map((row) => (
            <tr key={keyOf(row)}>
              {columns.map((column) => {
                const look = [column.number && "number", column.class].filter(Boolean).join(" ") || undefined;
                return column.heading
                  ? <th scope="row" key={column.name} class={look}>{column.cell(row)}</th>
                  : <td key={column.name} class={look}>{column.cell(row)}</td>;
              })}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Head<T>({ column, order, press }: { column: Column<T>; order: Order | null; press: () => void }) {
  const look = column.number ? "number" : undefined;
  if (!column.by) return <th scope="col" class={look}>{column.name}</th>;
  return (
    <th scope="col" class={look} aria-sort={order === null ? undefined : order.descending ? "descending" : "ascending"}>
      <button type="button" class="sort" onClick={press}>{column.name}</button>
    </th>
  );
}

/** Return the order after a press of a column's head: its first direction, the other one, and none. */
function next<T>(column: Column<T>, order: Order | null): Order | null {
  const first = column.number ?? false;
  if (order?.column !== column.name) return { column: column.name, descending: first };
  return order.descending === first ? { column: column.name, descending: !first } : null;
}

/** Return the rows in the order of a value; rows of equal value keep theirs, and unknown ones come last. */
export function sorted<T>(rows: T[], by: NonNullable<Column<T>["by"]>, descending: boolean): T[] {
  return rows.toSorted((one, other) => {
    const [a, b] = [by(one) ?? null, by(other) ?? null];
    if (a === null || b === null) return Number(a === null) - Number(b === null);
    const difference = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
    return descending ? -difference : difference;
  });
}
