{{/*
First line of every template, so that all others may rely on the values: a null takes the meaning "none" where there is
one, and is refused elsewhere; so are names and quantities that Kubernetes would refuse. The same in both charts.
*/}}
{{- define "mor.values" -}}
{{- $known := .Files.Get "files/values.json" | fromJson -}}
{{- $nulls := include "mor.values.nulls" (dict "values" .Values "known" $known "path" "") -}}
{{- /* What belongs to a parent chart or is no value of this one has forms of its own. */ -}}
{{- $global := dict -}}
{{- range $name := keys $known.global -}}
{{- $global = set $global $name (get (default dict $.Values.global) $name) -}}
{{- end -}}
{{- $own := set (omit .Values "extraObjects") "global" $global -}}
{{- with printf "%s%s" $nulls (include "mor.values.forms" (dict "value" $own "key" "" "path" "")) -}}
{{- fail (printf "these values cannot be:\n%s" .) -}}
{{- end -}}
{{- end -}}

{{/* Lines of the nulls without a meaning: dict values, known (the chart's own values), path (empty, or with a dot at its end). */}}
{{- define "mor.values.nulls" -}}
{{- range $key, $known := .known -}}
{{- $path := printf "%s%s" $.path $key -}}
{{- if not (kindIs "invalid" (index $.values $key)) -}}
{{- if and (kindIs "map" $known) $known -}}
{{- include "mor.values.nulls" (dict "values" (index $.values $key) "known" $known "path" (printf "%s." $path)) -}}
{{- end -}}
{{- else if and (empty $known) (has (kindOf $known) (list "map" "slice" "string")) -}}
{{- $_ := set $.values $key (deepCopy $known) -}}
{{- else if kindIs "map" $known -}}
{{- printf "- %s is null, which would remove all values below it: leave it out for the defaults, or set single values below it\n" $path -}}
{{- else -}}
{{- printf "- %s is null: leave it out for the default, %s, or set a value\n" $path (toJson $known) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Lines of the names, images, networks and quantities that Kubernetes refuses: dict value, key (the last part of path), path. */}}
{{- define "mor.values.forms" -}}
{{- $name := "^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$" -}}
{{- if kindIs "map" .value -}}
{{- if eq .key "resources" -}}{{- include "mor.values.requests" . -}}{{- end -}}
{{- if eq .key "serviceMonitor" -}}
{{- if gt (float64 (include "mor.seconds" .value.scrapeTimeout)) (float64 (include "mor.seconds" .value.interval)) -}}
{{- printf "- %s.scrapeTimeout is %q, above the interval, with which Prometheus reads nothing: write at most %q\n" .path .value.scrapeTimeout .value.interval -}}
{{- end -}}
{{- end -}}
{{- range $key, $value := .value -}}
{{- include "mor.values.forms" (dict "value" $value "key" $key "path" (printf "%s.%s" $.path $key | trimPrefix ".")) -}}
{{- end -}}
{{- else if kindIs "slice" .value -}}
{{- range $index, $value := .value -}}
{{- include "mor.values.forms" (dict "value" $value "key" $.key "path" (printf "%s[%d]" $.path $index)) -}}
{{- end -}}
{{- else if and (kindIs "string" .value) .value -}}
{{- $is := printf "- %s is %q, which" .path .value -}}
{{- if regexMatch "^(existing[A-Z]\\w*|tlsSecret|storageClass|className|\\w+ClassName|serviceAccountName|schedulerName|pullSecrets|secrets)$" .key -}}
{{- if or (gt (len .value) 253) (not (regexMatch $name .value)) -}}
{{- printf "%s no object in Kubernetes can be named: use at most 253 lower-case letters, digits, '-' and '.', with a letter or digit at both ends\n" $is -}}
{{- end -}}
{{- else if regexMatch "[.]namespaces\\[\\d+\\][.]name$" .path -}}
{{- if not (regexMatch "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$" .value) -}}
{{- printf "%s no namespace can be named: use at most 63 lower-case letters, digits and '-', with a letter or digit at both ends\n" $is -}}
{{- end -}}
{{- else if regexMatch "^(ingress|gateway)[.](host|hosts[.]\\w+)$" .path -}}
{{- if or (gt (len .value) 253) (not (regexMatch $name (trimPrefix "*." .value))) -}}
{{- printf "%s is no host name: use lower-case letters, digits, '-' and '.', without scheme, port and path\n" $is -}}
{{- end -}}
{{- else if regexMatch "^(size|weightsSize|sharedMemory)$" .key -}}
{{- if not (regexMatch "^[0-9]+([.][0-9]+)?(k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$" .value) -}}
{{- printf "%s is no quantity: write a number with a unit such as Mi, Gi or Ti\n" $is -}}
{{- end -}}
{{- else if regexMatch "^(cidrs?|\\w*CIDRs|networks)$" .key -}}
{{- with include "mor.values.network" . -}}
{{- printf "%s %s\n" $is . -}}
{{- end -}}
{{- else if regexMatch "(^global[.]imageRegistry|^model[.]image|(^|[.])image[.](registry|repository|tag|digest))$" .path -}}
{{- $part := "[a-z0-9]+([._-]+[a-z0-9]+)*" -}}
{{- $host := "([A-Za-z0-9][A-Za-z0-9.-]*|\\[[0-9a-fA-F:]+\\])(:[0-9]+)?" -}}
{{- $registry := dict "form" (printf "^%s(/%s)*$" $host $part) "want" "a host such as registry.example.org:5000/ml, without scheme and without / at its end" -}}
{{- $forms := dict "imageRegistry" $registry "registry" $registry -}}
{{- $forms = set $forms "repository" (dict "form" (printf "^([A-Za-z0-9-]+[.:][A-Za-z0-9.:-]*/)?%s(/%s)*$" $part $part) "want" "lower-case names with / between them") -}}
{{- $forms = set $forms "tag" (dict "form" "^\\w[\\w.-]{0,127}$" "want" "at most 128 letters, digits, '-', '_' and '.'") -}}
{{- $forms = set $forms "digest" (dict "form" "^sha256:[0-9a-f]{64}$" "want" "sha256: with 64 hexadecimal digits") -}}
{{- $forms = set $forms "image" (dict "form" (printf "^(%s/)?%s(/%s)*(:\\w[\\w.-]{0,127})?(@sha256:[0-9a-f]{64})?$" $host $part $part) "want" "a name with tag or digest, such as registry.example.org/scores:1") -}}
{{- $form := get $forms .key -}}
{{- if not (regexMatch $form.form .value) -}}
{{- printf "%s no image can have: write %s\n" $is $form.want -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Trouble with a network, if any, for Kubernetes, or for the router, which reads networks exactly: dict value, path. */}}
{{- define "mor.values.network" -}}
{{- $byte := "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])" -}}
{{- if regexMatch (printf "^(%s[.]){3}%s/([12]?[0-9]|3[0-2])$" $byte $byte) .value -}}
{{- $parts := splitList "/" .value -}}
{{- $number := 0 -}}
{{- range splitList "." (first $parts) -}}{{- $number = add (mul 256 $number) (int .) -}}{{- end -}}
{{- $size := 1 -}}
{{- range until (int (sub 32 (int (last $parts)))) -}}{{- $size = mul 2 $size -}}{{- end -}}
{{- if and (hasPrefix "router." .path) (mod $number $size) -}}
is an address in a network: write 0 for all bits after the prefix, or /32 for the address alone
{{- end -}}
{{- else if not (regexMatch "^[0-9a-fA-F]*:[0-9a-fA-F:.]*/([1-9]?[0-9]|1[01][0-9]|12[0-8])$" .value) -}}
is no network: write an address and a prefix, such as 10.20.0.0/16; /32 for a single address
{{- end -}}
{{- end -}}

