/** Audited groups: state by objective, and the question that a person labels, by keys or buttons. */

import { useCallback, useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { ApiError, auditPath, get, request } from "./api.ts";
import { AuditPeople } from "./audit_people.tsx";
import { clock, share } from "./format.ts";
import { useRead } from "./hooks.ts";
import { Proposals } from "./proposals.tsx";
import { auditAddress } from "./route.ts";
import type { AuditCounts, AuditQuestion, Caller, Turn } from "./types.ts";

/** New audits come within minutes. */
const EVERY_S = 15;
const CHOICES = [
  { preferred: "first", key: "1", label: "First is better" },
  { preferred: "second", key: "2", label: "Second is better" },
  { preferred: "tie", key: "0", label: "Neither is better" },
  { preferred: "skip", key: "s", label: "Cannot say" },
] as const;
type Preferred = (typeof CHOICES)[number]["preferred"];

/** Page of all objectives' audits, with the question of one of them. */
export function AuditsPage({ objective, caller }: { objective: string | null; caller: Caller }) {
  const [given, setGiven] = useState(0);
  const [proposed, setProposed] = useState(0);
  const { value: audits, problem } = useRead<AuditCounts[]>("v1/audits", EVERY_S, `${given} ${proposed}`);
  const labels = caller.scope === "admin" || caller.scope === "labeller";
  useEffect(() => {
    document.title = "Audits · MoR";
  }, []);
  return (
    <>
      <h1 tabIndex={-1}>Audits</h1>
      <p>
        The router chooses live groups at random after the clients have scored them. Your labels show whether a client
        scores live groups as well as it claims. They change no reward that was given.
      </p>
      {problem && <p class="problem" role="alert">{problem.message}</p>}
      {audits === null && !problem && <p role="status">Reading the audits …</p>}
      {audits?.length === 0 && <p>No objectives yet, so nothing is audited.</p>}
      {labels && objective !== null && audits?.find((line) => line.objective === objective)?.labelled_by !== "labeller" && (
        <Labelling key={`${objective} ${proposed}`} objective={objective} given={given} gave={() => setGiven(given + 1)} />
      )}
      {audits !== null && audits.length > 0 && <AuditsTable audits={audits} labels={labels} chosen={objective} />}
      {labels && objective !== null && (
        <Proposals
          key={objective}
          objective={objective}
          caller={caller}
          version={given}
          proposed={() => setProposed(proposed + 1)}
        />
      )}
      {caller.scope === "admin" && <AuditPeople />}
    </>
  );
}

function AuditsTable({ audits, labels, chosen }: { audits: AuditCounts[]; labels: boolean; chosen: string | null }) {
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="Table of audits">
      <table>
        <thead>
          <tr>
            <th scope="col">Objective</th>
            <th scope="col" class="number">Share of groups</th>
            <th scope="col">Labelled by</th>
            <th scope="col" class="number">Waiting</th>
            <th scope="col">Oldest</th>
            <th scope="col" class="number">Labelled</th>
            {labels && <th scope="col">Label</th>}
          </tr>
        </thead>
        <tbody>
          {audits.map((line) => (
            <tr key={line.objective}>
              <th scope="row">{line.objective}</th>
              <td class="number">{share(line.share)}</td>
              <td>{line.labelled_by}</td>
              <td class="number">{line.waiting}</td>
              <td>{clock(line.oldest)}</td>
              <td class="number">{line.labelled}</td>
              {labels && (
                <td>
                  {line.objective !== chosen && (
                    <a
                      href={auditAddress(line.objective)}
                      aria-label={`${line.labelled_by === "people" ? "Label groups" : "Proposals"} of ${line.objective}`}
                    >
                      {line.labelled_by === "people" ? "Label" : "Proposals"}
                    </a>
                  )}
                </td>
              )}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Labelling({ objective, given, gave }: { objective: string; given: number; gave: () => void }) {
  const [question, setQuestion] = useState<AuditQuestion | null | undefined>(undefined);
  const [problem, setProblem] = useState<string | null>(null);
  const busy = useRef(false);
  const next = useCallback(async () => {
    try {
      setQuestion(await get<AuditQuestion | null>(auditPath(objective, "next")));
      setProblem(null);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setProblem(error.message);
    }
  }, [objective]);
  useEffect(() => void next(), [next]);
  const choose = useCallback(
    async (preferred: Preferred) => {
      if (!question || busy.current) return;
      busy.current = true; // until the next question is here: a second key must not label this one again
      try {
        const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ preferred }) };
        await request(auditPath(objective, question.audit), options);
        gave();
        await next();
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        setProblem(error.message);
        if (error.status === 404 || error.status === 409) await next();
      } finally {
        busy.current = false;
      }
    },
    [objective, question, next, gave],
  );
  // A layout effect: no key may fall between a question on the screen and the function that labels it.
  useLayoutEffect(() => {
    const pressed = (event: KeyboardEvent) => {
      if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.target instanceof HTMLElement && event.target.matches("input, select, textarea")) return;
      const choice = CHOICES.find((known) => known.key === event.key.toLowerCase());
      if (choice) void choose(choice.preferred);
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, [choose]);
  return (
    <section class="audit" aria-label={`Audit of ${objective}`}>
      {problem && (
        <p class="problem" role="alert">
          {problem} <button type="button" onClick={() => void next()}>Next group</button>
        </p>
      )}
      <p class="note" role="status">
        {question === undefined && problem === null && "Reading the next group …"}
        {question === null && `No group of ${objective} waits for a label. You labelled ${given} on this page.`}
        {question && `${question.waiting} waiting, ${question.labelled} labelled so far. You labelled ${given} on this page.`}
      </p>
      {question && <Question key={question.audit} question={question} choose={(preferred) => void choose(preferred)} />}
    </section>
  );
}

function Question({ question, choose }: { question: AuditQuestion; choose: (preferred: Preferred) => void }) {
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => heading.current?.focus(), []);
  return (
    <article aria-label="Group to label">
      <h2 ref={heading} tabIndex={-1}>Which response is better? {question.goal}</h2>
      <div class="prompt">
        {question.messages.map((turn, place) => <Message key={place} turn={turn} images={question.images} />)}
      </div>
      <div class="pair">
        {(["first", "second"] as const).map((place) => (
          <section key={place} aria-label={`The ${place} response`}>
            <h3>{place === "first" ? "First" : "Second"}</h3>
            <p class="response">{question[place] || <em>empty</em>}</p>
          </section>
        ))}
      </div>
      <p class="actions">
        {CHOICES.map(({ preferred, key, label }) => (
          <button type="button" key={preferred} aria-keyshortcuts={key} onClick={() => choose(preferred)}>
            {label} <kbd>{key}</kbd>
          </button>
        ))}
      </p>
    </article>
  );
}

function Message({ turn, images }: { turn: Turn; images: Record<string, string> }) {
  const parts = typeof turn.content === "string" ? [{ type: "text" as const, text: turn.content }] : turn.content;
  return (
    <>
      {parts.map((part, place) => {
        if (part.type === "text") return <p key={place}>{turn.role === "user" ? "" : `${turn.role}: `}{part.text}</p>;
        const content = images[part.image_url.url.replace("sha256:", "")];
        if (content === undefined) return <p key={place} class="note">The picture is no longer kept.</p>;
        return <img key={place} src={`data:image/png;base64,${content}`} alt={`Picture ${place + 1} of the question`} />;
      })}
    </>
  );
}
