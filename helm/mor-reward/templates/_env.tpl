{{/* Environment of a container, one entry for each name: dict set (the chart's own, by name), extra (entries of the
values), path (of these in the values); settings, settingsPath: those of the values that `set` holds. */}}
{{- define "reward.mergedEnv" -}}
{{- $own := .set -}}
{{- $ofSettings := dict -}}
{{- range $name, $_ := default dict .settings -}}{{- $ofSettings = set $ofSettings (printf "MOR_%s" (upper $name)) $name -}}{{- end -}}
{{- /* Only these change nothing that another object of the chart relies on. */ -}}
{{- $replaceable := list "HF_HOME" "HF_HUB_OFFLINE" "HF_TOKEN_PATH" "HOME" "MOR_LOG_FORMAT" "OMP_NUM_THREADS" "SSL_CERT_FILE" "XDG_CACHE_HOME" -}}
{{- $files := list "MOR_ENROLMENT_TOKEN" -}}
{{- $seen := dict -}}
{{- range $entry := default list .extra -}}
{{- $name := default "" $entry.name -}}
{{- if not $name -}}
{{- fail (printf "%s has an entry without a name: write {name: ..., value: ...}" $.path) -}}
{{- else if hasKey $seen $name -}}
{{- fail (printf "%s names %s twice: keep one" $.path $name) -}}
{{- else if hasKey $ofSettings $name -}}
{{- fail (printf "%s names %s, which %s.%s sets already: keep one" $.path $name $.settingsPath (get $ofSettings $name)) -}}
{{- else if has $name $files -}}
{{- fail (printf "%s names %s, which the chart takes from a Secret: remove it, and name your own Secret (auth.existingSecret)" $.path $name) -}}
{{- else if and (hasKey $own $name) (not (or (has $name $replaceable) (hasPrefix "OTEL_" $name))) -}}
{{- fail (printf "%s names %s, which the chart sets to %q, as its other objects rely on: remove it" $.path $name (get $own $name | toString)) -}}
{{- end -}}
{{- $seen = set $seen $name true -}}
{{- end -}}
{{- range $name := keys $own | sortAlpha }}
{{- if not (hasKey $seen $name) }}
- name: {{ $name }}
  value: {{ get $own $name | toString | quote }}
{{- end }}
{{- end }}
{{- with .extra }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Settings of a reward model that runs elsewhere, as YAML. */}}
{{- define "reward.upstreamEnv" -}}
{{- with .Values.upstream -}}
MOR_UPSTREAM: {{ .protocol | quote }}
MOR_UPSTREAM_URL: {{ .url | quote }}
{{- with .model }}
MOR_UPSTREAM_MODEL: {{ . | quote }}
{{- end }}
{{- with .version }}
MOR_UPSTREAM_VERSION: {{ . | quote }}
{{- end }}
{{- with .options }}
MOR_UPSTREAM_OPTIONS: {{ mustToJson . | quote }}
{{- end }}
{{- with .template }}
MOR_TEMPLATE: {{ . | quote }}
{{- end }}
{{- if .seesPictures }}
MOR_SEES_PICTURES: "true"
{{- end }}
{{- if .existingSecret }}
MOR_UPSTREAM_KEY_FILE: /run/secrets/upstream/key
{{- end }}
{{- end -}}
{{- end -}}

{{/* Egress rule to a reward model that runs elsewhere, at the port of its address. */}}
{{- define "reward.toUpstream" -}}
{{- $address := urlParse .url -}}
{{- $port := regexFind "[0-9]+$" (regexFind ":[0-9]+$" $address.host) | default (ternary "443" "80" (eq $address.scheme "https")) -}}
- to:
    {{- range .cidrs }}
    - ipBlock: {cidr: {{ . | quote }}}
    {{- end }}
  ports:
    - {protocol: TCP, port: {{ $port }}}
{{- end -}}
