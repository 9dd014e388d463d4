/** Which charts a run has, and how each is read from its history. */

import { clientsOf, domainsOf, type Held } from "./history.ts";
import type { Evaluation, Figure, Metrics } from "./types.ts";

export interface Line<Row> {
  name: string;
  of: (row: Row) => Figure;
  /** Which of the colours --c0 to --c8 of the style. */
  colour: number;
}

export interface ChartSpec<Row> {
  id: string;
  title: string;
  unit: string;
  /** What a person should know to read it. */
  note: string;
  rows: Row[];
  lines: Line<Row>[];
  stacked?: boolean;
}

export interface Section {
  title: string;
  charts: ChartSpec<Row>[];
}

export type Row = (Metrics | Evaluation) & { step: number; at?: number };

const SHARES = ["waiting", "processing", "forward_backward", "optimiser", "publication", "checkpoint", "unaccounted"];
/** Clients' colours begin after that of the fused reward. */
const FIRST_CLIENT = 1;
const CLIENT_COLOURS = 8;

const metric = (name: string) => (row: Row) => (row as Metrics)[name] as Figure;
const metrics = (...named: [string, string][]) =>
  named.map(([name, title], colour): Line<Row> => ({ name: title, of: metric(name), colour }));

export function clientColour(clients: string[], client: string): number {
  return FIRST_CLIENT + (Math.max(0, clients.indexOf(client)) % CLIENT_COLOURS);
}

/** Sections of charts, without charts and lines that have no value at all. */
export function sections(held: Held): Section[] {
  const clients = clientsOf(held);
  const points: Row[] = held.points;
  const each = (of: (row: Row, client: string) => Figure) =>
    clients.map((name): Line<Row> => ({ name, of: (row) => of(row, name), colour: clientColour(clients, name) }));
  const chart = (id: string, title: string, unit: string, note: string, lines: Line<Row>[], more = {}) =>
    ({ id, title, unit, note, rows: points, lines, ...more }) satisfies ChartSpec<Row>;
  const share = (domain: string) =>
    each((row, client) => (row as Metrics).domains?.[domain]?.weights[client]);
  const found: Section[] = [
    {
      title: "Reward",
      charts: [
        chart("reward", "Reward", "logits", "Mean over the responses of a step: fused, and each client's calibrated scores.", [
          { name: "fused", of: metric("reward_mean"), colour: 0 },
          ...each((row, client) => (row as Metrics).clients?.[client]?.reward_mean),
        ]),
        chart(
          "evaluation", "Evaluation reward", "logits", "Greedy answers to prompts that are never trained on.",
          [
            { name: "fused", of: (row) => (row as Evaluation).reward, colour: 0 },
            ...each((row, client) => (row as Evaluation).clients?.[client]),
          ],
          { rows: held.evaluations },
        ),
        chart("spread", "Reward spread", "logits", "Standard deviation over a step, and within a group: what the advantage is made of.",
          metrics(["reward_std", "step"], ["group_reward_std", "group"])),
      ],
    },
    {
      title: "Mixture of clients",
      charts: [
        chart("weights", "Mixture weight", "share", "Mean share of each client in the fused reward.",
          each((row, client) => (row as Metrics).clients?.[client]?.weight), { stacked: true }),
        ...domainsOf(held).map((domain) =>
          chart(`weights-${domain}`, `Mixture weight: ${domain}`, "share", `Mean share on prompts of domain ${domain}.`,
            share(domain), { stacked: true })),
        chart("mixture-entropy", "Mixture entropy", "nats", "0: one client has all the weight of a group.",
          metrics(["mixture_entropy", "entropy"])),
      ],
    },
    {
      title: "Policy",
      charts: [
        chart("kl", "KL to the reference", "nats a token", "How far the policy has moved.", metrics(["kl", "KL"])),
        chart("entropy", "Entropy", "nats a token", "Falling fast towards 0: the policy stops exploring.",
          metrics(["entropy", "entropy"])),
        chart("clip", "Clip fractions", "share", "Share of tokens whose importance ratio was clipped, or limited by the correction.",
          metrics(["clip_low_ratio", "low"], ["clip_high_ratio", "high"], ["importance_limited_ratio", "limited"])),
        chart("gradient", "Gradient norm", "L2", "Before clipping.", metrics(["grad_norm", "norm"])),
        chart("flat", "Groups without signal", "share", "Share of groups whose responses all got the same reward.",
          metrics(["zero_variance_ratio", "groups"])),
      ],
    },
    {
      title: "Rollouts",
      charts: [
        chart("length", "Response length", "tokens", "Mean of a step.", metrics(["response_length_mean", "mean"])),
        chart("truncation", "Truncated responses", "share", "Cut at max_tokens.", metrics(["truncation_ratio", "truncated"])),
        chart("staleness", "Staleness", "updates", "Updates between sampling a group and training on it.",
          metrics(["staleness_mean", "mean"], ["staleness_max", "max"])),
      ],
    },
    {
      title: "Speed",
      charts: [
        chart("seconds", "Step time", "seconds", "Where a step's time went.",
          SHARES.map((name, index) => ({
            name: name.replace("_", " "), of: (row: Row) => (row as Metrics).seconds?.[name], colour: index + 1,
          })), { stacked: true }),
        chart("throughput", "Tokens per second", "tokens/s", "Response tokens trained on.",
          metrics(["tokens_per_second", "tokens/s"])),
      ],
    },
  ];
  return found
    .map((section) => ({ ...section, charts: section.charts.map(known).filter((chart) => chart.lines.length > 0) }))
    .filter((section) => section.charts.length > 0);
}

/** The chart without the lines that have no value at all. */
function known(chart: ChartSpec<Row>): ChartSpec<Row> {
  return { ...chart, lines: chart.lines.filter((line) => chart.rows.some((row) => line.of(row) != null)) };
}

/** Exponential moving average that begins without a bias; unknown values stay unknown. */
export function smooth(values: Figure[], factor: number): (number | null)[] {
  let sum = 0;
  let mass = 0;
  return values.map((value) => {
    if (value == null) return null;
    sum = factor * sum + (1 - factor) * value;
    mass = factor * mass + (1 - factor);
    return sum / mass;
  });
}

/** Columns summed up from the first; what is unknown counts nothing where another line of the row is known. */
export function stack(columns: Figure[][]): (number | null)[][] {
  const known = (columns[0] ?? []).map((_, row) => columns.some((column) => column[row] != null));
  const total = known.map(() => 0);
  return columns.map((column) =>
    column.map((value, row) => {
      if (!known[row]) return null;
      total[row] = (total[row] ?? 0) + (value ?? 0);
      return total[row] ?? null;
    }),
  );
}
