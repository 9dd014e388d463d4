{{/* Bytes of a quantity such as 20Gi. */}}
{{- define "mor.bytes" -}}
{{- $units := dict "" 1 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 -}}
{{- $unit := regexFind "[A-Za-z]*$" (toString .) -}}
{{- if not (and (hasKey $units $unit) (regexMatch "^[0-9]+([.][0-9]+)?[A-Za-z]*$" (toString .))) -}}
{{- fail (printf "%v is no size: write it as 20Gi or 500Mi" .) -}}
{{- end -}}
{{- mulf (trimSuffix $unit (toString .) | float64) (get $units $unit) | int64 -}}
{{- end -}}
