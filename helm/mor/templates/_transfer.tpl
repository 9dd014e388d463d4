{{/* Whether workers broadcast weights to the engines. */}}
{{- define "mor.broadcasts" -}}
{{- if eq (toString .Values.rollout.settings.weight_transfer) "nccl" -}}yes{{- end -}}
{{- end -}}

{{/* Addresses of all engines, as JSON; nothing where they are not known. */}}
{{- define "mor.transferEngines" -}}
{{- if .Values.worker.settings.transfer_engines -}}
{{- mustToJson .Values.worker.settings.transfer_engines -}}
{{- else if le (int .Values.rollout.replicas) 1 -}}
{{- list (include "mor.url" (dict "root" . "component" "rollout")) | mustToJson -}}
{{- end -}}
{{- end -}}

{{/* Variables of a worker that broadcasts. */}}
{{- define "mor.transferEnv" -}}
{{- $settings := .Values.worker.settings -}}
{{- $named := list -}}
{{- range default list .Values.worker.pod.extraEnv -}}{{- $named = append $named .name -}}{{- end -}}
{{- if not (or $settings.transfer_engines (has "MOR_TRANSFER_ENGINES" $named)) }}
- name: MOR_TRANSFER_ENGINES
  value: {{ include "mor.transferEngines" . | quote }}
{{- end }}
{{- if not (or $settings.transfer_address (has "MOR_TRANSFER_ADDRESS" $named)) }}
- name: MOR_TRANSFER_ADDRESS
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- end }}
{{- end -}}
