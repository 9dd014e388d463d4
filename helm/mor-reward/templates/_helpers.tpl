{{- define "reward.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $chart := default .Chart.Name .Values.nameOverride -}}
{{- $name := contains $chart .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $chart) -}}
{{- if not .Chart.IsRoot -}}
{{- /* Charts of one parent differ in the end of their names, which must survive the limit. */ -}}
{{- $name = eq $chart .Release.Name | ternary $chart (printf "%s-%s" .Release.Name $chart) -}}
{{- $name = gt (len $name) 40 | ternary (printf "%s-%s" (trunc 31 $name) (sha256sum $name | trunc 8)) $name -}}
{{- end -}}
{{- $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* dict root, component */}}
{{- define "reward.selectorLabels" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* dict root, component, labels (further ones) */}}
{{- define "reward.labels" -}}
{{ include "reward.selectorLabels" . }}
app.kubernetes.io/part-of: mor
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with merge (dict) (default dict .labels) .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* dict root, component, suffix, labels (further ones), annotations */}}
{{- define "reward.metadata" -}}
name: {{ include "reward.fullname" .root }}{{ with .suffix }}-{{ . }}{{ end }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "reward.labels" . | nindent 2 }}
{{- with .annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "reward.image" -}}
{{- $image := .Values.image -}}
{{- $tag := printf "%s%s" .Chart.AppVersion (ternary "-cuda" "" (gt (int .Values.gpus) 0)) -}}
{{- $name := printf "%s/%s" (default $image.registry (get (default dict .Values.global) "imageRegistry")) $image.repository | trimPrefix "/" -}}
{{- if $image.digest -}}{{ $name }}@{{ $image.digest }}{{- else -}}{{ $name }}:{{ default $tag $image.tag }}{{- end -}}
{{- end -}}

{{- define "reward.scheme" -}}
{{- ternary "https" "http" (ne .Values.tls.existingSecret "") -}}
{{- end -}}

{{- define "reward.secret" -}}
{{- default (include "reward.fullname" .) .Values.auth.existingSecret -}}
{{- end -}}

