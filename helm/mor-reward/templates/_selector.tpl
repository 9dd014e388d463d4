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

{{/* Refuse another first family of IP addresses than a running Service has: dict root, name. */}}
{{- define "mor.immutableFamily" -}}
{{- $live := lookup "v1" "Service" .root.Release.Namespace .name -}}
{{- $found := first (default list (dig "spec" "ipFamilies" list $live)) | default "" -}}
{{- $wanted := first .root.Values.dualStack.ipFamilies | default $found -}}
{{- if and $found (ne $found $wanted) -}}
{{- fail (printf "dualStack.ipFamilies begins with %s and the Service %s with %s, which cannot change: name that first, or first run `kubectl -n %s delete service %s`" $wanted .name $found .root.Release.Namespace .name) -}}
{{- end -}}
{{- end -}}
