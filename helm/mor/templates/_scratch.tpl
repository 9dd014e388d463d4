{{/*
Request for local disk, so that the scheduler counts the emptyDirs and the kubelet evicts others first: the volumes that
are filled, and 1 GiB for /tmp. Jobs of Secrets have no emptyDir. Dict component, root.
*/}}
{{- define "mor.scratch" -}}
{{- $v := .root.Values -}}
{{- if ne .component "secrets" -}}
{{- $bytes := int (include "mor.bytes" (eq .component "apply" | ternary "100Mi" "1Gi")) -}}
{{- if eq .component "rollout" -}}
{{- $bytes = add $bytes (int (include "mor.bytes" $v.rollout.weightsSize)) -}}
{{- end -}}
{{- $hub := include "mor.hubModel" $v.model.name -}}
{{- if eq .component "router" -}}
{{- $hub = or (include "mor.hubModel" $v.router.settings.embed_text_model) (include "mor.hubModel" $v.router.settings.embed_image_model) -}}
{{- end -}}
{{- if and $hub (has .component (list "worker" "rollout" "router")) (not $v.model.cache.existingClaim) -}}
{{- $bytes = add $bytes (int (include "mor.bytes" $v.model.cache.size)) -}}
{{- end -}}
{{- printf "%dMi" (div (add $bytes 1048575) 1048576) -}}
{{- end -}}
{{- end -}}
