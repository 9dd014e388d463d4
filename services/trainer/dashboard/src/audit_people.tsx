/** People who label audits: their answers, their disagreement with a second person, and the withdrawal of their labels. */

import { useState } from "preact/hooks";
import { ApiError, request } from "./api.ts";
import { share } from "./format.ts";
import { useRead } from "./hooks.ts";
import { Confirmed } from "./parts.tsx";
import type { PersonLabels } from "./types.ts";

/** A read takes all labelled audits of the router. */
const EVERY_S = 60;

export function AuditPeople() {
  const { value: people, problem, again } = useRead<PersonLabels[]>("v1/audits/people", EVERY_S);
  const [failure, setFailure] = useState<string | null>(null);
  const withdraw = async (person: string) => {
    try {
      await request(`v1/audits/labels?${new URLSearchParams({ by: person })}`, { method: "DELETE" });
      setFailure(null);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setFailure(error.message);
    }
    again();
  };
  const reason = failure ?? problem?.message;
  if (!reason && !people?.length) return null;
  return (
    <section aria-label="People who label">
      <h2>People</h2>
      <p>
        Another person labels a random share of the groups that a person labelled. Someone who often answers
        differently from the others is careless, or lies.
      </p>
      {reason && <p class="problem" role="alert">{reason}</p>}
      {people !== null && people.length > 0 && (
        <div class="scroll" tabIndex={0} role="region" aria-label="Table of people">
          <table>
            <thead>
              <tr>
                <th scope="col">Person</th>
                <th scope="col" class="number">Labels</th>
                <th scope="col" class="number">Neither better</th>
                <th scope="col" class="number">Skipped</th>
                <th scope="col" class="number">Compared</th>
                <th scope="col" class="number">Answered differently</th>
                <th scope="col">Withdrawal</th>
              </tr>
            </thead>
            <tbody>
              {people.map((line) => (
                <tr key={line.person}>
                  <th scope="row">{line.person}</th>
                  <td class="number">{line.labels}</td>
                  <td class="number">{line.undecided}</td>
                  <td class="number">{line.skipped}</td>
                  <td class="number">{line.compared}</td>
                  <td class="number">
                    {line.compared > 0 ? `${line.disagreed} (${share(line.disagreed / line.compared)})` : "–"}
                  </td>
                  <td>
                    <Confirmed
                      label={`Withdraw ${line.person}`}
                      question={`Withdraw all ${line.labels} labels of ${line.person}? Remove the person's token first.`}
                      act={() => void withdraw(line.person)}
                    />
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </section>
  );
}
