{{/* Pod of a job or test: dict root, part, job (name, items, command; enrolment, ca: Secrets). */}}
{{- define "reward.jobPod" -}}
restartPolicy: Never
{{- include "reward.pod" $.part | nindent 0 }}
containers:
  - name: {{ $.job.name }}
    image: {{ include "reward.image" $.root | quote }}
    imagePullPolicy: {{ $.root.Values.image.pullPolicy }}
    securityContext:
      {{- include "mor.securityContext" (dict "default" $.root.Values.securityContext "own" $.root.Values.pod.securityContext) | nindent 6 }}
    resources: {requests: {cpu: 50m, memory: 256Mi, ephemeral-storage: 100Mi}, limits: {cpu: 500m, memory: 512Mi}}
    command: {{ mustToJson $.job.command }}
    env:
      - {name: HOME, value: /tmp}
      {{- if $.job.ca }}
      - {name: SSL_CERT_FILE, value: /etc/mor/tls/ca.crt}
      {{- end }}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      - {name: secrets, mountPath: /run/secrets/mor, readOnly: true}
      {{- if $.job.ca }}
      - {name: tls, mountPath: /etc/mor/tls, readOnly: true}
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
  {{- with $.job.ca }}
  - name: tls
    secret:
      secretName: {{ . }}
      defaultMode: 0440
      items: [{key: ca.crt, path: ca.crt}]
  {{- end }}
{{- end -}}
