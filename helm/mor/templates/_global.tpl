{{/* Repository of an image, in the registry of the parent chart where that names one: dict root, registry, repository. */}}
{{- define "mor.repository" -}}
{{- $registry := default .registry (default dict .root.Values.global).imageRegistry -}}
{{- printf "%s/%s" $registry .repository | trimPrefix "/" -}}
{{- end -}}

{{/* Secrets for the registry: those of the parent chart and of this one. */}}
{{- define "mor.pullSecrets" -}}
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

{{/* Labels of the series of this release, as the Prometheus operator names them: dict root, components. */}}
{{- define "mor.series" -}}
namespace={{ .root.Release.Namespace | quote }},service=~"{{ include "mor.fullname" .root }}-({{ join "|" .components }})"
{{- end -}}

{{/* Largest number of engines. */}}
{{- define "mor.mostEngines" -}}
{{- with .Values.rollout -}}{{- ternary .autoscaling.maxReplicas .replicas .autoscaling.enabled | int -}}{{- end -}}
{{- end -}}

{{/* Storage class of a volume, quoted; nothing for the cluster's default: dict root, own (the volume's value). */}}
{{- define "mor.storageClass" -}}
{{- $class := default (default dict .root.Values.global).storageClass .own -}}
{{- with $class -}}
{{- eq . "-" | ternary "" . | quote -}}
{{- end -}}
{{- end -}}
