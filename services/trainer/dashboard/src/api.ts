/** Client of run control's API, with the token of this tab. */

import type { Caller } from "./types.ts";

const KEY = "mor-token";
/** Bound of an answer, generous for a slow line. */
const TIMEOUT_MS = 20_000;

/** Error answer (problem+json); status 0 where no answer came. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    detail: string,
    readonly retryAfterS: number | null = null,
  ) {
    super(detail);
  }
}

export function takeTokenFromAddress(): void {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given === null) return;
  setToken(given);
  history.replaceState(null, "", location.pathname);
}

/** Store the token; one with characters that no header can carry is stored as none. */
export function setToken(token: string): void {
  sessionStorage.setItem(KEY, /^[\x21-\x7e]*$/.test(token) ? token : "");
}

export function forgetToken(): void {
  sessionStorage.removeItem(KEY);
}

export function hasToken(): boolean {
  return Boolean(sessionStorage.getItem(KEY));
}

/** Send a request and return its answer.
 * @throws ApiError for an error answer, or none */
export async function request(path: string, options: RequestInit = {}): Promise<Response> {
  const token = sessionStorage.getItem(KEY) ?? "";
  const headers = { Authorization: `Bearer ${token}`, ...options.headers };
  const signal = options.signal ?? AbortSignal.timeout(TIMEOUT_MS);
  let reply: Response;
  try {
    reply = await fetch(path, { ...options, headers, signal, redirect: "error", credentials: "omit" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError(0, "run control does not answer");
  }
  if (!reply.ok) throw await problem(reply);
  return reply;
}

async function problem(reply: Response): Promise<ApiError> {
  const content = (await reply.json().catch(() => ({}))) as { detail?: unknown };
  const detail = typeof content.detail === "string" ? content.detail : `run control answered ${reply.status}`;
  const after = Number(reply.headers.get("Retry-After"));
  return new ApiError(reply.status, detail, after > 0 ? after : null);
}

export async function get<T>(path: string): Promise<T> {
  return body(await request(path));
}

export async function post<T>(path: string, content?: unknown): Promise<T> {
  const headers = { "Content-Type": "application/json" };
  const sent = content === undefined ? {} : { headers, body: JSON.stringify(content) };
  return body(await request(path, { method: "POST", ...sent }));
}

async function body<T>(reply: Response): Promise<T> {
  try {
    return (await reply.json()) as T;
  } catch {
    throw new ApiError(0, "the answer of run control is incomplete");
  }
}

export async function caller(): Promise<Caller> {
  return (await get<{ caller: Caller }>("v1/about")).caller;
}

export function runPath(run: string, part = ""): string {
  return `v1/runs/${encodeURIComponent(run)}${part}`;
}

export function auditPath(objective: string, part: string): string {
  return `v1/audits/${encodeURIComponent(objective)}/${encodeURIComponent(part)}`;
}
