{{/* Pod of a job or test: dict root, part, kind. */}}
{{- define "mor.jobPod" -}}
{{- $set := dict "HOME" "/tmp" "MOR_ADMIN_TOKEN_FILE" "/run/secrets/mor/admin-token" "MOR_TIMEOUT_S" $.kind.deadline -}}
{{- range $service := list "control" "router" "rollout" -}}
{{- $set = set $set (printf "MOR_%s" (upper $service)) (include "mor.url" (dict "root" $.root "component" $service)) -}}
{{- end -}}
{{- if $.root.Values.tls.existingSecret -}}
{{- $set = set $set "SSL_CERT_FILE" "/etc/mor/tls/ca.crt" -}}
{{- end -}}
restartPolicy: Never
{{- include "mor.pod" $.part | nindent 0 }}
containers:
  - name: {{ $.kind.name }}
    {{- include "mor.container" $.part | nindent 4 }}
    command: [python, /etc/mor/work/{{ $.kind.file }}]
    env:
      {{- include "mor.mergedEnv" (dict "set" $set "extra" $.root.Values.apply.pod.extraEnv "path" "apply.pod.extraEnv") | trim | nindent 6 }}
    volumeMounts:
      - {name: work, mountPath: /etc/mor/work, readOnly: true}
      - {name: tmp, mountPath: /tmp}
      - {name: secrets, mountPath: /run/secrets/mor, readOnly: true}
      {{- if $.root.Values.tls.existingSecret }}
      - {name: tls, mountPath: /etc/mor/tls, readOnly: true}
      {{- end }}
      {{- if $.root.Values.data.existingClaim }}
      - {name: data, mountPath: /data, readOnly: true}
      {{- end }}
      {{- with $.root.Values.apply.pod.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
  {{- with $.root.Values.apply.pod.extraContainers }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumes:
  - name: work
    configMap: {name: {{ include "mor.fullname" $.root }}-{{ $.kind.name }}}
  - name: tmp
    emptyDir: {sizeLimit: 1Gi}
  - name: secrets
    secret: {secretName: {{ include "mor.authSecret" $.root }}, defaultMode: 0440, items: [{key: admin-token, path: admin-token}]}
  {{- with $.root.Values.tls.existingSecret }}
  - name: tls
    secret: {secretName: {{ . }}, defaultMode: 0440, items: [{key: ca.crt, path: ca.crt}]}
  {{- end }}
  {{- with $.root.Values.data.existingClaim }}
  - name: data
    persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}
  {{- end }}
  {{- with $.root.Values.apply.pod.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}
