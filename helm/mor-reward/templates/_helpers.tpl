{{- define "reward.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $chart := default .Chart.Name .Values.nameOverride -}}
{{- (contains $chart .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $chart)) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* dict root, component */}}
{{- define "reward.selectorLabels" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "reward.labels" -}}
{{ include "reward.selectorLabels" . }}
app.kubernetes.io/part-of: mor
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* dict root, component, suffix */}}
{{- define "reward.metadata" -}}
name: {{ include "reward.fullname" .root }}{{ with .suffix }}-{{ . }}{{ end }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "reward.labels" . | nindent 2 }}
{{- end -}}

{{- define "reward.image" -}}
{{- $image := .Values.image -}}
{{- $tag := printf "%s%s" .Chart.AppVersion (ternary "-cuda" "" (gt (int .Values.gpus) 0)) -}}
{{- $name := printf "%s/%s" $image.registry $image.repository | trimPrefix "/" -}}
{{- if $image.digest -}}{{ $name }}@{{ $image.digest }}{{- else -}}{{ $name }}:{{ default $tag $image.tag }}{{- end -}}
{{- end -}}

{{- define "reward.scheme" -}}
{{- ternary "https" "http" (ne .Values.tls.existingSecret "") -}}
{{- end -}}

{{- define "reward.secret" -}}
{{- default (include "reward.fullname" .) .Values.auth.existingSecret -}}
{{- end -}}

{{/* Parts common to the pods of service and jobs: dict root, component, grace; account: one with a token. */}}
{{- define "reward.pod" -}}
{{- $pod := .root.Values.pod -}}
serviceAccountName: {{ default (default (include "reward.fullname" .root) $pod.serviceAccountName) .account }}
automountServiceAccountToken: {{ not (empty .account) }}
enableServiceLinks: false
terminationGracePeriodSeconds: {{ default 30 .grace }}
{{- with .root.Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
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

{{- define "reward.podMetadata" -}}
labels:
  {{- include "reward.labels" . | nindent 2 }}
  {{- with .root.Values.pod.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .root.Values.pod.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Refuse contradictory values, each with a remedy. */}}
{{- define "reward.checks" -}}
{{- $v := .Values -}}
{{- $sources := compact (list $v.model.existingClaim $v.model.image $v.function.existingConfigMap) -}}
{{- if ne (len $sources) 1 -}}
{{- fail "model.existingClaim, model.image and function.existingConfigMap: exactly one of them must be set" -}}
{{- end -}}
{{- if and (hasSuffix "-cuda" $v.image.tag) (eq (int $v.gpus) 0) -}}
{{- fail "image.tag is a CUDA image and gpus is 0: set gpus=1, or use the CPU image" -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas is above maxReplicas: raise maxReplicas" -}}
{{- end -}}
{{- if and $v.registration.enabled (not (and $v.registration.router $v.registration.name $v.registration.url $v.registration.existingSecret)) -}}
{{- fail "registration.enabled needs registration.router, registration.name, registration.url and registration.existingSecret (with the platform team's enrolment-token)" -}}
{{- end -}}
{{- if and $v.registration.enabled $v.discovery.enabled -}}
{{- fail "registration.enabled and discovery.enabled would enrol this service twice: set one of them to false" -}}
{{- end -}}
{{- if and $v.ingress.enabled (not $v.ingress.host) -}}
{{- fail "ingress.enabled needs ingress.host" -}}
{{- end -}}
{{- end -}}
