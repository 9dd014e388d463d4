/** Fields in which specifications of runs differ. Pure functions. */

import type { Spec } from "./types.ts";

export interface Difference {
  /** Name of the field; nested ones with dots, as in ``mor run create --set``. */
  field: string;
  /** Value of each specification as JSON; undefined where it has no such field. */
  values: (string | undefined)[];
}

export function differences(specs: Spec[]): Difference[] {
  const flat = specs.map((spec) => new Map(fields(spec, "")));
  const names = new Set(flat.flatMap((values) => [...values.keys()]));
  return [...names]
    .map((field) => ({ field, values: flat.map((values) => values.get(field)) }))
    .filter(({ values }) => new Set(values).size > 1);
}

function fields(value: object, prefix: string): [string, string][] {
  return Object.entries(value).flatMap(([name, part]): [string, string][] => {
    const nested = typeof part === "object" && part !== null && !Array.isArray(part);
    return nested ? fields(part as object, `${prefix}${name}.`) : [[`${prefix}${name}`, JSON.stringify(part)]];
  });
}
