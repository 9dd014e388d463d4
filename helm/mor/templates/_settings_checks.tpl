{{/* Refuse settings that cannot work in the chart's pods, each with a remedy. */}}
{{- define "mor.settingsChecks" -}}
{{- include "mor.transferChecks" . -}}
{{- include "mor.blobChecks" . -}}
{{- include "mor.folderChecks" . -}}
{{- if .Values.redis.bundled -}}{{- include "mor.memoryChecks" . -}}{{- end -}}
{{- with .Values -}}
{{- if and (eq (toString .rollout.settings.backend) "transformers") (gt (int .rollout.gpus) 1) -}}
{{- fail (printf "rollout.settings.backend=transformers uses one GPU and rollout.gpus is %d: set rollout.gpus=1 and raise rollout.replicas, or use the backend vllm" (int .rollout.gpus)) -}}
{{- end -}}
{{- if and (gt (float64 (default 0 .router.settings.refit_interval_s)) 0.0) (eq (int (include "mor.mostEngines" $)) 0) -}}
{{- fail "router.settings.refit_interval_s samples the policy, and there is no engine: set rollout.replicas, or remove the setting" -}}
{{- end -}}
{{- $outside := dict "tracing.endpoint" .tracing.endpoint "control.settings.mlflow_tracking_uri" .control.settings.mlflow_tracking_uri "control.settings.push_destinations" .control.settings.push_destinations -}}
{{- range $name, $address := $outside -}}
{{- if and $address (contains "://" (toString $address)) $.Values.networkPolicy.enabled (not $.Values.networkPolicy.extraEgress) -}}
{{- fail (printf "%s is set, and the network policy permits no connection there: name it in networkPolicy.extraEgress, such as [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}], ports: [{port: 4318}]}]; or set networkPolicy.enabled=false" $name) -}}
{{- end -}}
{{- end -}}
{{- range $run := .runs -}}
{{- if and (hasPrefix "/data/" (toString $run.prompts)) (not $.Values.data.existingClaim) -}}
{{- fail (printf "runs: the prompts of %q are below /data, where nothing is mounted: set data.existingClaim" $run.name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The bundled server must refuse writes before its container has no memory left. */}}
{{- define "mor.memoryChecks" -}}
{{- with .Values.valkey -}}
{{- $units := dict "" 1 "b" 1 "k" 1000 "kb" 1024 "m" 1000000 "mb" 1048576 "g" 1000000000 "gb" 1073741824 -}}
{{- $number := regexFind "^[0-9]+" .maxMemory -}}
{{- $unit := lower (trimPrefix $number .maxMemory) -}}
{{- if not (and $number (hasKey $units $unit)) -}}
{{- fail (printf "valkey.maxMemory is %q, which Valkey does not read: write a number with kb, mb or gb" .maxMemory) -}}
{{- end -}}
{{- $bytes := mul $number (get $units $unit) -}}
{{- $limit := get (default dict .resources.limits) "memory" | toString -}}
{{- if and (regexMatch "^[0-9.]+(k|M|G|T|Ki|Mi|Gi|Ti)?$" $limit) (or (eq (int64 $bytes) 0) (ge (int64 $bytes) (int64 (include "mor.bytes" $limit)))) -}}
{{- fail (printf "valkey.maxMemory is %s, at which the server would be ended and not refuse writes, because valkey.resources.limits.memory is %s: set it to at most three quarters of that, or raise the limit" .maxMemory $limit) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "mor.transferChecks" -}}
{{- $worker := .Values.worker.settings -}}
{{- if include "mor.broadcasts" . -}}
{{- if or (eq (int .Values.worker.gpus) 0) (eq (int .Values.rollout.gpus) 0) -}}
{{- fail "rollout.settings.weight_transfer=nccl broadcasts from GPU to GPU: set worker.gpus and rollout.gpus, or remove the setting" -}}
{{- end -}}
{{- if .Values.rollout.autoscaling.enabled -}}
{{- fail "rollout.settings.weight_transfer=nccl needs engines with known addresses, which rollout.autoscaling changes: set one of them only" -}}
{{- end -}}
{{- else if or $worker.transfer_engines $worker.transfer_address -}}
{{- fail "worker.settings.transfer_engines and transfer_address need rollout.settings.weight_transfer=nccl: set it, or remove them" -}}
{{- end -}}
{{- end -}}

{{/* Blobs are written by one component and read by others, so that all of them have the same place. */}}
{{- define "mor.blobChecks" -}}
{{- $places := list -}}
{{- range $name := list "control" "worker" "rollout" "router" -}}
{{- $places = append $places (default "" (get $.Values $name).settings.blob_dir) -}}
{{- end -}}
{{- $place := first (append (compact $places) "") -}}
{{- if $place -}}
{{- if gt (len (uniq $places)) 1 -}}
{{- fail (printf "settings.blob_dir must be the same in control, worker, rollout and router, and is %s: set it in all four" (join ", " $places)) -}}
{{- end -}}
{{- $protocol := ternary (first (splitList "://" $place)) "file" (contains "://" $place) -}}
{{- if not (has $protocol (list "file" "s3" "s3a" "gs" "gcs" "az" "abfs" "abfss")) -}}
{{- fail (printf "settings.blob_dir=%s: the images have no library for %s://; use s3://, gs://, abfs:// or a folder of a shared volume" $place $protocol) -}}
{{- end -}}
{{- if eq $protocol "file" -}}
{{- range $name := list "control" "worker" "rollout" "router" -}}
{{- include "mor.needsMount" (dict "root" $ "component" $name "setting" "blob_dir" "folder" (trimPrefix "file://" $place)) -}}
{{- end -}}
{{- else if and .Values.networkPolicy.enabled (not .Values.networkPolicy.extraEgress) -}}
{{- fail (printf "settings.blob_dir=%s is outside of the cluster's services, and the network policy permits no connection there: name it in networkPolicy.extraEgress, such as [{to: [{ipBlock: {cidr: 203.0.113.0/24}}], ports: [{port: 443}]}]; or set networkPolicy.enabled=false" $place) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Folders that a process writes to: the root of a container is read-only. */}}
{{- define "mor.folderChecks" -}}
{{- range $component, $names := dict "control" (list "tensorboard_dir") "worker" (list "index_dir" "checks_dir") -}}
{{- range $setting := $names -}}
{{- with get (get $.Values $component).settings $setting -}}
{{- include "mor.needsMount" (dict "root" $ "component" $component "setting" $setting "folder" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Fail unless a folder is on a volume of the component: dict root, component, setting, folder. */}}
{{- define "mor.needsMount" -}}
{{- $values := get .root.Values .component -}}
{{- $mounts := list -}}
{{- if has .component (list "control" "worker") -}}{{- $mounts = append $mounts "/runs" -}}{{- end -}}
{{- if ne .setting "blob_dir" -}}{{- $mounts = append $mounts "/tmp" -}}{{- end -}}
{{- range default list $values.pod.extraVolumeMounts -}}{{- $mounts = append $mounts .mountPath -}}{{- end -}}
{{- $found := false -}}
{{- range $mounts -}}
{{- if hasPrefix (printf "%s/" (trimSuffix "/" .)) (printf "%s/" $.folder) -}}{{- $found = true -}}{{- end -}}
{{- end -}}
{{- if not $found -}}
{{- fail (printf "%s.settings.%s=%s is on no volume of these pods, which are read-only: mount one there by %s.pod.extraVolumes and extraVolumeMounts" .component .setting .folder .component) -}}
{{- end -}}
{{- end -}}
