{{/* Secrets that jobs generate; no manifest has their values, so that no rollback brings an old one back. */}}
{{- define "mor.wantedSecrets" -}}
{{- $wanted := list -}}
{{- if not .Values.auth.existingSecret -}}
{{- $tokens := list (dict "name" "operator" "scope" "admin" "key" "admin-token") (dict "name" "mor" "scope" "service" "key" "service-token") -}}
{{- range .Values.auth.tokens -}}
{{- $source := ternary (dict "key" (printf "%s-token" .name)) (dict "sha256" .sha256) (empty .sha256) -}}
{{- $tokens = append $tokens (merge (dict "name" .name "scope" .scope) $source) -}}
{{- end -}}
{{- $wanted = append $wanted (dict "secret" (include "mor.authSecret" .) "tokens" $tokens "key_ring" "secret-key") -}}
{{- end -}}
{{- if and .Values.redis.bundled (not .Values.valkey.existingSecret) -}}
{{- $name := include "mor.redisSecret" . -}}
{{- $wanted = append $wanted (dict "secret" $name "users" (include "mor.redisUsers" . | fromJsonArray) "address" (printf "%s:6379" $name)) -}}
{{- end -}}
{{- with $wanted -}}{{- mustToJson . -}}{{- end -}}
{{- end -}}

{{/* Names of Secrets that the manifest of a former chart created, as JSON; empty where there are none. */}}
{{- define "mor.formerSecrets" -}}
{{- $former := list -}}
{{- range include "mor.wantedSecrets" . | fromJsonArray -}}
{{- $owner := dig "metadata" "annotations" "meta.helm.sh/release-name" "" (lookup "v1" "Secret" $.Release.Namespace .secret) -}}
{{- if eq $owner $.Release.Name -}}{{- $former = append $former .secret -}}{{- end -}}
{{- end -}}
{{- with $former -}}{{- mustToJson . -}}{{- end -}}
{{- end -}}

{{/* Service account of a job with what it may do, and its way to the API server: dict root, suffix; annotations. */}}
{{- define "mor.secretsAccess" -}}
{{- $names := list -}}
{{- range include "mor.wantedSecrets" .root | fromJsonArray }}{{ $names = append $names .secret }}{{ end -}}
{{- $metadata := include "mor.metadata" (dict "root" .root "component" "secrets" "suffix" .suffix) -}}
{{- $name := (fromYaml $metadata).name -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- $metadata | nindent 2 }}
  {{- with .annotations }}{{ . | nindent 2 }}{{ end }}
automountServiceAccountToken: false
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  {{- $metadata | nindent 2 }}
  {{- with .annotations }}{{ . | nindent 2 }}{{ end }}
rules:
  - apiGroups: [""]
    resources: [secrets]
    resourceNames: {{ mustToJson $names }}
    verbs: [get, patch]
  # A Role cannot limit this to names: the object has none yet when the rule is checked.
  - apiGroups: [""]
    resources: [secrets]
    verbs: [create]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  {{- $metadata | nindent 2 }}
  {{- with .annotations }}{{ . | nindent 2 }}{{ end }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: {{ $name }}}
subjects:
  - {kind: ServiceAccount, name: {{ $name }}, namespace: {{ .root.Release.Namespace }}}
{{- if .root.Values.networkPolicy.enabled }}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- $metadata | nindent 2 }}
  {{- with .annotations }}{{ . | nindent 2 }}{{ end }}
spec:
  podSelector:
    matchLabels:
      {{- include "mor.selectorLabels" (dict "root" .root "component" "secrets") | nindent 6 }}
  policyTypes: [Ingress, Egress]
  egress:
    - to:
        {{- range .root.Values.networkPolicy.apiServerCIDRs }}
        - ipBlock: {cidr: {{ . | quote }}}
        {{- end }}
      ports:
        {{- range .root.Values.networkPolicy.apiServerPorts }}
        - {protocol: TCP, port: {{ . }}}
        {{- end }}
{{- end }}
{{- end -}}

{{/* Job that changes Secrets: dict root, suffix (as in its service account), action. Pods wait for `settle`: it has no
deadline, in which a slow registry or an API server that is away would end it for good. */}}
{{- define "mor.secretsJob" -}}
{{- $pod := merge (dict "serviceAccountName" (printf "%s-%s" (include "mor.fullname" .root) .suffix)) .root.Values.apply.pod -}}
{{- $values := dict "image" .root.Values.router.image "resources" .root.Values.apply.resources "pod" $pod -}}
{{- $part := dict "root" .root "component" "secrets" "values" $values "token" true -}}
{{- if eq .action "settle" -}}
backoffLimit: 1000
{{- else -}}
backoffLimit: 5
activeDeadlineSeconds: 900
{{- end }}
template:
  metadata:
    {{- include "mor.podMetadata" $part | nindent 4 }}
  spec:
    restartPolicy: {{ eq .action "settle" | ternary "OnFailure" "Never" }}
    {{- include "mor.pod" $part | nindent 4 }}
    containers:
      - name: secrets
        {{- include "mor.container" $part | nindent 8 }}
        command: [python, -m, mor_core.secrets_job, {{ .action }}]
        env:
          {{- $set := dict "HOME" "/tmp" "MOR_SECRETS" "all" "MOR_WANTED_SECRETS" (include "mor.wantedSecrets" .root) }}
          {{- include "mor.mergedEnv" (dict "set" $set "extra" .root.Values.apply.pod.extraEnv "path" "apply.pod.extraEnv") | trim | nindent 10 }}
        {{- with .root.Values.apply.pod.extraVolumeMounts }}
        volumeMounts:
          {{- toYaml . | nindent 10 }}
        {{- end }}
    {{- with .root.Values.apply.pod.extraVolumes }}
    volumes:
      {{- toYaml . | nindent 6 }}
    {{- end }}
{{- end -}}
