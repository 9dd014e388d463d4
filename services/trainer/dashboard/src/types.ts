/** Types of the answers of run control that the dashboard reads; /openapi.json has all. Unknown is null, never 0. */

import type { ClientFigures, StepMetrics } from "./step_metrics.ts";

export type Figure = number | null | undefined;

/** Rule of which prompts a client is sent: null stands for all domains. */
export interface Asks {
  domains: string[] | null;
  public_only: boolean;
}

/** State of a client at the router. */
export interface ClientStatus {
  client: {
    name: string;
    state: "probation" | "active" | "paused" | "quarantined";
    reason: string | null;
    /** Rule of the prompts that it is sent; a router of an earlier release has none. */
    asks?: Asks;
    card: { calibration: { ece: number; pair_accuracy: number; pairs: number } | null; asks?: Asks | null } | null;
  };
  circuit: "closed" | "open" | "half_open";
  last_error: string | null;
}

export interface Point extends StepMetrics {
  step: number;
  /** Unix time, seconds. */
  at: number;
}

export interface Evaluation {
  step: number;
  reward: Figure;
  clients?: Record<string, Figure>;
}

export interface History {
  points: Point[];
  evaluations: Evaluation[];
  stride: number;
}

export type RunState = "queued" | "running" | "paused" | "finished" | "failed" | "stopped";

/** Row of a prompts file that cannot be used. */
export interface BadPrompt {
  file: string;
  line: number;
  id: string;
  problem: string;
}

/** Check of all prompts before the first step. */
export interface Preflight {
  state: "reading" | "checking" | "done";
  rows: number;
  total?: number | null;
  bad: number;
  found: BadPrompt[];
}

/** Specification of a run: its fields by name. */
export type Spec = Record<string, unknown>;

export interface Snapshot {
  id: string;
  tags: string[] | null;
  note: string | null;
  state: RunState;
  desired: "run" | "pause" | "stop";
  step: number | null;
  total: number;
  progress: number | null;
  eta_s: number | null;
  created_at: number;
  started_at: number | null;
  updated_at: number;
  finished_at: number | null;
  model: string;
  weights_version: number | null;
  gate_version: number | null;
  control_rewards: "fused" | "shuffled";
  preflight: Preflight | null;
  metrics: StepMetrics | null;
  final: string | null;
  archived?: boolean;
  error: string | null;
  /** What a person should know about the run from its beginning. */
  warnings: string[];
  cursor: string;
}

export interface RunEvent {
  id: number;
  kind: string;
  step: number | null;
  at: number;
  data: Record<string, unknown>;
}

export interface SampleScore {
  client: string;
  status: string;
  detail: string | null;
  weight: number;
  raw: number[] | null;
  calibrated: number[] | null;
}

export interface Sample {
  step: number;
  group_id: string;
  prompt_id: string;
  domain: string | null;
  prompt: string;
  images: string[];
  weights_version: number;
  gate_version: number;
  fusion: string;
  responses: string[];
  rewards: number[] | null;
  advantages: number[] | null;
  clients: SampleScore[];
}

export interface Alert {
  id: number;
  run: string;
  name: string;
  reason: string;
  step: number | null;
  first_at: number;
  last_at: number;
  count: number;
  acknowledged_at: number | null;
  acknowledged_by: string | null;
  note: string | null;
}

export interface DeadGroup {
  id: number;
  group_id: string;
  stage: string | null;
  reason: string;
  attempts: number | null;
  step: number;
  at: number;
  replay: string;
}

/** Files of a run; sizes in bytes. */
export interface RunStorage {
  run: string;
  state: RunState | null;
  archived: boolean;
  finished_at: number | null;
  checkpoints: number;
  weights: number;
  replay_log: number;
  exports: number;
  final: number;
  other: number;
  files: number;
  expires_at: number | null;
}

export interface StorageReport {
  disk_bytes: number;
  free_bytes: number;
  history_bytes: number | null;
  limits: {
    ended_run_days: number;
    ended_runs_kept: number;
    ended_runs_bytes: number;
    ended_runs_share: number;
    history_days: number;
  };
  runs: RunStorage[];
  deleting: string[];
}

/** What a deletion frees. */
export interface Freed {
  bytes: number;
  files: number;
}

export interface Checkpoint {
  step: number;
  at: number;
  path: string;
  seconds: number | null;
  bytes?: number | null;
}

export interface ClientHistory {
  latest: ClientFigures | null;
  weight_by_domain: Record<string, Figure>;
  points: ({ step: number; at: number } & ClientFigures)[];
}

export interface Caller {
  name: string;
  scope: "admin" | "viewer" | "service" | "client" | "labeller";
}

/** Audits of one objective. */
export interface AuditCounts {
  objective: string;
  share: number;
  labelled_by: "labeller" | "people";
  waiting: number;
  /** Unix time, seconds. */
  oldest: number | null;
  labelled: number;
}

/** Labels of audits by one person, over all objectives. */
export interface PersonLabels {
  person: string;
  labels: number;
  undecided: number;
  skipped: number;
  compared: number;
  disagreed: number;
}

/** What labelled audits say about a client. */
export interface ClientAudits {
  client: string;
  objectives: {
    objective: string;
    audits: number;
    agreement: number | null;
    agreement_interval: [number, number] | null;
  }[];
}

/** Unlabelled pair, and what its label is expected to tell. */
export interface ProposedLabel {
  audit: string | null;
  source: "live" | "uploaded";
  domain: string | null;
  question: string;
  first: string;
  second: string;
  /** Nats. */
  information: number;
  disagreement: number;
  coverage: number;
}

/** Pairs worth labelling next, the most valuable first. */
export interface LabelProposal {
  objective: string;
  gate_version: number;
  candidates: number;
  waiting: number;
  pairs: ProposedLabel[];
}

/** Turn of a conversation; pictures are named by hash. */
export interface Turn {
  role: "system" | "user" | "assistant";
  content: string | ({ type: "text"; text: string } | { type: "image_url"; image_url: { url: string } })[];
}

/** Audited group as a person sees it. */
export interface AuditQuestion {
  audit: string;
  objective: string;
  goal: string;
  messages: Turn[];
  /** Base64 by hash. */
  images: Record<string, string>;
  first: string;
  second: string;
  waiting: number;
  labelled: number;
}
