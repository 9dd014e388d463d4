{{/* Secrets that jobs generate; no manifest has their values, so that no rollback brings an old one back. */}}
{{- define "reward.wantedSecrets" -}}
{{- if not .Values.auth.existingSecret -}}
{{- $token := dict "name" "router" "scope" "service" "key" "token" -}}
{{- list (dict "secret" (include "reward.secret" .) "tokens" (list $token) "texts" (list "page-token")) | mustToJson -}}
{{- end -}}
{{- end -}}

{{/* Names of Secrets that the manifest of a former chart created, as JSON; empty where there are none. */}}
{{- define "reward.formerSecrets" -}}
{{- $former := list -}}
{{- range include "reward.wantedSecrets" . | fromJsonArray -}}
{{- $owner := dig "metadata" "annotations" "meta.helm.sh/release-name" "" (lookup "v1" "Secret" $.Release.Namespace .secret) -}}
{{- if eq $owner $.Release.Name -}}{{- $former = append $former .secret -}}{{- end -}}
{{- end -}}
{{- with $former -}}{{- mustToJson . -}}{{- end -}}
{{- end -}}

{{/* Service account of a job with what it may do, and its way to the API server: dict root, suffix; annotations. */}}
{{- define "reward.secretsAccess" -}}
{{- $names := list -}}
{{- range include "reward.wantedSecrets" .root | fromJsonArray }}{{ $names = append $names .secret }}{{ end -}}
{{- $metadata := include "reward.metadata" (dict "root" .root "component" "secrets" "suffix" .suffix) -}}
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
      {{- include "reward.selectorLabels" (dict "root" .root "component" "secrets") | nindent 6 }}
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
{{- define "reward.secretsJob" -}}
{{- $part := dict "root" .root "component" "secrets" "account" (printf "%s-%s" (include "reward.fullname" .root) .suffix) -}}
{{- if eq .action "settle" -}}
backoffLimit: 1000
{{- else -}}
backoffLimit: 5
activeDeadlineSeconds: 900
{{- end }}
template:
  metadata:
    {{- include "reward.podMetadata" $part | nindent 4 }}
  spec:
    restartPolicy: {{ eq .action "settle" | ternary "OnFailure" "Never" }}
    {{- include "reward.pod" $part | nindent 4 }}
    containers:
      - name: secrets
        image: {{ include "reward.image" .root | quote }}
        imagePullPolicy: {{ .root.Values.image.pullPolicy }}
        securityContext:
          {{- include "mor.securityContext" (dict "default" .root.Values.securityContext "own" .root.Values.pod.securityContext) | nindent 10 }}
        {{- include "mor.envFrom" .root.Values.jobs.extraEnvFrom | nindent 8 }}
        resources:
          {{- toYaml .root.Values.jobs.resources | nindent 10 }}
        command: [python, -m, mor_core.secrets_job, {{ .action }}]
        env:
          {{- $set := dict "HOME" "/tmp" "MOR_SECRETS" "all" "MOR_WANTED_SECRETS" (include "reward.wantedSecrets" .root) }}
          {{- include "reward.mergedEnv" (dict "set" $set "extra" .root.Values.jobs.extraEnv "path" "jobs.extraEnv") | trim | nindent 10 }}
        {{- with .root.Values.jobs.extraVolumeMounts }}
        volumeMounts:
          {{- toYaml . | nindent 10 }}
        {{- end }}
    {{- with .root.Values.jobs.extraVolumes }}
    volumes:
      {{- toYaml . | nindent 6 }}
    {{- end }}
{{- end -}}
