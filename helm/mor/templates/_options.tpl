{{/* Options of a pod's specification that the chart only passes on: its values' `pod`. The same in both charts. */}}
{{- define "mor.podOptions" -}}
{{- range $option := list "runtimeClassName" "schedulerName" "dnsPolicy" "dnsConfig" "hostAliases" -}}
{{- with get $ $option }}
{{ $option }}: {{ mustToJson . }}
{{- end -}}
{{- end -}}
{{- end -}}
