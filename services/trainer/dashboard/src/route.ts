/** Pages by address: #/, #/compare/ID,ID, #/alerts, #/storage, #/audits, #/audits/OBJECTIVE, #/runs/ID, #/runs/ID/TAB. */

export const TABS = ["charts", "clients", "samples", "alerts", "details"] as const;
/** Runs that are compared at most: as many as there are colours. */
export const MOST_COMPARED = 8;
export type Tab = (typeof TABS)[number];

export type Route =
  | { page: "runs" }
  | { page: "compare"; runs: string[] }
  | { page: "alerts" }
  | { page: "storage" }
  | { page: "audits"; objective: string | null }
  | { page: "run"; run: string; tab: Tab }
  | { page: "unknown" };

export function parse(hash: string): Route {
  const parts = hash.replace(/^#\/?/, "").split("/").filter(Boolean);
  const [page, run, tab = "charts"] = parts;
  if (page === undefined) return { page: "runs" };
  if (page === "compare" && run !== undefined && parts.length === 2) {
    return { page: "compare", runs: [...new Set(run.split(",").filter(Boolean).map(decoded))].slice(0, MOST_COMPARED) };
  }
  if ((page === "alerts" || page === "storage") && parts.length === 1) return { page };
  if (page === "audits" && parts.length <= 2) return { page: "audits", objective: run === undefined ? null : decoded(run) };
  if (page === "runs" && run !== undefined && (TABS as readonly string[]).includes(tab)) {
    return { page: "run", run: decoded(run), tab: tab as Tab };
  }
  return { page: "unknown" };
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export function runAddress(run: string, tab: Tab = "charts"): string {
  return `#/runs/${encodeURIComponent(run)}${tab === "charts" ? "" : `/${tab}`}`;
}

export function compareAddress(runs: string[]): string {
  return `#/compare/${runs.map(encodeURIComponent).join(",")}`;
}

export function auditAddress(objective: string): string {
  return `#/audits/${encodeURIComponent(objective)}`;
}
