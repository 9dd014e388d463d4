{{/* Variables of whole ConfigMaps and Secrets: entries of `envFrom`, over which Kubernetes prefers those that have a name. */}}
{{- define "mor.envFrom" -}}
{{- with . }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* Timing of a probe: dict default (its fields), own (fields of the values). */}}
{{- define "mor.timing" -}}
{{- toYaml (merge (dict) (default dict .own) .default) -}}
{{- end -}}

{{/* Options of a pod's specification that the chart only passes on: its values' `pod`. The same in both charts. */}}
{{- define "mor.podOptions" -}}
{{- range $option := list "runtimeClassName" "schedulerName" "dnsPolicy" "dnsConfig" "hostAliases" -}}
{{- with get $ $option }}
{{ $option }}: {{ mustToJson . }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Resources with a request for local disk, which also follows from a limit of one's own, as JSON: dict resources,
scratch (the request). The same in both charts. */}}
{{- define "mor.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if and .scratch (not (hasKey (default dict $resources.limits) "ephemeral-storage")) -}}
{{- $resources = set $resources "requests" (merge (dict) (default dict $resources.requests) (dict "ephemeral-storage" .scratch)) -}}
{{- end -}}
{{- mustToJson $resources -}}
{{- end -}}
