{{- define "mor.fullname" -}}
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

{{/* Labels by which a component's pods are found: dict root, component. */}}
{{- define "mor.selectorLabels" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* All labels of an object: dict root, component; labels (further ones). */}}
{{- define "mor.labels" -}}
{{ include "mor.selectorLabels" . }}
app.kubernetes.io/part-of: mor
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with merge (dict) (default dict .labels) .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Name, namespace and labels: dict root, component; suffix where the name is another than the component's; labels
(further ones); annotations. */}}
{{- define "mor.metadata" -}}
name: {{ include "mor.fullname" .root }}-{{ default .component .suffix }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "mor.labels" . | nindent 2 }}
{{- with merge (dict) (default dict .annotations) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Image of a component: dict root, values. */}}
{{- define "mor.image" -}}
{{- $image := .values.image -}}
{{- $gpu := gt (int (default 0 .values.gpus)) 0 -}}
{{- $tag := printf "%s%s" (default .root.Chart.AppVersion .root.Values.image.tag) ($gpu | ternary "-cuda" "") -}}
{{- $name := include "mor.repository" (dict "root" .root "registry" .root.Values.image.registry "repository" $image.repository) -}}
{{- if $image.digest -}}{{ $name }}@{{ $image.digest }}{{- else -}}{{ $name }}:{{ default $tag $image.tag }}{{- end -}}
{{- end -}}

{{- define "mor.serviceAccount" -}}
{{- $own := .values.pod.serviceAccountName -}}
{{- default (printf "%s-%s" (include "mor.fullname" .root) .component) $own -}}
{{- end -}}

{{- define "mor.authSecret" -}}
{{- default (printf "%s-auth" (include "mor.fullname" .)) .Values.auth.existingSecret -}}
{{- end -}}

{{/* Processes with a user of their own in Redis, as in files/redis-users.txt. */}}
{{- define "mor.redisUsers" -}}
{{- list "control" "worker" "rollout" "router" | mustToJson -}}
{{- end -}}

{{- define "mor.redisSecret" -}}
{{- if .Values.redis.bundled -}}
{{- default (printf "%s-valkey" (include "mor.fullname" .)) .Values.valkey.existingSecret -}}
{{- else -}}
{{- .Values.redis.external.existingSecret -}}
{{- end -}}
{{- end -}}

{{- define "mor.runsClaim" -}}
{{- default (printf "%s-runs" (include "mor.fullname" .)) .Values.control.runs.existingClaim -}}
{{- end -}}

{{- define "mor.stateClaim" -}}
{{- default (printf "%s-router-state" (include "mor.fullname" .)) .Values.router.state.existingClaim -}}
{{- end -}}

{{- define "mor.scheme" -}}
{{- ternary "https" "http" (ne .Values.tls.existingSecret "") -}}
{{- end -}}

{{/* Address of a service inside the cluster: dict root, component. */}}
{{- define "mor.url" -}}
{{- $port := get (dict "control" 8300 "router" 8100 "rollout" 8200) .component -}}
{{ include "mor.scheme" .root }}://{{ include "mor.fullname" .root }}-{{ .component }}:{{ $port }}
{{- end -}}

{{/* Whether a model is one of the hub: its name. */}}
{{- define "mor.hubModel" -}}
{{- if and . (not (hasPrefix "/" .)) -}}yes{{- end -}}
{{- end -}}

{{/* Whether pods download from the model hub. */}}
{{- define "mor.usesHub" -}}
{{- range list .Values.model.name .Values.router.settings.embed_text_model .Values.router.settings.embed_image_model -}}
{{- include "mor.hubModel" . -}}
{{- end -}}
{{- end -}}
