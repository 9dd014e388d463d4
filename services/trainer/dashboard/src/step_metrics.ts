/** Step metrics and their charts. Written by `python docs/generate.py` from mor_core/step_metrics.py: do not edit. */

import type { Figure } from "./types.ts";

/** A client in one step. */
export interface ClientFigures {
  /** Mean calibrated score of the client; null where it answered nothing. */
  reward_mean?: Figure;
  /** Mean score of the client as served. */
  raw_mean?: Figure;
  /** Mean share of the client in the mixture. */
  weight?: Figure;
  /** Mean time in which the client answered the router. */
  seconds?: Figure;
  /** Groups of the step that the client failed, by status. */
  failures?: Record<string, number>;
  /** Groups of the run that the client failed, by status. */
  failures_total?: Record<string, number>;
}

/** The prompts of one domain label in one step. */
export interface DomainFigures {
  /** Scored groups. */
  groups?: Figure;
  /** Mean fused reward. */
  reward_mean?: Figure;
  /** Mean share of each client in the mixture. */
  weights?: Record<string, Figure>;
}

/** A source of prompts in one step, and in the run up to it. */
export interface SourceFigures {
  /** Scored groups of the step. */
  groups?: Figure;
  /** Mean fused reward of the step; null without a group of the source. */
  reward_mean?: Figure;
  /** Groups of the run that were drawn from the source, those under way included. */
  drawn?: Figure;
  /** Share of the source in all groups that were drawn. */
  drawn_ratio?: Figure;
  /** Share that the weights up to here ask for. */
  expected_ratio?: Figure;
  /** Passes over the rows of the source. */
  epochs?: Figure;
}

/** Seconds of one step by phase; they add up to the step. */
export interface PhaseSeconds {
  /** Wait for sampled and scored groups. */
  waiting?: Figure;
  /** Encoding, batching, reports, and control of the run. */
  processing?: Figure;
  /** Forward and backward passes. */
  forward_backward?: Figure;
  /** Optimiser updates. */
  optimiser?: Figure;
  /** Publication of a weights version, and the wait for an earlier one that is still being written. */
  publication?: Figure;
  /** Writing of a checkpoint. */
  checkpoint?: Figure;
  /** Time of no phase. */
  unaccounted?: Figure;
}

/** First and last Unix time, in seconds, at which the step's groups left a stage. */
export interface StageTimes {
  /** Sampling by the rollout service. */
  sampled?: [number, number] | null;
  /** Scoring by the router. */
  scored?: [number, number] | null;
  /** Beginning and end of the update. */
  trained?: [number, number] | null;
}

/** Share of the step's groups that left a stage while an update was being computed. */
export interface Overlap {
  /** Share that was sampled meanwhile. */
  sampled?: Figure;
  /** Share that was scored meanwhile. */
  scored?: Figure;
}