{{/* Lines of the requests above their limits, which no pod may have: dict value (resources), path. */}}
{{- define "mor.values.requests" -}}
{{- range $name, $limit := default dict .value.limits -}}
{{- $request := get (default dict $.value.requests) $name -}}
{{- if and (include "mor.quantity" $request) (include "mor.quantity" $limit) -}}
{{- if gt (float64 (include "mor.quantity" $request)) (float64 (include "mor.quantity" $limit)) -}}
{{- printf "- %s.requests.%s is %q, above the limit, which Kubernetes refuses: raise %s.limits.%s from %q\n" $.path $name (toString $request) $.path $name (toString $limit) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Refuse a name that no Service can have, and labels that the chart sets: dict root, name, labels (by path). */}}
{{- define "mor.values.names" -}}
{{- if gt (len (toString .root.Values.fullnameOverride)) 40 -}}
{{- fail (printf "fullnameOverride is %q, which is longer than 40 characters: shorten it, because names of pods are made from it" .root.Values.fullnameOverride) -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" .name) -}}
{{- fail (printf "all objects would be named %q, and no Service can: set fullnameOverride to lower-case letters, digits and '-', with a letter first" .name) -}}
{{- end -}}
{{- with .root.Values.nameOverride -}}
{{- if not (regexMatch "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$" .) -}}
{{- fail (printf "nameOverride is %q, which is part of the names of all objects: use at most 63 lower-case letters, digits and '-', with a letter or digit at both ends" .) -}}
{{- end -}}
{{- end -}}
{{- range $path, $labels := .labels -}}
{{- range $label, $value := $labels -}}
{{- if or (regexMatch "^app[.]kubernetes[.]io/(name|instance|component|part-of|version|managed-by)$" $label) (hasPrefix "mor.dev/" $label) (eq $label "helm.sh/chart") -}}
{{- fail (printf "%s: the chart itself sets the label %s: choose another" $path $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Refuse a pod with an entry that it has already, by the names that Kubernetes takes once: dict text (of objects), path
(of the pod's options in the values). */}}
{{- define "mor.values.twice" -}}
{{- range splitList "\n---" .text -}}
{{- include "mor.values.twiceIn" (dict "part" (fromYaml .) "path" $.path) -}}
{{- end -}}
{{- end -}}

{{- define "mor.values.twiceIn" -}}
{{- $part := .part -}}
{{- $keys := dict "volumes" "name" "volumeMounts" "mountPath" "containers" "name" "hostAliases" "ip" -}}
{{- $options := dict "volumes" "extraVolumes" "volumeMounts" "extraVolumeMounts" "containers" "extraContainers and initContainers" "hostAliases" "hostAliases" -}}
{{- range $list, $key := $keys -}}
{{- $entries := default list (get $part $list) -}}
{{- if eq $list "containers" -}}{{- $entries = concat $entries (default list $part.initContainers) -}}{{- end -}}
{{- $seen := list -}}
{{- range $entries -}}
{{- $name := get . $key | toString -}}
{{- if has $name $seen -}}
{{- fail (printf "%s: a pod would have two entries with the %s %q in %s, which Kubernetes refuses: choose another for yours (%s)" $.path $key $name $list (get $options $list)) -}}
{{- end -}}
{{- $seen = append $seen $name -}}
{{- end -}}
{{- end -}}
{{- range $field, $inner := $part -}}
{{- range (kindIs "slice" $inner | ternary $inner (list $inner)) -}}
{{- if kindIs "map" . -}}{{- include "mor.values.twiceIn" (dict "part" . "path" $.path) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Number that a quantity means; nothing for what is none. */}}
{{- define "mor.quantity" -}}
{{- if regexMatch "^[0-9]+([.][0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$" (toString .) -}}
{{- $units := dict "" 1.0 "m" 1e-3 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 "Ei" 1152921504606846976.0 -}}
{{- $number := regexFind "^[0-9.]+" (toString .) -}}
{{- mulf (float64 $number) (get $units (trimPrefix $number (toString .))) -}}
{{- end -}}
{{- end -}}

{{/* Seconds of a duration of Prometheus. */}}
{{- define "mor.seconds" -}}
{{- $units := dict "ms" 1e-3 "s" 1.0 "m" 60.0 "h" 3600.0 "d" 86400.0 "w" 604800.0 "y" 31536000.0 -}}
{{- $seconds := 0.0 -}}
{{- range regexFindAll "[0-9]+(ms|[smhdwy])" (toString .) -1 -}}
{{- $number := regexFind "^[0-9]+" . -}}
{{- $seconds = addf $seconds (mulf (float64 $number) (get $units (trimPrefix $number .))) -}}
{{- end -}}
{{- $seconds -}}
{{- end -}}

{{/* Bytes of a quantity. */}}
{{- define "mor.bytes" -}}
{{- include "mor.quantity" . | float64 | int64 -}}
{{- end -}}

{{/* Security context: dict default, own (fields that replace those of default; null removes one). */}}
{{- define "mor.securityContext" -}}
{{- $fields := deepCopy .default -}}
{{- range $field, $value := .own -}}
{{- if kindIs "invalid" $value -}}
{{- $fields = unset $fields $field -}}
{{- else -}}
{{- $fields = set $fields $field $value -}}
{{- end -}}
{{- end -}}
{{- toYaml $fields -}}
{{- end -}}
