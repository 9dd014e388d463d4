/** Bounds of a run's guards, as lines of its charts. */

import type { Bound } from "./series.ts";
import type { Spec } from "./types.ts";

/** Bounds by the metric that a guard judges. */
export type Bounds = Record<string, Bound[]>;

/** Guard, field of its bound in the specification, and the metrics that it judges by a fixed bound. */
const GUARDS: { guard: string; bound: string; metrics: string[] }[] = [
  { guard: "kl", bound: "kl_nats", metrics: ["kl"] },
  { guard: "entropy", bound: "entropy_nats", metrics: ["entropy"] },
  { guard: "identical", bound: "identical_share", metrics: ["identical_ratio", "single_token_ratio"] },
  { guard: "zero_variance", bound: "zero_variance_share", metrics: ["zero_variance_ratio"] },
  { guard: "truncation", bound: "truncation_share", metrics: ["truncation_ratio"] },
];

/** Return the bounds of a run; none of a guard that is off, or that the run's release does not have. */
export function boundsOf(spec: Spec | null): Bounds {
  const given = (spec?.guards ?? {}) as Record<string, unknown>;
  const bounds: Bounds = {};
  for (const { guard, bound, metrics } of GUARDS) {
    const [action, value] = [given[guard], given[bound]];
    if (typeof value !== "number" || (action !== "pause" && action !== "alert")) continue;
    for (const metric of metrics) bounds[metric] = [{ name: `guard ${action}s at`, value }];
  }
  return bounds;
}
