/** Samples of one prompt over the steps: how the policy's answers to it change. */

import { runPath } from "./api.ts";
import { number } from "./format.ts";
import { useRead } from "./hooks.ts";
import { Picture } from "./parts.tsx";
import { type Column, SortedTable } from "./sorted_table.tsx";
import type { Sample } from "./types.ts";

/** Groups that are loaded: the API serves no more. */
const MOST = 200;

export function FollowedPrompt({ run, prompt, version, close }: { run: string; prompt: string; version: number; close: () => void }) {
  const path = runPath(run, `/samples?limit=${MOST}&prompt=${encodeURIComponent(prompt)}`);
  const read = useRead<{ samples: Sample[] }>(path, null, version);
  const samples = read.value?.samples ?? [];
  const newest = samples[0];
  return (
    <article aria-label={`Prompt ${prompt} over the steps`}>
      <p class="actions"><button type="button" onClick={close}>All samples</button></p>
      {read.problem && <p class="problem" role="alert">{read.problem.message}</p>}
      {read.value === null && !read.problem && <p role="status">Reading the samples …</p>}
      {read.value !== null && !newest && <p>No sample of this prompt is kept any more.</p>}
      {newest && (
        <>
          <div class="prompt">
            {newest.images.map((digest, index) => (
              <Picture key={digest} run={run} digest={digest} label={`Picture ${index + 1} of the prompt`} />
            ))}
            <p>{newest.prompt}</p>
          </div>
          <p class="note">
            Prompt {prompt}, {samples.length} kept group{samples.length > 1 && "s"}. Rewards of different gate versions are not comparable.
          </p>
          <SortedTable label={`Samples of prompt ${prompt}`} rows={samples} columns={COLUMNS} keyOf={(sample) => `${sample.step}/${sample.group_id}`} />
        </>
      )}
    </article>
  );
}

const COLUMNS: Column<Sample>[] = [
  { name: "Step", heading: true, by: (sample) => sample.step, cell: (sample) => sample.step },
  { name: "Gate", number: true, by: (sample) => sample.gate_version, cell: (sample) => sample.gate_version },
  { name: "Mean reward", number: true, by: (sample) => mean(figures(sample)), cell: (sample) => number(mean(figures(sample))) },
  { name: "Best response", class: "response", by: (sample) => figures(sample).at(ranked(sample)[0] ?? 0), cell: (sample) => <Response sample={sample} place={0} /> },
  { name: "Worst response", class: "response", by: (sample) => figures(sample).at(ranked(sample).at(-1) ?? 0), cell: (sample) => <Response sample={sample} place={-1} /> },
];

function Response({ sample, place }: { sample: Sample; place: number }) {
  const index = ranked(sample).at(place) ?? 0;
  return <>{sample.responses[index] || <em>empty</em>}<small>{number(figures(sample)[index])}</small></>;
}

/** Return the fused rewards; for a client's token, its own scores. */
function figures(sample: Sample): number[] {
  return sample.rewards ?? sample.clients[0]?.calibrated ?? [];
}

/** Return the responses from the best to the worst. */
function ranked(sample: Sample): number[] {
  const of = figures(sample);
  return sample.responses.map((_, index) => index).sort((a, b) => (of[b] ?? 0) - (of[a] ?? 0));
}

function mean(values: number[]): number | null {
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
}
