{{/* Refuse values of Services, Gateways and network policies that cannot work, each with a remedy. */}}
{{- define "mor.networkChecks" -}}
{{- include "mor.serviceChecks" (dict "root" . "services" (dict "control.service" .Values.control.service "router.service" .Values.router.service "rollout.service" .Values.rollout.service)) -}}
{{- with .Values -}}
{{- if .gateway.enabled -}}
{{- if not .gateway.parentRefs -}}
{{- fail "gateway.enabled needs gateway.parentRefs: name the Gateway, such as [{name: public, namespace: gateways}]" -}}
{{- end -}}
{{- if not (or .gateway.hosts.control .gateway.hosts.router .gateway.hosts.rollout) -}}
{{- fail "gateway.enabled needs at least one of gateway.hosts.control, gateway.hosts.router and gateway.hosts.rollout" -}}
{{- end -}}
{{- if and .networkPolicy.enabled (not .gateway.namespaceLabels) -}}
{{- fail "gateway.enabled needs gateway.namespaceLabels: label the namespace of the Gateway's pods, such as {kubernetes.io/metadata.name: envoy-gateway-system}, so that the network policy admits them; or set networkPolicy.enabled=false" -}}
{{- end -}}
{{- if and .tls.existingSecret (not .gateway.existingCaConfigMap) -}}
{{- fail "gateway.enabled with tls.existingSecret needs gateway.existingCaConfigMap: a ConfigMap with the authority's ca.crt, because a BackendTLSPolicy reads no Secret" -}}
{{- end -}}
{{- end -}}
{{- if .networkPolicy.enabled -}}
{{- $values := . -}}
{{- range $component, $port := dict "control" 8300 "router" 8100 "rollout" 8200 -}}
{{- if and (ne (default "ClusterIP" (get $values $component).service.type) "ClusterIP") (not (get $values.networkPolicy.extraIngress $component)) -}}
{{- fail (printf "%s.service.type opens the Service to callers that the network policy denies: name them in networkPolicy.extraIngress.%s, such as [{from: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: %d}]}]; or set networkPolicy.enabled=false" $component $component (int $port)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
