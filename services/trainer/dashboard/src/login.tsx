import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError, holder, setToken } from "./api.ts";

interface Props {
  problem: string | null;
  done: () => void;
  /** Returns to the page before; null where there is none. */
  cancel: (() => void) | null;
}

export function Login({ problem, done, cancel }: Props) {
  const input = useRef<HTMLInputElement>(null);
  const [refused, setRefused] = useState<string | null>(null);
  useEffect(() => input.current?.focus(), []);
  const submit = async (event: SubmitEvent) => {
    event.preventDefault();
    const token = input.current?.value.trim() ?? "";
    try {
      await holder(token);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      return setRefused(error.message);
    }
    setToken(token);
    done();
  };
  const shown = refused ?? problem;
  return (
    <form class="login" onSubmit={(event) => void submit(event)}>
      <h1 tabIndex={-1}>Token</h1>
      {shown && <p class="problem" role="alert">{shown}</p>}
      <p id="token-note">
        A viewer token reads everything; an administrator's also pauses, resumes and stops; a client's shows its own
        figures; a labeller's labels audits. It is kept in this tab until the tab is closed.
      </p>
      <label for="token">Bearer token</label>
      <input id="token" ref={input} type="password" autocomplete="off" required aria-describedby="token-note" />
      <p class="actions">
        <button class="primary">Show the runs</button>
        {cancel && <button type="button" onClick={cancel}>Cancel</button>}
      </p>
    </form>
  );
}
