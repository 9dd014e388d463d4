import { counts, number, share, words } from "./format.ts";
import { clientsOf, type RunHistory } from "./history.ts";
import { useRead } from "./hooks.ts";
import { clientColour } from "./series.ts";
import { runPath } from "./api.ts";
import type { ClientAudits, ClientStatus, Figure, Sample } from "./types.ts";

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
  if (clients.length === 0) return <p>No client scored anything yet.</p>;
  return (
    <>
      <p class="note">
        {last ? `Step ${last.step}. ` : ""}
        {router.problem
          ? `State, circuit and calibration are not available: ${router.problem.message}.`
          : "State, circuit and calibration are the router's; calibration is the client's claim, on its own pairs."}
      </p>
      <div class="scroll" tabIndex={0} role="region" aria-label="Table of clients">
        <table>
          <thead>
            <tr>
              <th scope="col">Client</th>
              <th scope="col">State</th>
              <th scope="col">Circuit</th>
              <th scope="col">Weight</th>
              {domains.map((domain) => <th scope="col" key={domain}>on {domain}</th>)}
              <th scope="col" class="number">Reward, logits</th>
              <th scope="col" class="number">Score as served</th>
              <th scope="col" class="number">Answers in</th>
              <th scope="col">Calibration</th>
              <th scope="col">Right in audited groups</th>
              <th scope="col">Failed groups: step, run</th>
              <th scope="col">Latest answer</th>
            </tr>
          </thead>
          <tbody>
            {clients.map((name) => {
              const figures = last?.clients?.[name];
              return (
                <tr key={name}>
                  <th scope="row">
                    {taking.includes(name) && <i class={`swatch c${clientColour(taking, name)}`} />} {name}
                  </th>
                  <td>{state(known.get(name))}</td>
                  <td>{circuit(known.get(name))}</td>
                  <td class="share"><Share value={figures?.weight} /></td>
                  {domains.map((domain) => (
                    <td key={domain} class="share"><Share value={last?.domains?.[domain]?.weights?.[name]} /></td>
                  ))}
                  <td class="number">{number(figures?.reward_mean)}</td>
                  <td class="number">{number(figures?.raw_mean)}</td>
                  <td class="number">{figures?.seconds == null ? "–" : `${number(figures.seconds, 2)} s`}</td>
                  <td>{calibration(known.get(name))}</td>
                  <td>{audited(audits.find((line) => line.client === name))}</td>
                  <td>{figures ? `${counts(figures.failures)}; ${counts(figures.failures_total)}` : "took no part"}</td>
                  <td>{latest(samples ?? [], name)}</td>
                </tr>
              );
            })}
          </tbody>
        </table>
      </div>
    </>
  );
}

function Share({ value }: { value: Figure }) {
  if (value == null) return <>–</>;
  return <><meter min={0} max={1} value={value} aria-hidden="true" /> {share(value)}</>;
}

function state(of: ClientStatus | undefined): string {
  if (!of) return "–";
  return of.client.reason ? `${of.client.state}: ${of.client.reason}` : of.client.state;
}

function circuit(of: ClientStatus | undefined): string {
  if (!of) return "–";
  return of.last_error ? `${words(of.circuit)}: ${of.last_error}` : words(of.circuit);
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
