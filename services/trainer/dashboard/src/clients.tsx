import { counts, number, share, words } from "./format.ts";
import { clientsOf, type Held } from "./history.ts";
import { useRead } from "./hooks.ts";
import { clientColour } from "./series.ts";
import { runPath } from "./api.ts";
import type { Figure, Sample } from "./types.ts";

const LOOKED_AT = 20;

/** Each client in the last step, and how it answered lately. */
export function Clients({ held, run, version }: { held: Held; run: string; version: number }) {
  const samples = useRead<{ samples: Sample[] }>(runPath(run, `/samples?limit=${LOOKED_AT}`), null, version).value?.samples;
  const clients = clientsOf(held);
  const last = held.points.at(-1);
  const domains = Object.keys(last?.domains ?? {});
  if (clients.length === 0) return <p>No client scored anything yet.</p>;
  return (
    <>
      <p class="note">
        Step {last?.step}. State, calibration and latency of a client are kept by the router: <code>mor client list</code>.
      </p>
      <div class="scroll" tabIndex={0} role="region" aria-label="Table of clients">
        <table>
          <thead>
            <tr>
              <th scope="col">Client</th>
              <th scope="col">Weight</th>
              {domains.map((domain) => <th scope="col" key={domain}>on {domain}</th>)}
              <th scope="col" class="number">Reward, logits</th>
              <th scope="col" class="number">Score as served</th>
              <th scope="col">Failed groups, this step</th>
              <th scope="col">Failed groups, run</th>
              <th scope="col">Latest answer</th>
            </tr>
          </thead>
          <tbody>
            {clients.map((name) => {
              const figures = last?.clients?.[name];
              return (
                <tr key={name}>
                  <th scope="row"><i class={`swatch c${clientColour(clients, name)}`} /> {name}</th>
                  <td class="share"><Share value={figures?.weight} /></td>
                  {domains.map((domain) => (
                    <td key={domain} class="share"><Share value={last?.domains?.[domain]?.weights[name]} /></td>
                  ))}
                  <td class="number">{number(figures?.reward_mean)}</td>
                  <td class="number">{number(figures?.raw_mean)}</td>
                  <td>{figures ? counts(figures.failures) : "took no part"}</td>
                  <td>{figures ? counts(figures.failures_total) : "–"}</td>
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

/** How the client did on the newest sample that asked it. */
function latest(samples: Sample[], client: string): string {
  const found = samples.flatMap((sample) => sample.clients).find((score) => score.client === client);
  if (!found) return "–";
  return found.detail ? `${words(found.status)}: ${found.detail}` : words(found.status);
}
