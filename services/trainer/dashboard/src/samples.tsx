/** Newest sample groups: prompt, pictures, and the scores behind each response's advantage. */

import { useEffect, useState } from "preact/hooks";
import { runPath } from "./api.ts";
import { FollowedPrompt } from "./followed_prompt.tsx";
import { number, share, words } from "./format.ts";
import { useRead } from "./hooks.ts";
import { Picture } from "./parts.tsx";
import type { Sample } from "./types.ts";

/** Groups that are loaded at first, and at most: the API serves no more. */
const FEW = 20;
const MOST = 200;

export function Samples({ run, version }: { run: string; version: number }) {
  const [shown, setShown] = useState(version);
  const [limit, setLimit] = useState(FEW);
  const [text, setText] = useState("");
  const [domain, setDomain] = useState("");
  const [chosen, setChosen] = useState<string | null>(null);
  const [followed, setFollowed] = useState<string | null>(null);
  const read = useRead<{ samples: Sample[] }>(runPath(run, `/samples?limit=${limit}`), null, shown);
  const samples = read.value?.samples ?? [];
  const empty = read.value !== null && samples.length === 0;
  useEffect(() => {
    if (empty) setShown(version);
  }, [empty, version]);
  const domains = [...new Set(samples.map((sample) => sample.domain ?? ""))].filter(Boolean).sort();
  const found = samples.filter((sample) => (domain === "" || sample.domain === domain) && mentions(sample, text));
  const current = found.find((sample) => key(sample) === chosen) ?? found[0];
  if (followed !== null) {
    return <FollowedPrompt run={run} prompt={followed} version={version} close={() => setFollowed(null)} />;
  }
  return (
    <>
      <form class="filters" role="search" onSubmit={(event) => event.preventDefault()}>
        <label>Text <input type="search" value={text} onInput={(event) => setText(event.currentTarget.value)} /></label>
        <label>
          Domain{" "}
          <select value={domain} onChange={(event) => setDomain(event.currentTarget.value)}>
            <option value="">all</option>
            {domains.map((name) => <option key={name}>{name}</option>)}
          </select>
        </label>
        <span role="status">
          {read.value === null ? "Reading the samples …" : `${found.length} of the newest ${samples.length} groups`}
        </span>
        {version > shown && <button type="button" onClick={() => setShown(version)}>Show newer</button>}
        {samples.length === limit && limit < MOST && (
          <button type="button" onClick={() => setLimit(Math.min(MOST, limit * 3))}>Show older</button>
        )}
      </form>
      {read.problem && <p class="problem" role="alert">{read.problem.message}</p>}
      {empty && <p>No samples yet; a few groups of each step are kept.</p>}
      {current && (
        <div class="browser">
          <ul aria-label="Sample groups">
            {found.map((sample) => (
              <li key={key(sample)}>
                <button type="button" aria-pressed={sample === current} onClick={() => setChosen(key(sample))}>
                  step {sample.step}{sample.domain && ` · ${sample.domain}`}
                  <span>{sample.prompt.replace(/^user: /, "")}</span>
                </button>
              </li>
            ))}
          </ul>
          <Group key={key(current)} run={run} sample={current} follow={() => setFollowed(current.prompt_id)} />
        </div>
      )}
    </>
  );
}

function key(sample: Sample): string {
  return `${sample.step}/${sample.group_id}`;
}

function mentions(sample: Sample, text: string): boolean {
  const wanted = text.trim().toLowerCase();
  return [sample.prompt, ...sample.responses].some((part) => part.toLowerCase().includes(wanted));
}

function Group({ run, sample, follow }: { run: string; sample: Sample; follow: () => void }) {
  const order = sample.responses.map((_, index) => index);
  if (sample.rewards) order.sort((a, b) => (sample.rewards?.[b] ?? 0) - (sample.rewards?.[a] ?? 0));
  return (
    <article aria-label={`Group of step ${sample.step}`}>
      <div class="prompt">
        {sample.images.map((digest, index) => (
          <Picture key={digest} run={run} digest={digest} label={`Picture ${index + 1} of the prompt`} />
        ))}
        <p>{sample.prompt}</p>
      </div>
      <p class="note">
        Prompt {sample.prompt_id} · sampled by weights version {sample.weights_version} · gate version{" "}
        {sample.gate_version} · fusion {sample.fusion}. Scores are calibrated logits, with the scores as served below.{" "}
        <button type="button" class="link" onClick={follow}>This prompt over the steps</button>
      </p>
      <div class="scroll" tabIndex={0} role="region" aria-label="Responses and scores">
        <table>
          <thead>
            <tr>
              <th scope="col">Response</th>
              {sample.rewards && <th scope="col" class="number">Reward</th>}
              {sample.advantages && <th scope="col" class="number">Advantage</th>}
              {sample.clients.map((score) => (
                <th scope="col" class="number" key={score.client}>
                  {score.client}<small>{score.status === "ok" ? `weight ${share(score.weight)}` : words(score.status)}</small>
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {order.map((index) => (
              <tr key={index}>
                <th scope="row" class="response">{sample.responses[index] || <em>empty</em>}</th>
                {sample.rewards && <td class="number">{number(sample.rewards[index])}</td>}
                {sample.advantages && <Advantage value={sample.advantages[index]} />}
                {sample.clients.map((score) => (
                  <td class="number" key={score.client}>
                    {number(score.calibrated?.[index])}
                    {score.raw && <small>{number(score.raw[index])}</small>}
                  </td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {sample.clients.filter((score) => score.detail).map((score) => (
        <p class="note" key={score.client}>{score.client}: {score.detail}</p>
      ))}
    </article>
  );
}

function Advantage({ value }: { value: number | undefined }) {
  const sign = !value ? "" : value > 0 ? "better" : "worse";
  return <td class={`number ${sign}`}>{value !== undefined && value > 0 && "+"}{number(value)}</td>;
}
