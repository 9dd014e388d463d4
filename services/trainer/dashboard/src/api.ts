/** Client of run control's API, with the token of this tab. */

import { save } from "./csv.ts";
import type { Caller } from "./types.ts";

const KEY = "mor-token";
/** Bound of an answer, generous for a slow line. */
const TIMEOUT_MS = 20_000;
/** Bound of a download, in which run control reads a whole run. */
const DOWNLOAD_MS = 600_000;
/** Scopes whose tokens read something here; run control names the holder of any other one too. */
const READERS: readonly string[] = ["admin", "viewer", "service", "client", "labeller"] satisfies Caller["scope"][];

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

/** Return whether an answer means that the token is unknown or reaches nothing here. */
export function isRefusal(error: ApiError): boolean {
  return error.status === 401 || error.status === 403;
}

/** Return the token in the address, if any, and remove it from there and from the history. */
export function takeTokenFromAddress(): string | null {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given !== null) history.replaceState(null, "", location.pathname);
  return given;
}

/** Look up the holder of a token, which is not stored.
 * @throws ApiError for a token that is unknown, reads nothing here, or fits in no header */
export async function holder(token: string): Promise<Caller> {
  if (!/^[\x21-\x7e]{1,512}$/.test(token)) {
    throw new ApiError(401, "a token is up to 512 letters, digits and signs without spaces; copy it again");
  }
  return reader(await request("v1/about", { headers: bearer(token) }));
}

async function reader(about: Response): Promise<Caller> {
  const { caller } = await body<{ caller: Caller }>(about);
  if (READERS.includes(caller.scope)) return caller;
  throw new ApiError(403, `a token of scope ${caller.scope} reads nothing here; use one of ${READERS.join(", ")}`);
}

/** Keep a token that ``holder`` has found valid, in this tab. */
export function setToken(token: string): void {
  sessionStorage.setItem(KEY, token);
}

export function isInUse(token: string): boolean {
  return sessionStorage.getItem(KEY) === token;
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
  const headers = { ...bearer(sessionStorage.getItem(KEY) ?? ""), ...options.headers };
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

function bearer(token: string): { Authorization: string } {
  return { Authorization: `Bearer ${token}` };
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

export function post<T>(path: string, content?: unknown): Promise<T> {
  return send("POST", path, content);
}

export function patch<T>(path: string, content: unknown): Promise<T> {
  return send("PATCH", path, content);
}

async function send<T>(method: string, path: string, content: unknown): Promise<T> {
  const headers = { "Content-Type": "application/json" };
  const sent = content === undefined ? {} : { headers, body: JSON.stringify(content) };
  return body(await request(path, { method, ...sent }));
}

/** Have the browser save a file that run control makes, which a link cannot request with the token.
 * @throws ApiError */
export async function download(path: string, name: string): Promise<void> {
  const reply = await request(path, { signal: AbortSignal.timeout(DOWNLOAD_MS) });
  save(await reply.blob().catch(() => Promise.reject(new ApiError(0, "the file of run control is incomplete"))), name);
}

export async function remove<T>(path: string): Promise<T> {
  return body(await request(path, { method: "DELETE" }));
}

async function body<T>(reply: Response): Promise<T> {
  try {
    return (await reply.json()) as T;
  } catch {
    throw new ApiError(0, "the answer of run control is incomplete");
  }
}

export async function caller(): Promise<Caller> {
  return reader(await request("v1/about"));
}

export function runPath(run: string, part = ""): string {
  return `v1/runs/${encodeURIComponent(run)}${part}`;
}

export function auditPath(objective: string, part: string): string {
  return `v1/audits/${encodeURIComponent(objective)}/${encodeURIComponent(part)}`;
}
