{{/* Parts common to all pods: dict root, component, values, grace, replicas; sharesRuns: a volume keeps them on one node. */}}
{{- define "mor.pod" -}}
{{- $pod := .values.pod -}}
serviceAccountName: {{ include "mor.serviceAccount" . }}
automountServiceAccountToken: {{ default false .token }}
enableServiceLinks: false
terminationGracePeriodSeconds: {{ default 30 .grace }}
securityContext:
  {{- include "mor.securityContext" (dict "default" .root.Values.podSecurityContext "own" $pod.podSecurityContext) | nindent 2 }}
{{- include "mor.podOptions" $pod }}
{{- with $pod.initContainers }}
initContainers:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- include "mor.pullSecrets" .root }}
{{- with default .root.Values.priorityClassName $pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $pod.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "mor.tolerations" . }}
tolerations:
  {{- . | nindent 2 }}
{{- end }}
{{- with include "mor.affinity" . }}
affinity:
  {{- . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
{{- if $pod.topologySpreadConstraints }}
  {{- toYaml $pod.topologySpreadConstraints | nindent 2 }}
{{- else if .sharesRuns }} []
{{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "mor.selectorLabels" . | nindent 8 }}
{{- end }}
{{- end -}}

{{/* Labels and annotations of a pod: dict root, component, values. Without the chart's version, so that a new one that
changes nothing else rolls no pod. */}}
{{- define "mor.podMetadata" -}}
labels:
  {{- include "mor.selectorLabels" . | nindent 2 }}
  app.kubernetes.io/part-of: mor
  {{- with merge (dict) (default dict .values.pod.labels) .root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (default dict .values.pod.annotations) (fromYaml (include "mor.checksums" .)) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Image, security and resources of a container: dict root, values; gpus and their resource are added. */}}
{{- define "mor.container" -}}
image: {{ include "mor.image" . | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  {{- include "mor.securityContext" (dict "default" .root.Values.securityContext "own" .values.pod.securityContext) | nindent 2 }}
{{- include "mor.envFrom" .values.pod.extraEnvFrom }}
resources:
  {{- $resources := include "mor.resources" (dict "resources" .values.resources "scratch" (include "mor.scratch" .)) | fromJson }}
  {{- if gt (int (default 0 .values.gpus)) 0 }}
  {{- $gpus := dict .values.gpuResource (toString .values.gpus) }}
  {{- $resources = mustMergeOverwrite $resources (dict "requests" $gpus "limits" (deepCopy $gpus)) }}
  {{- end }}
  {{- toYaml $resources | nindent 2 }}
{{- end -}}

{{/* Environment: dict root, values, set (variables of the chart's own, by name). */}}
{{- define "mor.env" -}}
{{- $set := merge (dict "MOR_SECRETS_DIR" "/run/secrets/mor" "MOR_LOG_FORMAT" "json" "HOME" "/tmp" "OMP_NUM_THREADS" "1") .set -}}
{{- with .root.Values.tracing.endpoint -}}
{{- $set = set $set "OTEL_EXPORTER_OTLP_ENDPOINT" . -}}
{{- $set = set $set "OTEL_TRACES_SAMPLER" "parentbased_traceidratio" -}}
{{- $set = set $set "OTEL_TRACES_SAMPLER_ARG" $.root.Values.tracing.ratio -}}
{{- end -}}
{{- /* Libraries take as many threads as the process itself. */ -}}
{{- with default dict .values.settings -}}
{{- with default .torch_threads .threads -}}{{- $set = set $set "OMP_NUM_THREADS" . -}}{{- end -}}
{{- end -}}
{{- range $name, $value := default dict .values.settings -}}
{{- $set = set $set (printf "MOR_%s" (upper $name)) (kindIs "string" $value | ternary $value (mustToJson $value)) -}}
{{- end -}}
{{- $files := list -}}
{{- if and (eq .component "control") .root.Values.control.alertWebhook.existingSecret -}}{{- $files = list "MOR_ALERT_WEBHOOK_TOKEN" -}}{{- end -}}
{{- if and (eq .component "router") .root.Values.router.clientProxy.existingSecret -}}{{- $files = list "MOR_CLIENT_PROXY" -}}{{- end -}}
{{- include "mor.mergedEnv" (dict "set" $set "files" $files "extra" .values.pod.extraEnv "path" (printf "%s.pod.extraEnv" .component) "settings" .values.settings "settingsPath" (printf "%s.settings" .component)) | trim }}
{{- if and (eq .component "worker") (include "mor.broadcasts" .root) }}
{{- include "mor.transferEnv" .root }}
{{- end }}
{{- end -}}

{{/* Variables of a process that serves HTTP: dict root, port. */}}
{{- define "mor.serving" -}}
MOR_HOST: {{ .root.Values.listenAddress | quote }}
MOR_PORT: {{ .port | quote }}
MOR_METRICS_PORT: "9090"
MOR_TOKENS_FILE: /run/secrets/mor/tokens.json
{{- if .root.Values.tls.existingSecret }}
MOR_TLS_CERT_FILE: /etc/mor/tls/tls.crt
MOR_TLS_KEY_FILE: /etc/mor/tls/tls.key
{{- end }}
{{- end -}}

{{/* Variables of a process that calls run control. */}}
{{- define "mor.callingControl" -}}
{{- if .Values.tls.existingSecret }}
MOR_CONTROL_CA_FILE: /etc/mor/tls/ca.crt
{{- end }}
{{- end -}}

{{/* Variables of a process that loads models. */}}
{{- define "mor.loading" -}}
HF_HOME: /cache
XDG_CACHE_HOME: /tmp/cache
{{- if not (include "mor.usesHub" .) }}
HF_HUB_OFFLINE: "1"
{{- end }}
{{- if .Values.model.existingHubSecret }}
HF_TOKEN_PATH: /run/secrets/hub/token
{{- end }}
{{- end -}}

{{/* Probes of an HTTP service, and its wait before SIGTERM: dict root, values, startup (seconds). */}}
{{- define "mor.probes" -}}
{{- with int .root.Values.preStopSeconds }}
lifecycle:
  preStop: {sleep: {seconds: {{ . }}}}
{{- end }}
{{- $scheme := include "mor.scheme" .root | upper }}
startupProbe:
  # Not /readyz: a service that waits for the queue server must not be killed, and load its model again, meanwhile.
  httpGet: {path: /startupz, port: http, scheme: {{ $scheme }}}
  {{- include "mor.timing" (dict "default" (dict "periodSeconds" 5 "timeoutSeconds" 5 "failureThreshold" (div (add .startup 4) 5)) "own" .values.pod.startupProbe) | nindent 2 }}
livenessProbe:
  httpGet: {path: /healthz, port: http, scheme: {{ $scheme }}}
  {{- include "mor.timing" (dict "default" (dict "periodSeconds" 20 "timeoutSeconds" 10 "failureThreshold" 6) "own" .values.pod.livenessProbe) | nindent 2 }}
readinessProbe:
  httpGet: {path: /readyz, port: http, scheme: {{ $scheme }}}
  {{- include "mor.timing" (dict "default" (dict "periodSeconds" 10 "timeoutSeconds" 6 "failureThreshold" 3) "own" .values.pod.readinessProbe) | nindent 2 }}
{{- end -}}

{{/* Volumes of every process of MoR's own: dict root, values, secrets (key of the auth Secret -> file), others (of
other Secrets: list of dict secret, key, path). */}}
{{- define "mor.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 10Gi}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      - secret:
          name: {{ include "mor.redisSecret" .root }}
          items:
            {{- $own := or .root.Values.redis.bundled .root.Values.redis.external.perService }}
            - {key: {{ $own | ternary (printf "%s-url" .component) .root.Values.redis.external.key }}, path: mor_redis_url}
      - secret:
          name: {{ include "mor.authSecret" .root }}
          items:
            {{- range $key, $path := .secrets }}
            - {key: {{ $key }}, path: {{ $path }}}
            {{- end }}
      {{- range .others }}
      - secret: {name: {{ .secret }}, items: [{key: {{ .key }}, path: {{ .path }}}]}
      {{- end }}
{{- if and (not .root.Values.redis.bundled) .root.Values.redis.external.existingCaSecret }}
- name: redis-ca
  secret:
    secretName: {{ .root.Values.redis.external.existingCaSecret }}
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}
{{- with .root.Values.tls.existingSecret }}
- name: tls
  secret: {secretName: {{ . }}, defaultMode: 0440{{ if eq $.component "worker" }}, items: [{key: ca.crt, path: ca.crt}]{{ end }}}
{{- end }}
{{- with .values.pod.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "mor.volumeMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: secrets, mountPath: /run/secrets/mor, readOnly: true}
{{- if and (not .root.Values.redis.bundled) .root.Values.redis.external.existingCaSecret }}
- {name: redis-ca, mountPath: /etc/mor/redis, readOnly: true}
{{- end }}
{{- if .root.Values.tls.existingSecret }}
- {name: tls, mountPath: /etc/mor/tls, readOnly: true}
{{- end }}
{{- with .values.pod.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Checkpoints and the hub's cache. */}}
{{- define "mor.modelVolumes" -}}
{{- with .Values.model.existingClaim }}
- name: models
  persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}
{{- end }}
- name: cache
{{- if .Values.model.cache.existingClaim }}
  persistentVolumeClaim: {claimName: {{ .Values.model.cache.existingClaim }}}
{{- else }}
  emptyDir: {sizeLimit: {{ .Values.model.cache.size }}}
{{- end }}
{{- with .Values.model.existingHubSecret }}
- name: hub
  secret: {secretName: {{ . }}, defaultMode: 0440, items: [{key: token, path: token}]}
{{- end }}
{{- end -}}

{{- define "mor.modelMounts" -}}
{{- if .Values.model.existingClaim }}
- {name: models, mountPath: /models, readOnly: true}
{{- end }}
- {name: cache, mountPath: /cache}
{{- if .Values.model.existingHubSecret }}
- {name: hub, mountPath: /run/secrets/hub, readOnly: true}
{{- end }}
{{- end -}}

{{/* Runs, prompts and the prompts of `helm test`, as run control and the workers see them. */}}
{{- define "mor.runVolumes" -}}
- name: runs
  persistentVolumeClaim: {claimName: {{ include "mor.runsClaim" . }}}
- name: check
  configMap: {name: {{ include "mor.fullname" . }}-check, items: [{key: prompts.jsonl, path: prompts.jsonl}]}
{{- with .Values.data.existingClaim }}
- name: data
  persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}
{{- end }}
{{- end -}}

{{- define "mor.runMounts" -}}
- {name: runs, mountPath: /runs}
- {name: check, mountPath: /etc/mor/check, readOnly: true}
{{- if .Values.data.existingClaim }}
- {name: data, mountPath: /data, readOnly: true}
{{- end }}
{{- end -}}