/** Metrics of a training step. An unknown value is null, never 0. */
export interface StepMetrics {
  /** Mean fused reward of the step. */
  reward_mean?: Figure;
  /** Standard deviation of the fused rewards of the step. */
  reward_std?: Figure;
  /** Mean standard deviation of the fused rewards within a group. */
  group_reward_std?: Figure;
  /** Share of groups whose rewards are all alike. */
  zero_variance_ratio?: Figure;
  /** Mean correlation of two clients' scores of a group, -1 to 1; null where no two clients have weight and a preference. */
  client_agreement?: Figure;
  /** Mean entropy of the mixture weights. */
  mixture_entropy?: Figure;
  /** Figures of each client. */
  clients?: Record<string, ClientFigures>;
  /** Figures of each domain label. */
  domains?: Record<string, DomainFigures>;
  /** Figures of each source of prompts; empty for a run with one file. */
  sources?: Record<string, SourceFigures>;
  /** Mean KL of the policy to the reference, per token. */
  kl?: Figure;
  /** Mean entropy of the sampling distribution, per token. */
  entropy?: Figure;
  /** Loss, summed over the step's updates. */
  loss?: Figure;
  /** The loss's objective before the KL penalty, summed over the step's updates. */
  objective?: Figure;
  /** Share of tokens clipped below. */
  clip_low_ratio?: Figure;
  /** Share of tokens clipped above. */
  clip_high_ratio?: Figure;
  /** Share of tokens whose ratio trainer/engine was truncated or masked. */
  importance_limited_ratio?: Figure;
  /** Mean raw ratio trainer/engine. */
  importance_ratio_mean?: Figure;
  /** Largest raw ratio trainer/engine. */
  importance_ratio_max?: Figure;
  /** Mean absolute difference of the log-probabilities of engine and trainer from the same weights, per token; null without a group that the newest weights sampled. */
  engine_difference?: Figure;
  /** Effective sample size over sample size; 1 where trainer and engine agree. */
  effective_sample_share?: Figure;
  /** Gradient norm before clipping. */
  grad_norm?: Figure;
  /** Learning rate. */
  lr?: Figure;
  /** Updates left out because loss or gradient was not finite. */
  skipped_updates?: Figure;
  /** Response tokens trained on. */
  response_tokens?: Figure;
  /** Tokens that went through the policy, prompts and padding included. */
  processed_tokens?: Figure;
  /** Mean response length. */
  response_length_mean?: Figure;
  /** Share of responses cut at max_tokens. */
  truncation_ratio?: Figure;
  /** Share of the step's responses that are its most frequent text; null where all groups have the same prompt. */
  identical_ratio?: Figure;
  /** Share of responses of one token at most, the end not counted. */
  single_token_ratio?: Figure;
  /** Mean staleness of the trained groups. */
  staleness_mean?: Figure;
  /** Largest staleness of a trained group. */
  staleness_max?: Figure;
  /** Mean time from scoring to reading of the step's groups. */
  queue_wait?: Figure;
  /** Newest published weights version. */
  weights_version?: Figure;
  /** Newest gate version that scored a group of the step; rewards of different ones are not comparable. */
  gate_version?: Figure;
  /** Groups of this run that were trained on. */
  groups_applied?: Figure;
  /** Groups of this run replaced because their rewards were all alike. */
  groups_skipped?: Figure;
  /** Groups dropped in this run. */
  groups_dropped?: Figure;
  /** Groups issued again in this run. */
  groups_retried?: Figure;
  /** Groups of this run that came back and were not expected. */
  groups_duplicate?: Figure;
  /** Ids of the groups that the step trained on. */
  applied?: string[];
  /** Weights versions that sampled the step's groups. */
  sampled_by?: number[];
  /** Duration of the step. */
  step_seconds?: Figure;
  /** Seconds of the step by phase. */
  seconds?: PhaseSeconds;
  /** Response tokens trained on per second. */
  tokens_per_second?: Figure;
  /** Unix time at which the step began. */
  begun_at?: Figure;
  /** Times at which the step's groups left each stage. */
  stages?: StageTimes;
  /** Overlap of sampling and scoring with updates. */
  overlap?: Overlap;
}

export type NumericMetric =
  | "reward_mean"
  | "reward_std"
  | "group_reward_std"
  | "zero_variance_ratio"
  | "client_agreement"
  | "mixture_entropy"
  | "kl"
  | "entropy"
  | "loss"
  | "objective"
  | "clip_low_ratio"
  | "clip_high_ratio"
  | "importance_limited_ratio"
  | "importance_ratio_mean"
  | "importance_ratio_max"
  | "engine_difference"
  | "effective_sample_share"
  | "grad_norm"
  | "lr"
  | "skipped_updates"
  | "response_tokens"
  | "processed_tokens"
  | "response_length_mean"
  | "truncation_ratio"
  | "identical_ratio"
  | "single_token_ratio"
  | "staleness_mean"
  | "staleness_max"
  | "queue_wait"
  | "weights_version"
  | "gate_version"
  | "groups_applied"
  | "groups_skipped"
  | "groups_dropped"
  | "groups_retried"
  | "groups_duplicate"
  | "step_seconds"
  | "tokens_per_second"
  | "begun_at";

export type ChartId =
  | "reward"
  | "spread"
  | "weights"
  | "mixture-entropy"
  | "kl"
  | "entropy"
  | "identical"
  | "clip"
  | "gradient"
  | "flat"
  | "source-groups"
  | "source-reward"
  | "length"
  | "truncation"
  | "staleness"
  | "seconds"
  | "throughput";

export const PHASES = ["waiting", "processing", "forward_backward", "optimiser", "publication", "checkpoint", "unaccounted"] as const;

export interface DeclaredChart {
  id: ChartId;
  title: string;
  unit: string;
  note: string;
  stacked: boolean;
  lines: { metric: NumericMetric; name: string }[];
}