{{/* Secrets for the registry: those of the parent chart and of this one. */}}
{{- define "reward.pullSecrets" -}}
{{- $names := list -}}
{{- range concat (default list (default dict .Values.global).imagePullSecrets) (default list .Values.image.pullSecrets) -}}
{{- $names = append $names (kindIs "string" . | ternary . (get (kindIs "map" . | ternary . dict) "name")) -}}
{{- end -}}
{{- with uniq $names }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Parts common to the pods of service and jobs: dict root, component, grace. */}}
{{- define "reward.pod" -}}
{{- $pod := deepCopy .root.Values.pod -}}
{{- if gt (int .root.Values.gpus) 0 -}}
{{- /* A node with GPUs usually has a taint of the resource's name. */ -}}
{{- $gpu := dict "key" .root.Values.gpuResource "operator" "Exists" "effect" "NoSchedule" -}}
{{- $pod = set $pod "tolerations" (append (default list $pod.tolerations) $gpu | uniq) -}}
{{- end -}}
serviceAccountName: {{ default (default (include "reward.fullname" .root) $pod.serviceAccountName) .account }}
automountServiceAccountToken: {{ not (empty .account) }}
enableServiceLinks: false
terminationGracePeriodSeconds: {{ default 30 .grace }}
securityContext:
  {{- include "mor.securityContext" (dict "default" .root.Values.podSecurityContext "own" $pod.podSecurityContext) | nindent 2 }}
{{- include "mor.podOptions" $pod }}
{{- include "reward.pullSecrets" .root }}
{{- with default .root.Values.priorityClassName $pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- range $name := list "nodeSelector" "tolerations" "affinity" }}
{{- with get $pod $name }}
{{ $name }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Labels and annotations of a pod: dict root, component. Without the chart's version, so that a new one that changes
nothing else rolls no pod. A changed function does: a running service does not read it again. */}}
{{- define "reward.podMetadata" -}}
labels:
  {{- include "reward.selectorLabels" . | nindent 2 }}
  app.kubernetes.io/part-of: mor
  {{- with merge (dict) (default dict .root.Values.pod.labels) .root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $annotations := deepCopy (default dict .root.Values.pod.annotations) -}}
{{- with and (eq .component "reward") .root.Values.function.existingConfigMap -}}
{{- with lookup "v1" "ConfigMap" $.root.Release.Namespace . -}}
{{- $annotations = merge $annotations (dict "checksum/config" (sha256sum (toJson (list .data .binaryData)))) -}}
{{- end -}}
{{- end -}}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Refuse contradictory values, each with a remedy. */}}
{{- define "reward.checks" -}}
{{- $v := .Values -}}
{{- if not $v.enabled -}}
{{- fail (printf "enabled is false, which a parent chart reads: write `condition: %s.enabled` at its dependency, which leaves this chart out then; uninstall a release of this chart itself" .Chart.Name) -}}
{{- end -}}
{{- include "reward.networkChecks" . -}}
{{- $sources := compact (list $v.model.existingClaim $v.model.image $v.function.existingConfigMap $v.upstream.protocol) -}}
{{- if ne (len $sources) 1 -}}
{{- fail "model.existingClaim, model.image, function.existingConfigMap and upstream.protocol: exactly one of them must be set" -}}
{{- end -}}
{{- if and $v.upstream.protocol (not (regexMatch "^https?://[^/?#@]+(/[^?#]*)?$" $v.upstream.url)) -}}
{{- fail (printf "upstream.url is %q: write the address of the reward model, such as http://rm.models.svc:8000" $v.upstream.url) -}}
{{- end -}}
{{- if and $v.upstream.url (not $v.upstream.protocol) -}}
{{- fail "upstream.url is set and upstream.protocol is not: name the protocol of that address, such as classify for vLLM" -}}
{{- end -}}
{{- if and $v.upstream.protocol (gt (int $v.gpus) 0) -}}
{{- fail "upstream.protocol with gpus: the model runs elsewhere; set gpus=0" -}}
{{- end -}}
{{- if and (hasSuffix "-cuda" $v.image.tag) (eq (int $v.gpus) 0) -}}
{{- fail "image.tag is a CUDA image and gpus is 0: set gpus=1, or use the CPU image" -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas is above maxReplicas: raise maxReplicas" -}}
{{- end -}}
{{- if and $v.settings.answers_dir (or $v.autoscaling.enabled (gt (int $v.replicas) 1)) -}}
{{- fail "settings.answers_dir holds the ledger of one process: set replicas=1 and autoscaling.enabled=false, and mount a volume there (pod.extraVolumes, pod.extraVolumeMounts)" -}}
{{- end -}}
{{- if and $v.registration.enabled (not (and $v.registration.router $v.registration.name $v.registration.url $v.registration.existingSecret)) -}}
{{- fail "registration.enabled needs registration.router, registration.name, registration.url and registration.existingSecret (with the platform team's enrolment-token)" -}}
{{- end -}}
{{- if and $v.registration.proxy.existingSecret $v.networkPolicy.enabled (not $v.registration.proxy.cidrs) -}}
{{- fail "registration.proxy.existingSecret is set and registration.proxy.cidrs is not: name the networks of the proxy, so that the network policy admits it; or set networkPolicy.enabled=false" -}}
{{- end -}}
{{- if and $v.registration.enabled $v.discovery.enabled -}}
{{- fail "registration.enabled and discovery.enabled would enrol this service twice: set one of them to false" -}}
{{- end -}}
{{- include "mor.values.names" (dict "root" . "name" (include "reward.fullname" .) "labels" (dict "commonLabels" $v.commonLabels "pod.labels" $v.pod.labels)) -}}
{{- include "mor.immutableFamily" (dict "root" . "name" (include "reward.fullname" .)) -}}
{{- include "mor.immutableSelector" (dict "root" . "kind" "Deployment" "name" (include "reward.fullname" .) "labels" (include "reward.selectorLabels" (dict "root" . "component" "reward"))) -}}
{{- if and (gt (int $v.gpus) 0) (not (hasPrefix "nvidia.com/" $v.gpuResource)) (not (or $v.image.tag $v.image.digest)) -}}
{{- fail (printf "gpuResource is %q, and the chart's own image for GPUs has CUDA: name an image that is built for it with image.tag or image.digest" $v.gpuResource) -}}
{{- end -}}
{{- range $path, $options := dict "pod" $v.pod "jobs" (pick $v.jobs "extraVolumes" "extraVolumeMounts") -}}
{{- if or $options.extraVolumes $options.extraVolumeMounts $options.extraContainers $options.initContainers $options.hostAliases -}}
{{- $file := eq $path "pod" | ternary "deployment" "jobs" -}}
{{- include "mor.values.twice" (dict "text" (include (printf "%s/%s.yaml" $.Template.BasePath $file) $) "path" $path) -}}
{{- end -}}
{{- end -}}
{{- $drain := add (int $v.preStopSeconds) (int (ceil (default 10 $v.settings.shutdown_grace_s))) 10 | int -}}
{{- if lt (int $v.terminationGracePeriodSeconds) $drain -}}
{{- fail (printf "terminationGracePeriodSeconds is %d, and a pod needs up to %d s to end (preStopSeconds, settings.shutdown_grace_s, and 10 s for the model): raise it, or lower these" (int $v.terminationGracePeriodSeconds) $drain) -}}
{{- end -}}
{{- if and $v.ingress.enabled (not $v.ingress.host) -}}
{{- fail "ingress.enabled needs ingress.host" -}}
{{- end -}}
{{- end -}}
