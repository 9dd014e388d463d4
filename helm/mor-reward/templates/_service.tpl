{{/* IP families of a Service, indented for its spec. */}}
{{- define "reward.families" -}}
{{- with .Values.dualStack.ipFamilyPolicy }}
  ipFamilyPolicy: {{ . }}
{{- end }}
{{- with .Values.dualStack.ipFamilies }}
  ipFamilies: {{ toJson . }}
{{- end }}
{{- end -}}

{{/* Annotations of a component's Service inside the cluster: dict service, more (the chart's own). */}}
{{- define "reward.serviceAnnotations" -}}
{{- $own := eq (default "ClusterIP" .service.type) "ClusterIP" | ternary .service.annotations dict -}}
{{- with merge (default dict .more) (default dict $own) }}
  annotations:
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- end -}}

{{/* Service of another type than ClusterIP, without the port of the metrics, which asks for no token: dict root,
component, suffix, service, port (name, port). */}}
{{- define "reward.externalService" -}}
{{- $service := .service -}}
{{- if ne (default "ClusterIP" $service.type) "ClusterIP" -}}
---
apiVersion: v1
kind: Service
metadata:
  {{- include "reward.metadata" (dict "root" .root "component" .component "suffix" .suffix) | nindent 2 }}
  {{- with $service.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  type: {{ $service.type }}
  {{- include "reward.families" .root }}
  {{- with $service.externalTrafficPolicy }}
  externalTrafficPolicy: {{ . }}
  {{- end }}
  {{- with $service.loadBalancerClass }}
  loadBalancerClass: {{ . | quote }}
  {{- end }}
  {{- with $service.loadBalancerSourceRanges }}
  loadBalancerSourceRanges: {{ toJson . }}
  {{- end }}
  ports:
    - {name: {{ .port.name }}, port: {{ .port.port }}, targetPort: http{{ with $service.nodePort }}, nodePort: {{ . }}{{ end }}}
  selector:
    {{- include "reward.selectorLabels" (dict "root" .root "component" .component) | nindent 4 }}
{{- end -}}
{{- end -}}

{{/* Refuse options of a Service that its type does not have, and families that the processes do not listen on: dict root,
services (by their paths in the values). */}}
{{- define "reward.serviceChecks" -}}
{{- range $path, $service := .services -}}
{{- $type := default "ClusterIP" $service.type -}}
{{- range $name := list "nodePort" "externalTrafficPolicy" -}}
{{- if and (get $service $name) (eq $type "ClusterIP") -}}
{{- fail (printf "%s.%s needs %s.type NodePort or LoadBalancer: set the type, or remove %s" $path $name $path $name) -}}
{{- end -}}
{{- end -}}
{{- range $name := list "loadBalancerClass" "loadBalancerSourceRanges" -}}
{{- if and (get $service $name) (ne $type "LoadBalancer") -}}
{{- fail (printf "%s.%s needs %s.type LoadBalancer: set the type, or remove %s" $path $name $path $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with .root.Values -}}
{{- $policy := default "SingleStack" .dualStack.ipFamilyPolicy -}}
{{- if and (gt (len (default list .dualStack.ipFamilies)) 1) (eq $policy "SingleStack") -}}
{{- fail "dualStack.ipFamilies has two families and dualStack.ipFamilyPolicy permits one: set it to PreferDualStack or RequireDualStack" -}}
{{- end -}}
{{- if and (ne .listenAddress "::") (or (ne $policy "SingleStack") (has "IPv6" (default list .dualStack.ipFamilies))) -}}
{{- fail "dualStack gives the Services addresses of IPv6, on which nothing listens: set listenAddress to \"::\"" -}}
{{- end -}}
{{- end -}}
{{- end -}}