export const SECTIONS: { title: string; charts: DeclaredChart[] }[] = [
  {
    title: "Reward",
    charts: [
      {
        id: "reward",
        title: "Reward",
        unit: "logits",
        note: "Mean over the responses of a step: fused, and each client's calibrated scores.",
        stacked: false,
        lines: [{ metric: "reward_mean", name: "fused" }],
      },
      {
        id: "spread",
        title: "Reward spread",
        unit: "logits",
        note: "Standard deviation over a step, and within a group; advantages come from the latter.",
        stacked: false,
        lines: [{ metric: "reward_std", name: "step" }, { metric: "group_reward_std", name: "group" }],
      },
    ],
  },
  {
    title: "Mixture of clients",
    charts: [
      {
        id: "weights",
        title: "Mixture weight",
        unit: "share",
        note: "Mean share of each client in the fused reward.",
        stacked: true,
        lines: [],
      },
      {
        id: "mixture-entropy",
        title: "Mixture entropy",
        unit: "nats",
        note: "0: one client has all the weight of a group.",
        stacked: false,
        lines: [{ metric: "mixture_entropy", name: "entropy" }],
      },
    ],
  },
  {
    title: "Policy",
    charts: [
      {
        id: "kl",
        title: "KL to the reference",
        unit: "nats a token",
        note: "How far the policy has moved.",
        stacked: false,
        lines: [{ metric: "kl", name: "KL" }],
      },
      {
        id: "entropy",
        title: "Entropy",
        unit: "nats a token",
        note: "Falling fast towards 0: the policy stops exploring.",
        stacked: false,
        lines: [{ metric: "entropy", name: "entropy" }],
      },
      {
        id: "identical",
        title: "Identical responses",
        unit: "share",
        note: "Share of responses that are the most frequent text, or one token. One text near 1: the policy has collapsed.",
        stacked: false,
        lines: [{ metric: "identical_ratio", name: "one text" }, { metric: "single_token_ratio", name: "one token" }],
      },
      {
        id: "clip",
        title: "Clip fractions",
        unit: "share",
        note: "Share of tokens whose importance ratio was clipped, or limited by the correction.",
        stacked: false,
        lines: [{ metric: "clip_low_ratio", name: "low" }, { metric: "clip_high_ratio", name: "high" }, { metric: "importance_limited_ratio", name: "limited" }],
      },
      {
        id: "gradient",
        title: "Gradient norm",
        unit: "L2",
        note: "Before clipping.",
        stacked: false,
        lines: [{ metric: "grad_norm", name: "norm" }],
      },
      {
        id: "flat",
        title: "Groups without signal",
        unit: "share",
        note: "Share of groups whose responses all got the same reward.",
        stacked: false,
        lines: [{ metric: "zero_variance_ratio", name: "groups" }],
      },
    ],
  },
  {
    title: "Prompt sources",
    charts: [
      {
        id: "source-groups",
        title: "Groups by source",
        unit: "groups",
        note: "Scored groups of a step from each source of the run's prompts.",
        stacked: true,
        lines: [],
      },
      {
        id: "source-reward",
        title: "Reward by source",
        unit: "logits",
        note: "Mean fused reward of a step, by source.",
        stacked: false,
        lines: [],
      },
    ],
  },
  {
    title: "Rollouts",
    charts: [
      {
        id: "length",
        title: "Response length",
        unit: "tokens",
        note: "Mean of a step.",
        stacked: false,
        lines: [{ metric: "response_length_mean", name: "mean" }],
      },
      {
        id: "truncation",
        title: "Truncated responses",
        unit: "share",
        note: "Cut at max_tokens.",
        stacked: false,
        lines: [{ metric: "truncation_ratio", name: "truncated" }],
      },
      {
        id: "staleness",
        title: "Staleness",
        unit: "updates",
        note: "Updates between sampling a group and training on it.",
        stacked: false,
        lines: [{ metric: "staleness_mean", name: "mean" }, { metric: "staleness_max", name: "max" }],
      },
    ],
  },
  {
    title: "Speed",
    charts: [
      {
        id: "seconds",
        title: "Step time",
        unit: "seconds",
        note: "Where a step's time went.",
        stacked: true,
        lines: [],
      },
      {
        id: "throughput",
        title: "Tokens per second",
        unit: "tokens/s",
        note: "Response tokens trained on.",
        stacked: false,
        lines: [{ metric: "tokens_per_second", name: "tokens/s" }],
      },
    ],
  },
];
