/** Unlabelled pairs whose labels would tell the next fit of an objective most, and their way to the queue. */

import { useState } from "preact/hooks";
import { ApiError, auditPath, post } from "./api.ts";
import { number, share } from "./format.ts";
import { useRead } from "./hooks.ts";
import type { Caller, LabelProposal } from "./types.ts";

/** Pairs that one proposal moves. */
const COUNT = 8;

/** List of the pairs worth labelling next. ``version`` changes with each label; ``proposed`` is called for new ones in
 * the queue. */
export function Proposals({ objective, caller, version, proposed }: {
  objective: string;
  caller: Caller;
  version: unknown;
  proposed: () => void;
}) {
  const path = `${auditPath(objective, "proposals")}?count=${COUNT}`;
  const { value: found, problem, again } = useRead<LabelProposal>(path, null, version);
  const [failure, setFailure] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  const propose = async () => {
    setBusy(true);
    try {
      await post<LabelProposal>(auditPath(objective, "proposals"), { count: COUNT });
      setFailure(null);
      proposed();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setFailure(error.message);
    } finally {
      setBusy(false);
      again();
    }
  };
  const unfitted = failure === null && problem?.status === 409;
  const reason = failure ?? problem?.message;
  return (
    <section aria-label="Worth labelling next">
      <h2>Worth labelling next</h2>
      <p>
        Labels of these pairs tell the next fit of {objective} most. They join the queue when they are proposed, and
        count for no client.
      </p>
      {reason && (unfitted ? <p class="note" role="status">{reason}</p> : <p class="problem" role="alert">{reason}</p>)}
      {found === null && !reason && <p role="status">Ranking the pairs …</p>}
      {found !== null && (
        <p class="note" role="status">
          {found.candidates === 0
            ? "No candidates: the router keeps some groups of runs, and takes unlabelled pairs by mor objective candidates."
            : `${found.candidates} candidates. ${found.waiting} proposed pairs wait for a label.`}
        </p>
      )}
      {found !== null && found.pairs.length > 0 && <PairsTable found={found} />}
      {caller.scope === "admin" && found !== null && found.pairs.length > 0 && (
        <p class="actions">
          <button type="button" disabled={busy} onClick={() => void propose()}>
            Have {found.pairs.length === 1 ? "this pair" : `these ${found.pairs.length} pairs`} labelled
          </button>
        </p>
      )}
    </section>
  );
}

function PairsTable({ found }: { found: LabelProposal }) {
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="Table of pairs worth labelling">
      <table>
        <thead>
          <tr>
            <th scope="col">Question</th>
            <th scope="col">First</th>
            <th scope="col">Second</th>
            <th scope="col">Domain</th>
            <th scope="col" class="number">Tells, nats</th>
            <th scope="col" class="number">Clients split</th>
            <th scope="col" class="number">New input</th>
          </tr>
        </thead>
        <tbody>
          {found.pairs.map((pair, place) => (
            <tr key={place}>
              <th scope="row">{pair.question}</th>
              <td>{pair.first}</td>
              <td>{pair.second}</td>
              <td>{pair.domain ?? "–"}</td>
              <td class="number">{number(pair.information)}</td>
              <td class="number">{share(pair.disagreement)}</td>
              <td class="number">{share(pair.coverage)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
