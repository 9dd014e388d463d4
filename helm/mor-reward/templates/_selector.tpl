{{/*
Refuse another selector than a running workload has, which the API server would refuse half-way through an upgrade: dict
root, kind, name, labels (of the selector, as text). Only where a cluster answers. The same in both charts.
*/}}
{{- define "mor.immutableSelector" -}}
{{- $live := lookup "apps/v1" .kind .root.Release.Namespace .name -}}
{{- $labels := fromYaml .labels -}}
{{- $selected := dig "spec" "selector" "matchLabels" $labels $live -}}
{{- if ne (toJson $selected) (toJson $labels) -}}
{{- fail (printf "%s %s selects its pods by %s, which cannot change to %s: set nameOverride as it was, or first run `kubectl -n %s delete %s %s`" .kind .name (toJson $selected) (toJson $labels) .root.Release.Namespace (lower .kind) .name) -}}
{{- end -}}
{{- end -}}
