{{/* Address of a worker that broadcasts: its pod's own. */}}
{{- define "mor.transferEnv" -}}
{{- $named := list -}}
{{- range default list .Values.worker.pod.extraEnv -}}{{- $named = append $named .name -}}{{- end -}}
{{- if not (or .Values.worker.settings.transfer_address (has "MOR_TRANSFER_ADDRESS" $named)) }}
- name: MOR_TRANSFER_ADDRESS
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- end }}
{{- end -}}
