{{/* Environment of a container, one entry for each name: dict set (the chart's own, by name), extra (entries of the
values), path (of these in the values); settings, settingsPath: those of the values that `set` holds; files: further names that a
Secret gives. */}}
{{- define "mor.mergedEnv" -}}
{{- $own := .set -}}
{{- $ofSettings := dict -}}
{{- range $name, $_ := default dict .settings -}}{{- $ofSettings = set $ofSettings (printf "MOR_%s" (upper $name)) $name -}}{{- end -}}
{{- /* Only these change nothing that another object of the chart relies on. */ -}}
{{- $replaceable := list "HF_HOME" "HF_HUB_OFFLINE" "HF_TOKEN_PATH" "HOME" "MOR_LOG_FORMAT" "OMP_NUM_THREADS" "SSL_CERT_FILE" "XDG_CACHE_HOME" -}}
{{- $files := concat (list "MOR_REDIS_URL" "MOR_SECRET_KEY" "MOR_SERVICE_TOKEN") (default list .files) -}}
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
{{- fail (printf "%s names %s, which the chart takes from a Secret: remove it, and name your own Secret by its `existingSecret`" $.path $name) -}}
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
