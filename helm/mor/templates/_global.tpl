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

{{/* Address of the runbooks. */}}
{{- define "mor.runbooks" -}}
{{- $home := default "" .Chart.Home -}}
{{- $own := regexMatch "^https?://" $home | ternary (printf "%s/blob/v%s/docs/runbooks.md" (trimSuffix "/" $home) .Chart.AppVersion) "" -}}
{{- $address := default $own .Values.metrics.prometheusRule.runbooksUrl -}}
{{- if not (regexMatch "^https?://" $address) -}}
{{- fail (printf "metrics.prometheusRule.runbooksUrl is %q: name the address at which your team reads docs/runbooks.md, with https://" $address) -}}
{{- end -}}
{{- $address -}}
{{- end -}}

{{/* Largest number of engines. */}}
{{- define "mor.mostEngines" -}}
{{- with .Values.rollout -}}{{- ternary .autoscaling.maxReplicas .replicas .autoscaling.enabled | int -}}{{- end -}}
{{- end -}}

{{/* Storage class of a volume; nothing for the cluster's default: dict root, own (the volume's value). */}}
{{- define "mor.storageClass" -}}
{{- default (default dict .root.Values.global).storageClass .own -}}
{{- end -}}

{{/* Name of the Role in client namespaces, which a release of the same name in another namespace has too. */}}
{{- define "mor.discoveryRole" -}}
{{- $name := include "mor.fullname" . -}}
{{- printf "%s-discovery-%s" $name (printf "%s/%s" .Release.Namespace $name | sha256sum | trunc 8) -}}
{{- end -}}
