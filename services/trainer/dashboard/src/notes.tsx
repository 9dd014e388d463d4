/** Tags and the note of a run. */

import { useState } from "preact/hooks";
import { ApiError, patch, runPath } from "./api.ts";
import type { Snapshot } from "./types.ts";

export function Tags({ tags }: { tags: string[] | null }) {
  return <>{(tags ?? []).map((tag) => <span class="tag" key={tag}>{tag}</span>)}</>;
}

/** Tags and note; an admin can change them. */
export function Notes({ snapshot, admin, onSnapshot }: { snapshot: Snapshot; admin: boolean; onSnapshot: (snapshot: Snapshot) => void }) {
  const [editing, setEditing] = useState(false);
  const { tags, note } = snapshot;
  if (editing) return <Form snapshot={snapshot} close={() => setEditing(false)} onSnapshot={onSnapshot} />;
  if (!admin && !tags?.length && !note) return null;
  return (
    <div class="notes">
      <Tags tags={tags} />
      {note && <span class="remark">{note}</span>}
      {admin && (
        <button type="button" class="link" onClick={() => setEditing(true)}>
          {tags?.length || note ? "Edit tags and note" : "Add tags or a note"}
        </button>
      )}
    </div>
  );
}

function Form({ snapshot, close, onSnapshot }: { snapshot: Snapshot; close: () => void; onSnapshot: (snapshot: Snapshot) => void }) {
  const before = snapshot.tags ?? [];
  const [tags, setTags] = useState(before.join(" "));
  const [note, setNote] = useState(snapshot.note ?? "");
  const [problem, setProblem] = useState<string | null>(null);
  const save = async () => {
    const wanted = tags.split(/[\s,]+/).filter(Boolean);
    const change = {
      add_tags: wanted.filter((tag) => !before.includes(tag)),
      remove_tags: before.filter((tag) => !wanted.includes(tag)),
      ...(note.trim() === (snapshot.note ?? "") ? {} : { note }),
    };
    try {
      onSnapshot(await patch<Snapshot>(runPath(snapshot.id), change));
      close();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setProblem(error.message);
    }
  };
  return (
    <form class="notes" aria-label="Tags and note" onSubmit={(event) => { event.preventDefault(); void save(); }}>
      <label>
        Tags, with spaces between <input value={tags} onInput={(event) => setTags(event.currentTarget.value)} />
      </label>
      <label>
        Note <textarea rows={2} maxLength={4000} value={note} onInput={(event) => setNote(event.currentTarget.value)} />
      </label>
      {problem && <p class="problem" role="alert">{problem}</p>}
      <p class="actions">
        <button type="submit" class="primary">Save</button>
        <button type="button" onClick={close}>Cancel</button>
      </p>
    </form>
  );
}
