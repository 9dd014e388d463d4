{{/*
Changes of a running release that the API server would refuse half-way through an upgrade, refused before it begins with
what to do instead. Only where a cluster answers, because the objects are looked up.
*/}}

{{/* Start order of a StatefulSet's pods: dict root, component. */}}
{{- define "mor.immutableOrder" -}}
{{- $name := printf "%s-%s" (include "mor.fullname" .root) .component -}}
{{- $live := lookup "apps/v1" "StatefulSet" .root.Release.Namespace $name -}}
{{- if and $live (ne (default "OrderedReady" $live.spec.podManagementPolicy) "Parallel") -}}
{{- fail (printf "StatefulSet %s of an earlier chart starts its pods in order, which cannot change: first run `kubectl -n %s delete statefulset %s --cascade=orphan`, which leaves the pods" $name .root.Release.Namespace $name) -}}
{{- end -}}
{{- end -}}

{{/* Volume of a StatefulSet: dict root, component, claim (its name), path (of size and storageClass in the values), values. */}}
{{- define "mor.immutableTemplate" -}}
{{- $name := printf "%s-%s" (include "mor.fullname" .root) .component -}}
{{- $space := .root.Release.Namespace -}}
{{- $live := lookup "apps/v1" "StatefulSet" $space $name -}}
{{- range default list (dig "spec" "volumeClaimTemplates" list (default dict $live)) -}}
{{- if eq .metadata.name $.claim -}}
{{- $size := dig "resources" "requests" "storage" "" .spec -}}
{{- $replace := printf "kubectl -n %s delete statefulset %s --cascade=orphan" $space $name -}}
{{- $volume := printf "%s-%s-0" $.claim $name -}}
{{- $wanted := int64 (include "mor.bytes" $.values.size) -}}
{{- if lt $wanted (int64 (include "mor.bytes" $size)) -}}
{{- fail (printf "%s.size is %s and the volume %s has %s, which cannot shrink: set %s.size=%s" $.path $.values.size $volume $size $.path $size) -}}
{{- else if gt $wanted (int64 (include "mor.bytes" $size)) -}}
{{- fail (printf "%s.size is %s, and a StatefulSet's volumes cannot change from %s: grow the volume by hand, with `kubectl -n %s patch persistentvolumeclaim %s --patch '{\"spec\":{\"resources\":{\"requests\":{\"storage\":\"%s\"}}}}'` and `%s`, which leaves the pod; then upgrade" $.path $.values.size $size $space $volume $.values.size $replace) -}}
{{- end -}}
{{- $class := include "mor.storageClass" (dict "root" $.root "own" $.values.storageClass) -}}
{{- if ne (default "" .spec.storageClassName) $class -}}
{{- fail (printf "%s.storageClass is %q and the volume %s has %q, which cannot change: set it as it was; or move the data, delete the volume and run `%s`" $.path $class $volume (default "" .spec.storageClassName) $replace) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A PersistentVolumeClaim of the chart: dict root, name, path (in the values), values (size, storageClass, accessMode). */}}
{{- define "mor.immutableClaim" -}}
{{- $live := lookup "v1" "PersistentVolumeClaim" .root.Release.Namespace .name -}}
{{- if $live -}}
{{- $other := printf "set %s.existingClaim to a claim of your own with the data" .path -}}
{{- $size := dig "resources" "requests" "storage" "0" $live.spec -}}
{{- if lt (int64 (include "mor.bytes" .values.size)) (int64 (include "mor.bytes" $size)) -}}
{{- fail (printf "%s.size is %s and the volume %s has %s, which cannot shrink: set %s.size=%s; or %s" .path .values.size .name $size .path $size $other) -}}
{{- end -}}
{{- $mode := first (default (list .values.accessMode) $live.spec.accessModes) -}}
{{- if ne $mode .values.accessMode -}}
{{- fail (printf "%s.accessMode is %s and the volume %s has %s, which cannot change: set it as it was; or %s" .path .values.accessMode .name $mode $other) -}}
{{- end -}}
{{- $class := default "" $live.spec.storageClassName -}}
{{- $wanted := include "mor.storageClass" (dict "root" .root "own" .values.storageClass) -}}
{{- /* Empty takes the cluster's default, which the volume then names: the annotation tells whether it was empty. */ -}}
{{- $was := dig "annotations" "mor.dev/storage-class" (ternary $class $wanted (ne $wanted "")) $live.metadata -}}
{{- if and (ne $was $wanted) (ne $class $wanted) -}}
{{- fail (printf "%s.storageClass is %q and the volume %s has %q, which cannot change: set it as it was; or %s" .path $wanted .name $class $other) -}}
{{- end -}}
{{- end -}}
{{- end -}}
