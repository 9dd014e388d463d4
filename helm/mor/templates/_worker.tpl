{{/* Form of the workers: JobSet or StatefulSet for one over several pods, Deployment for workers of one pod each. */}}
{{- define "mor.workerKind" -}}
{{- if and .Values.worker.together .Values.worker.jobSet.enabled -}}JobSet
{{- else if .Values.worker.together -}}StatefulSet
{{- else -}}Deployment
{{- end -}}
{{- end -}}

{{/* Pods that train one run: with `together` all replicas. */}}
{{- define "mor.workerNodes" -}}
{{- ternary (max 1 (int .Values.worker.replicas)) 1 .Values.worker.together -}}
{{- end -}}

{{/* Ranks of a pod: one for each GPU, at least one. */}}
{{- define "mor.workerRanks" -}}
{{- max 1 (int .Values.worker.gpus) -}}
{{- end -}}

{{/* Whether workers broadcast weights to the engines, which then need addresses of their own. */}}
{{- define "mor.broadcasts" -}}
{{- if and (eq (toString .Values.rollout.settings.weight_transfer) "nccl") (gt (int .Values.rollout.replicas) 0) -}}yes{{- end -}}
{{- end -}}

{{/* Metadata of the workers' workload: dict root, part; name. */}}
{{- define "mor.workerMetadata" -}}
name: {{ default (printf "%s-worker" (include "mor.fullname" .root)) .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "mor.labels" .part | nindent 2 }}
  {{- with .root.Values.worker.queueName }}
  kueue.x-k8s.io/queue-name: {{ . }}
  {{- end }}
annotations:
  checkov.io/skip1: CKV_K8S_8=a worker serves nothing; run control takes its run away when its heartbeats end
  checkov.io/skip2: CKV_K8S_9=a worker serves nothing that could be ready
  {{- with .root.Values.worker.pod.workloadAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/*
Template of a worker's pod: dict root, part; first, the name of the pod at which several meet; restart; trainJob, whether
Kubeflow Trainer tells torchrun how many there are.
*/}}
{{- define "mor.workerPod" -}}
{{- $root := .root -}}
{{- $worker := $root.Values.worker -}}
{{- $ranks := int (include "mor.workerRanks" $root) -}}
{{- $nodes := int (include "mor.workerNodes" $root) -}}
{{- $name := include "mor.fullname" $root -}}
{{- $set := mergeOverwrite (fromYaml (include "mor.loading" $root)) (default dict (fromYaml (include "mor.callingControl" $root))) (dict "MOR_RUNS_DIR" "/runs" "MOR_CONTROL_URL" (include "mor.url" (dict "root" $root "component" "control")) "MOR_DEVICE" (ternary "cuda" "cpu" (gt (int $worker.gpus) 0))) -}}
{{- if gt (int $root.Values.rollout.replicas) 0 -}}
{{- $set = set $set "MOR_PUBLISHED_DTYPE" (default "float32" $root.Values.rollout.settings.dtype) -}}
{{- end -}}
{{- if include "mor.broadcasts" $root -}}
{{- $engines := list -}}
{{- range $number := until (int $root.Values.rollout.replicas) -}}
{{- $engines = append $engines (printf "%s://%s-rollout-%d.%s-engines:8200" (include "mor.scheme" $root) $name $number $name) -}}
{{- end -}}
{{- $set = set $set "MOR_TRANSFER_ENGINES" (mustToJson $engines) -}}
{{- end -}}
metadata:
  {{- include "mor.podMetadata" .part | nindent 2 }}
spec:
  {{- include "mor.pod" .part | nindent 2 }}
  {{- with .restart }}
  restartPolicy: {{ . }}
  {{- end }}
  containers:
    - name: {{ ternary "node" "worker" (default false .trainJob) }}
      {{- include "mor.container" .part | nindent 6 }}
      {{- if .trainJob }}
      command: [torchrun]
      args:
        # Kubeflow Trainer would start a rank for each CPU where there is no GPU.
        - --nproc-per-node={{ $ranks }}
        - --max-restarts={{ $worker.maxRestarts }}
        - --shutdown-timeout={{ sub (int $worker.terminationGracePeriodSeconds) 10 }}
        - --no-python
        - mor-trainer
        - work
        - --once
      {{- else if gt (mul $ranks $nodes) 1 }}
      command: [torchrun]
      args:
        {{- if gt $nodes 1 }}
        - --nnodes={{ $nodes }}
        - --rdzv-backend=c10d
        - --rdzv-endpoint={{ .first }}.{{ $name }}-worker:29400
        - --rdzv-id={{ include "mor.rendezvous" .part }}
        {{- else }}
        - --standalone
        {{- end }}
        - --nproc-per-node={{ $ranks }}
        - --max-restarts={{ $worker.maxRestarts }}
        - --shutdown-timeout={{ sub (int $worker.terminationGracePeriodSeconds) 10 }}
        - --no-python
        - mor-trainer
        - work
      {{- else }}
      args: [work]
      {{- end }}
      env:
        {{- include "mor.env" (merge (dict "set" $set) .part) | nindent 8 }}
      volumeMounts:
        {{- include "mor.volumeMounts" .part | nindent 8 }}
        {{- include "mor.runMounts" $root | nindent 8 }}
        {{- include "mor.modelMounts" $root | nindent 8 }}
        {{- if gt $ranks 1 }}
        - {name: shm, mountPath: /dev/shm}
        {{- end }}
    {{- with $worker.pod.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "mor.volumes" (merge (dict "secrets" (dict "service-token" "mor_service_token")) .part) | nindent 4 }}
    {{- include "mor.runVolumes" $root | nindent 4 }}
    {{- include "mor.modelVolumes" $root | nindent 4 }}
    {{- if gt $ranks 1 }}
    - name: shm
      emptyDir: {medium: Memory, sizeLimit: {{ $worker.sharedMemory }}}
    {{- end }}
{{- end -}}


{{/* A failed rank or a lost pod starts all pods again: the run continues from its last checkpoint. */}}
{{- define "mor.jobSetFailurePolicy" -}}
maxRestarts: {{ .Values.worker.jobSet.maxRestarts }}
rules:
  # Drained, preempted and lost nodes are no fault of the run.
  - {name: disruption, action: RestartJobSetAndIgnoreMaxRestarts, onJobFailureReasons: [PodFailurePolicy]}
{{- end -}}

{{/* Fields of the Job in a JobSet by which the failure of one pod is that of all. */}}
{{- define "mor.jobSetJob" -}}
completionMode: Indexed
backoffLimit: 0
podFailurePolicy:
  rules:
    - action: FailJob
      onPodConditions: [{type: DisruptionTarget, status: "True"}]
{{- end -}}
