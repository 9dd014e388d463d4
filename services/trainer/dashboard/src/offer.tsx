/** A token that comes with the address. A link may be anybody's, so it never replaces a token in use without a question,
 * and a token that is not valid is never kept. */

import { useEffect, useState } from "preact/hooks";
import { ApiError, caller, hasToken, holder, isInUse, isRefusal, setToken, takeTokenFromAddress } from "./api.ts";
import { pause, sleep } from "./backoff.ts";
import type { Caller } from "./types.ts";

interface Offer {
  token: string;
  /** Holder of the token; null until run control has named it. */
  caller: Caller | null;
}

export interface Offered {
  /** Valid token of a link, while another one is in use. */
  offer: Caller | null;
  /** Whether run control has yet to name the holder of a link's token. */
  pending: boolean;
  /** Reason why the token of a link was not taken. */
  refusal: string | null;
  take: () => void;
  decline: () => void;
}

/** Take tokens from the address. ``signed`` is called after one came into use. */
export function useOfferedToken(signed: () => void): Offered {
  const [offer, setOffer] = useState<Offer | null>(() => offered());
  const [refusal, setRefusal] = useState<string | null>(null);
  const keep = (token: string) => {
    setToken(token);
    setOffer(null);
    signed();
  };
  useEffect(() => {
    const changed = () => {
      const next = offered();
      if (next) setOffer(next);
      else setRefusal(null);
    };
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  useEffect(() => {
    if (offer === null || offer.caller !== null) return;
    const end = new AbortController();
    setRefusal(null);
    const settle = async () => {
      const found = await answer(() => holder(offer.token), end.signal);
      if (isInUse(offer.token)) return setOffer(null);
      if (hasToken() && !(await refused(end.signal))) return setOffer({ ...offer, caller: found });
      keep(offer.token);
    };
    settle().catch((error: unknown) => {
      if (end.signal.aborted) return;
      if (!(error instanceof ApiError)) throw error;
      setOffer(null);
      setRefusal(`The token of the link was not taken: ${error.message}`);
    });
    return () => end.abort();
  }, [offer]);
  return {
    offer: offer?.caller ?? null,
    pending: offer !== null && offer.caller === null,
    refusal,
    take: () => offer && keep(offer.token),
    decline: () => setOffer(null),
  };
}

/** Repeat a call until run control answers.
 * @throws ApiError for a token that is refused, or after ``signal`` */
async function answer<T>(call: () => Promise<T>, signal: AbortSignal): Promise<T> {
  for (let failures = 0; ; failures += 1) {
    try {
      const found = await call();
      signal.throwIfAborted();
      return found;
    } catch (error) {
      if (signal.aborted || !(error instanceof ApiError) || isRefusal(error)) throw error;
      await sleep(pause(failures, error.retryAfterS), signal);
    }
  }
}

/** Return whether the token in use is refused. */
async function refused(signal: AbortSignal): Promise<boolean> {
  try {
    await answer(caller, signal);
    return false;
  } catch (error) {
    if (error instanceof ApiError && isRefusal(error)) return true;
    throw error;
  }
}

function offered(): Offer | null {
  const token = takeTokenFromAddress();
  return token === null ? null : { token, caller: null };
}

/** Question whether the token of a link replaces the one in use. */
export function Question({ offered, current }: { offered: Offered; current: Caller | null }) {
  const { offer, take, decline } = offered;
  const open = (dialog: HTMLDialogElement | null) => {
    if (dialog && !dialog.open) dialog.showModal();
  };
  if (offer === null) return null;
  return (
    <dialog ref={open} onClose={decline} aria-label="Another token">
      <p>
        The link carries the token of <strong>{named(offer)}</strong>. This tab uses{" "}
        {current ? <>that of <strong>{named(current)}</strong></> : "another one"}. Switch only if you trust the sender
        of the link.
      </p>
      <p class="actions">
        <button type="button" class="primary" onClick={decline}>Keep my token</button>
        <button type="button" onClick={take}>Switch to {named(offer)}</button>
      </p>
    </dialog>
  );
}

function named(caller: Caller): string {
  return `${caller.name} (${caller.scope})`;
}
