import { counts, number, share, words } from "./format.ts";
import { clientsOf, type RunHistory } from "./history.ts";
import { useRead } from "./hooks.ts";
import { clientColour } from "./series.ts";
import { runPath } from "./api.ts";
import { type Column, SortedTable } from "./sorted_table.tsx";
import type { ClientFigures } from "./step_metrics.ts";
import type { Asks, ClientAudits, ClientStatus, Figure, Sample } from "./types.ts";

/** Samples in which a client's latest answer is looked for. */
const LOOKED_AT = 20;
/** The router's view of clients changes within minutes. */
const EVERY_S = 15;

/** Table of clients: figures of the last step, latest answer, and state at the router. */
export function Clients({ runHistory, run, version }: { runHistory: RunHistory; run: string; version: number }) {
  const samples = useRead<{ samples: Sample[] }>(runPath(run, `/samples?limit=${LOOKED_AT}`), null, version).value?.samples;
  const router = useRead<ClientStatus[]>("v1/clients", EVERY_S);
  const audits = useRead<ClientAudits[]>("v1/audits/clients", EVERY_S).value ?? [];
  const known = new Map((router.value ?? []).map((status) => [status.client.name, status]));
  const taking = clientsOf(runHistory);
  const clients = [...taking, ...[...known.keys()].filter((name) => !taking.includes(name))];
  const last = runHistory.points.at(-1);
  const domains = Object.keys(last?.domains ?? {});
  const figures = (name: string) => last?.clients?.[name];
  const on = (domain: string, name: string) => last?.domains?.[domain]?.weights?.[name];
  const columns: Column<string>[] = [
    {
      name: "Client", heading: true, by: (name) => name,
      cell: (name) => <>{taking.includes(name) && <i class={`swatch c${clientColour(taking, name)}`} />} {name}</>,
    },
    { name: "State", by: (name) => state(known.get(name)), cell: (name) => state(known.get(name)) },
    { name: "Circuit", by: (name) => circuit(known.get(name)), cell: (name) => circuit(known.get(name)) },
    { name: "Is sent", cell: (name) => sent(known.get(name)) },
    { name: "Weight", class: "share", by: (name) => figures(name)?.weight, cell: (name) => <Share value={figures(name)?.weight} /> },
    ...domains.map((domain): Column<string> => ({
      name: `on ${domain}`, class: "share", by: (name) => on(domain, name), cell: (name) => <Share value={on(domain, name)} />,
    })),
    { name: "Reward, logits", number: true, by: (name) => figures(name)?.reward_mean, cell: (name) => number(figures(name)?.reward_mean) },
    { name: "Score as served", number: true, by: (name) => figures(name)?.raw_mean, cell: (name) => number(figures(name)?.raw_mean) },
    { name: "Answers in", number: true, by: (name) => figures(name)?.seconds, cell: (name) => seconds(figures(name)?.seconds) },
    {
      name: "Calibration", by: (name) => known.get(name)?.client.card?.calibration?.pair_accuracy,
      cell: (name) => calibration(known.get(name)),
    },
    { name: "Right in audited groups", cell: (name) => audited(audits.find((line) => line.client === name)) },
    {
      name: "Failed groups: step, run", by: (name) => total(figures(name)?.failures_total),
      cell: (name) => failed(figures(name)),
    },
    { name: "Latest answer", by: (name) => latest(samples ?? [], name), cell: (name) => latest(samples ?? [], name) },
  ];
  if (clients.length === 0) return <p>No client scored anything yet.</p>;
  return (
    <>
      <p class="note">
        {last ? `Step ${last.step}${last.gate_version == null ? "" : `, gate version ${last.gate_version}`}. ` : ""}
        {router.problem
          ? `State, circuit, rules and calibration are not available: ${router.problem.message}.`
          : "State, circuit, rules and calibration are the router's; calibration is the client's claim, on its own pairs."}
      </p>
      <SortedTable label="Table of clients" rows={clients} keyOf={(name) => name} columns={columns} />
    </>
  );
}

function Share({ value }: { value: Figure }) {
  if (value == null) return <>–</>;
  return <><meter min={0} max={1} value={value} aria-hidden="true" /> {share(value)}</>;
}

function seconds(value: Figure): string {
  return value == null ? "–" : `${number(value, 2)} s`;
}

function failed(figures: ClientFigures | undefined): string {
  return figures ? `${counts(figures.failures)}; ${counts(figures.failures_total)}` : "took no part";
}

function total(failures: Record<string, number> | undefined): number {
  return Object.values(failures ?? {}).reduce((sum, count) => sum + count, 0);
}

function state(of: ClientStatus | undefined): string {
  if (!of) return "–";
  return of.client.reason ? `${of.client.state}: ${of.client.reason}` : of.client.state;
}

function circuit(of: ClientStatus | undefined): string {
  if (!of) return "–";
  return of.last_error ? `${words(of.circuit)}: ${of.last_error}` : words(of.circuit);
}

/** Describe which prompts a client is sent: the operator's rule, and the wish on its card. */
function sent(of: ClientStatus | undefined): string {
  if (!of) return "–";
  const wish = of.client.card?.asks;
  return wish ? `${rule(of.client.asks)}; wish: ${rule(wish)}` : rule(of.client.asks);
}

function rule(asks: Asks | undefined): string {
  const prompts = asks?.public_only ? "public prompts" : "prompts";
  if (!asks?.domains) return asks?.public_only ? prompts : "all prompts";
  return `${prompts} of ${asks.domains.join(", ") || "no domain"}`;
}

function calibration(of: ClientStatus | undefined): string {
  const claim = of?.client.card?.calibration;
  return claim ? `${share(claim.pair_accuracy)} of ${claim.pairs} pairs, error ${share(claim.ece)}` : "–";
}

function audited(of: ClientAudits | undefined): string {
  const lines = (of?.objectives ?? []).map(({ objective, audits, agreement, agreement_interval: range }) =>
    `${objective}: ${share(agreement)} of ${audits}${range ? ` (${share(range[0])} to ${share(range[1])})` : ""}`);
  return lines.join("; ") || "–";
}

/** Return the client's status in the newest sample that was sent to it. */
function latest(samples: Sample[], client: string): string {
  const found = samples.flatMap((sample) => sample.clients).find((score) => score.client === client);
  if (!found) return "–";
  return found.detail ? `${words(found.status)}: ${found.detail}` : words(found.status);
}
