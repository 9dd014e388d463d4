import { useEffect, useRef } from "preact/hooks";
import { setToken } from "./api.ts";

interface Props {
  problem: string | null;
  done: () => void;
  /** Returns to the page before; null where there is none. */
  cancel: (() => void) | null;
}

export function Login({ problem, done, cancel }: Props) {
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => input.current?.focus(), []);
  const submit = (event: SubmitEvent) => {
    event.preventDefault();
    setToken(input.current?.value.trim() ?? "");
    done();
  };
  return (
    <form class="login" onSubmit={submit}>
      <h1 tabIndex={-1}>Token</h1>
      {problem && <p class="problem" role="alert">{problem}</p>}
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
