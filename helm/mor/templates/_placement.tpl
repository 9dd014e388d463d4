{{/*
Where pods go. A volume of one node (ReadWriteOnce) ties pods to each other, and one of them decides for all: the worker,
which alone needs GPUs. Run control follows it, and so tolerates what the worker does.
*/}}

{{/* Tolerations: dict root, component, values; sharesRuns. A node with GPUs usually has a taint of the resource's name. */}}
{{- define "mor.tolerations" -}}
{{- $parts := list .values -}}
{{- if and .sharesRuns (eq .component "control") -}}
{{- $parts = append $parts .root.Values.worker -}}
{{- end -}}
{{- $tolerations := list -}}
{{- range $parts -}}
{{- $tolerations = concat $tolerations (default list .pod.tolerations) -}}
{{- if gt (int (default 0 .gpus)) 0 -}}
{{- $tolerations = append $tolerations (dict "key" .gpuResource "operator" "Exists" "effect" "NoSchedule") -}}
{{- end -}}
{{- end -}}
{{- with uniq $tolerations -}}
{{- toYaml . -}}
{{- end -}}
{{- end -}}

{{/* Term of a component's pods on the same node: dict root, component. */}}
{{- define "mor.besides" -}}
labelSelector:
  matchLabels:
    {{- include "mor.selectorLabels" . | nindent 4 }}
topologyKey: kubernetes.io/hostname
{{- end -}}

{{/* Affinity of the values, with terms for the pods that share a volume: dict root, component, values; sharesRuns. */}}
{{- define "mor.affinity" -}}
{{- $required := list -}}
{{- $preferred := list -}}
{{- $own := fromYaml (include "mor.besides" .) -}}
{{- $worker := .root.Values.worker -}}
{{- if and .sharesRuns (eq .component "control") (gt (int $worker.replicas) 0) -}}
{{- $required = append $required (fromYaml (include "mor.besides" (dict "root" .root "component" "worker"))) -}}
{{- else if and .sharesRuns (eq .component "worker") -}}
{{- if gt (int $worker.replicas) 1 -}}
{{- $required = append $required $own -}}
{{- end -}}
{{- /* A worker that starts again returns to the volume, as long as it fits there. */ -}}
{{- $control := fromYaml (include "mor.besides" (dict "root" .root "component" "control")) -}}
{{- $preferred = append $preferred (dict "weight" 100 "podAffinityTerm" $control) -}}
{{- end -}}
{{- $affinity := deepCopy (default dict .values.pod.affinity) -}}
{{- $pods := default dict $affinity.podAffinity -}}
{{- with $required -}}
{{- $key := "requiredDuringSchedulingIgnoredDuringExecution" -}}
{{- $pods = set $pods $key (concat . (default list (get $pods $key))) -}}
{{- end -}}
{{- with $preferred -}}
{{- $key := "preferredDuringSchedulingIgnoredDuringExecution" -}}
{{- $pods = set $pods $key (concat . (default list (get $pods $key))) -}}
{{- end -}}
{{- with $pods -}}
{{- $affinity = set $affinity "podAffinity" . -}}
{{- end -}}
{{- with $affinity -}}
{{- toYaml . -}}
{{- end -}}
{{- end -}}
