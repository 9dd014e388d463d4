{{/* Refuse values of Service, Gateway and network policy that cannot work, each with a remedy. */}}
{{- define "reward.networkChecks" -}}
{{- include "reward.serviceChecks" (dict "root" . "services" (dict "service" .Values.service)) -}}
{{- with .Values -}}
{{- if .gateway.enabled -}}
{{- if not .gateway.parentRefs -}}
{{- fail "gateway.enabled needs gateway.parentRefs: name the Gateway, such as [{name: public, namespace: gateways}]" -}}
{{- end -}}
{{- if not .gateway.host -}}
{{- fail "gateway.enabled needs gateway.host" -}}
{{- end -}}
{{- if and .networkPolicy.enabled (not .gateway.namespaceLabels) -}}
{{- fail "gateway.enabled needs gateway.namespaceLabels: label the namespace of the Gateway's pods, such as {kubernetes.io/metadata.name: envoy-gateway-system}, so that the network policy admits them; or set networkPolicy.enabled=false" -}}
{{- end -}}
{{- if and .tls.existingSecret (not .gateway.existingCaConfigMap) -}}
{{- fail "gateway.enabled with tls.existingSecret needs gateway.existingCaConfigMap: a ConfigMap with the authority's ca.crt, because a BackendTLSPolicy reads no Secret" -}}
{{- end -}}
{{- end -}}
{{- $blocks := "" -}}
{{- range .networkPolicy.from -}}{{- $blocks = printf "%s%s" $blocks (toJson (default dict .ipBlock)) -}}{{- end -}}
{{- if and .networkPolicy.enabled (ne (default "ClusterIP" .service.type) "ClusterIP") (not .networkPolicy.extraIngress) (not (contains "cidr" $blocks)) -}}
{{- fail "service.type opens the Service to callers that the network policy denies: name their networks in networkPolicy.from, such as {ipBlock: {cidr: 203.0.113.0/24}}; or set networkPolicy.enabled=false" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Egress rule to the cluster's DNS. */}}
{{- define "reward.toDns" -}}
- to:
    - namespaceSelector:
        matchLabels:
          {{- toYaml .Values.networkPolicy.dns.namespaceLabels | nindent 10 }}
    {{- range .Values.networkPolicy.dns.cidrs }}
    - ipBlock: {cidr: {{ . | quote }}}
    {{- end }}
  ports:
    {{- range .Values.networkPolicy.dns.ports }}
    - {protocol: UDP, port: {{ . }}}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end -}}
