{{/*
Annotations by which a changed ConfigMap or Secret rolls the pods that read it once, at their start. Tokens and
certificates are read again by running services, and are left out. Secrets are compared where a cluster answers; those
that the chart itself generates do not exist yet at the first rendering, and are left out.
*/}}
{{- define "mor.checksums" -}}
{{- $root := .root -}}
{{- if eq .component "valkey" }}
checksum/config: {{ include "mor.valkeyConfig" $root | sha256sum }}
{{- else if has .component (list "control" "worker") }}
checksum/config: {{ include "mor.checkPrompts" $root | sha256sum }}
{{- end }}
{{- $values := dict -}}
{{- range include "mor.readOnce" . | fromJsonArray -}}
{{- $data := default dict (lookup "v1" "Secret" $root.Release.Namespace .secret).data -}}
{{- $values = merge $values (dict .secret (pick $data .key)) -}}
{{- end }}
{{- with compact (values $values) }}
checksum/secrets: {{ mustToJson $values | sha256sum }}
{{- end }}
{{- end -}}

{{/* Values of existing Secrets that a component reads at its start, as a list of dict secret, key: dict root, component. */}}
{{- define "mor.readOnce" -}}
{{- $v := .root.Values -}}
{{- $read := list -}}
{{- if eq .component "valkey" -}}
{{- range include "mor.redisUsers" .root | fromJsonArray -}}
{{- $read = append $read (dict "secret" $v.valkey.existingSecret "key" (printf "%s-password" .)) -}}
{{- end -}}
{{- else if has .component (list "control" "worker" "rollout" "router") -}}
{{- $own := or $v.redis.bundled $v.redis.external.perService -}}
{{- $address := ternary $v.valkey.existingSecret $v.redis.external.existingSecret $v.redis.bundled -}}
{{- $read = append $read (dict "secret" $address "key" ($own | ternary (printf "%s-url" .component) $v.redis.external.key)) -}}
{{- $read = append $read (dict "secret" $v.auth.existingSecret "key" "service-token") -}}
{{- if eq .component "router" -}}
{{- $read = append $read (dict "secret" $v.auth.existingSecret "key" "secret-key") -}}
{{- $read = append $read (dict "secret" $v.router.clientProxy.existingSecret "key" "url") -}}
{{- else if eq .component "control" -}}
{{- $read = append $read (dict "secret" $v.control.alertWebhook.existingSecret "key" "token") -}}
{{- $read = append $read (dict "secret" $v.control.database.external.existingSecret "key" $v.control.database.external.key) -}}
{{- end -}}
{{- end -}}
{{- $named := list -}}
{{- range $read -}}{{- if .secret -}}{{- $named = append $named . -}}{{- end -}}{{- end -}}
{{- mustToJson $named -}}
{{- end -}}
