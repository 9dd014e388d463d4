{{/* Refuse what pods and names could not be, each with a remedy. Part of mor.checks. */}}
{{- define "mor.podChecks" -}}
{{- $v := .Values -}}
{{- $labels := dict "commonLabels" $v.commonLabels -}}
{{- range $name := list "control" "worker" "rollout" "router" "valkey" "apply" -}}
{{- $labels = set $labels (printf "%s.pod.labels" $name) (get $v $name).pod.labels -}}
{{- end -}}
{{- include "mor.values.names" (dict "root" . "name" (include "mor.fullname" .) "labels" $labels) -}}
{{- if and $v.worker.together (gt (int $v.worker.replicas) 1) (ne $v.control.runs.accessMode "ReadWriteMany") -}}
{{- fail (printf "worker.together divides a run over %d pods, and control.runs.accessMode=%s permits one node: set it to ReadWriteMany, with a storage class that has it; or set worker.together=false and worker.gpus to the GPUs of one node" (int $v.worker.replicas) $v.control.runs.accessMode) -}}
{{- end -}}
{{- with $v.worker.trainingRuntime -}}
{{- if and .enabled (eq $v.control.runs.accessMode "ReadWriteOnce") -}}
{{- if gt (int .numNodes) 1 -}}
{{- fail (printf "worker.trainingRuntime.numNodes divides a run over %d pods, and control.runs.accessMode=ReadWriteOnce permits one node: set it to ReadWriteMany, with a storage class that has it" (int .numNodes)) -}}
{{- end -}}
{{- if and (gt (int $v.worker.gpus) 0) (eq (int $v.worker.replicas) 0) (not (or $v.control.pod.nodeSelector $v.control.pod.affinity)) -}}
{{- fail "worker.trainingRuntime: with control.runs.accessMode=ReadWriteOnce the pods of a TrainJob must run on run control's node, which may have no GPU: set it to ReadWriteMany; or choose a node with GPUs for run control by control.pod.nodeSelector" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name := list "worker" "apply" -}}
{{- range $probe := list "startupProbe" "livenessProbe" "readinessProbe" -}}
{{- if get (get $v $name).pod $probe -}}
{{- fail (printf "%s.pod.%s is set, and these pods have no probes, because they serve nothing: remove it" $name $probe) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $v.valkey.pod.startupProbe -}}
{{- fail "valkey.pod.startupProbe is set, and the server has none: set valkey.pod.livenessProbe instead" -}}
{{- end -}}
{{- range $name := list "control" "worker" "rollout" "router" "valkey" "apply" -}}
{{- $pod := (get $v $name).pod -}}
{{- if or $pod.extraVolumes $pod.extraVolumeMounts $pod.extraContainers $pod.initContainers $pod.hostAliases -}}
{{- include "mor.values.twice" (dict "text" (include (printf "%s/%s.yaml" $.Template.BasePath $name) $) "path" (printf "%s.pod" $name)) -}}
{{- end -}}
{{- end -}}
{{- range $name := list "worker" "rollout" -}}
{{- $part := get $v $name -}}
{{- if and (gt (int $part.gpus) 0) (not (hasPrefix "nvidia.com/" $part.gpuResource)) (not (or $part.image.tag $part.image.digest)) -}}
{{- fail (printf "%s.gpuResource is %q, and the chart's own image for GPUs has CUDA: name an image that is built for it with %s.image.tag or %s.image.digest" $name $part.gpuResource $name $name) -}}
{{- end -}}
{{- end -}}
{{- range $name := list "rollout" "router" -}}
{{- $part := get $v $name -}}
{{- $needed := int (include "mor.drainSeconds" (dict "root" $ "settings" $part.settings)) -}}
{{- if lt (int $part.terminationGracePeriodSeconds) $needed -}}
{{- fail (printf "%s.terminationGracePeriodSeconds is %d, and a pod needs up to %d s to end (preStopSeconds, %s.settings.shutdown_grace_s, and 20 s to hand back its groups): raise it, or lower these" $name (int $part.terminationGracePeriodSeconds) $needed $name) -}}
{{- end -}}
{{- end -}}
{{- range $name := list "control" "router" "rollout" "worker" "valkey" -}}
{{- $labels := include "mor.selectorLabels" (dict "root" $ "component" $name) -}}
{{- include "mor.immutableFamily" (dict "root" $ "name" (printf "%s-%s" (include "mor.fullname" $) $name)) -}}
{{- range $kind := list "Deployment" "StatefulSet" -}}
{{- include "mor.immutableSelector" (dict "root" $ "kind" $kind "name" (printf "%s-%s" (include "mor.fullname" $) $name) "labels" $labels) -}}
{{- end -}}
{{- end -}}
{{- if $v.redis.bundled -}}
{{- include "mor.immutableOrder" (dict "root" . "component" "valkey") -}}
{{- include "mor.immutableTemplate" (dict "root" . "component" "valkey" "claim" "data" "path" "valkey.persistence" "values" $v.valkey.persistence) -}}
{{- end -}}
{{- if not $v.control.runs.existingClaim -}}
{{- include "mor.immutableClaim" (dict "root" . "name" (include "mor.runsClaim" .) "path" "control.runs" "values" $v.control.runs) -}}
{{- end -}}
{{- if and $v.router.state.enabled (not $v.router.state.existingClaim) -}}
{{- include "mor.immutableClaim" (dict "root" . "name" (include "mor.stateClaim" .) "path" "router.state" "values" $v.router.state) -}}
{{- end -}}
{{- if not (or $v.control.database.existingClaim $v.control.database.external.existingSecret) -}}
{{- include "mor.immutableClaim" (dict "root" . "name" (printf "%s-history" (include "mor.fullname" .)) "path" "control.database" "values" $v.control.database) -}}
{{- end -}}
{{- end -}}

{{/* Seconds that a service needs at most to end: preStop, requests in flight, and 20 for its stage and engine: dict root, settings. */}}
{{- define "mor.drainSeconds" -}}
{{- $requests := ceil (default 10 .settings.shutdown_grace_s) -}}
{{- add (int .root.Values.preStopSeconds) (int $requests) 20 -}}
{{- end -}}

{{/* Id under which the ranks of several pods meet: one for each image and environment, so that an upgrade, which replaces
one pod after the other, never trains with two of them: dict root, component, values. */}}
{{- define "mor.rendezvous" -}}
{{- $same := list (include "mor.image" .) .values.gpus .values.settings .values.pod.extraEnv .root.Values.model -}}
{{- printf "%s-%s" (include "mor.fullname" .root) (mustToJson $same | sha256sum | trunc 8) -}}
{{- end -}}
