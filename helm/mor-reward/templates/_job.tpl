{{/* Pod of a job or test: dict root, part, job (name, items, command; enrolment, ca, proxy: Secrets). */}}
{{- define "reward.jobPod" -}}
{{- $set := dict "HOME" "/tmp" -}}
{{- if $.job.ca -}}
{{- $set = set $set "SSL_CERT_FILE" "/etc/mor/tls/ca.crt" -}}
{{- end -}}
restartPolicy: Never
{{- include "reward.pod" $.part | nindent 0 }}
containers:
  - name: {{ $.job.name }}
    image: {{ include "reward.image" $.root | quote }}
    imagePullPolicy: {{ $.root.Values.image.pullPolicy }}
    securityContext:
      {{- include "mor.securityContext" (dict "default" $.root.Values.securityContext "own" $.root.Values.pod.securityContext) | nindent 6 }}
    {{- include "mor.envFrom" $.root.Values.jobs.extraEnvFrom | nindent 4 }}
    resources:
      {{- include "mor.resources" (dict "resources" $.root.Values.jobs.resources "scratch" "100Mi") | fromJson | toYaml | nindent 6 }}
    command: {{ mustToJson $.job.command }}
    env:
      {{- include "reward.mergedEnv" (dict "set" $set "extra" $.root.Values.jobs.extraEnv "path" "jobs.extraEnv") | trim | nindent 6 }}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      - {name: secrets, mountPath: /run/secrets/mor, readOnly: true}
      {{- if $.job.ca }}
      - {name: tls, mountPath: /etc/mor/tls, readOnly: true}
      {{- end }}
      {{- with $.root.Values.jobs.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
volumes:
  - name: tmp
    emptyDir: {sizeLimit: 1Gi}
  - name: secrets
    projected:
      defaultMode: 0440
      sources:
        - secret:
            name: {{ include "reward.secret" $.root }}
            items:
              {{- range $.job.items }}
              - {key: {{ . }}, path: {{ . }}}
              {{- end }}
        {{- with $.job.enrolment }}
        - secret:
            name: {{ . }}
            items: [{key: enrolment-token, path: enrolment-token}]
        {{- end }}
        {{- with $.job.proxy }}
        - secret:
            name: {{ . }}
            items: [{key: url, path: proxy}]
        {{- end }}
  {{- with $.job.ca }}
  - name: tls
    secret:
      secretName: {{ . }}
      defaultMode: 0440
      items: [{key: ca.crt, path: ca.crt}]
  {{- end }}
  {{- with $.root.Values.jobs.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}
