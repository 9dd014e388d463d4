{{/* Refuse contradictory values, each with a remedy. Included once, by the Secrets. */}}
{{- define "mor.checks" -}}
{{- $v := .Values -}}
{{- if not $v.enabled -}}
{{- fail (printf "enabled is false, which a parent chart reads: write `condition: %s.enabled` at its dependency, which leaves this chart out then; uninstall a release of this chart itself" .Chart.Name) -}}
{{- end -}}
{{- include "mor.networkChecks" . -}}
{{- if gt (int $v.control.replicas) 1 -}}
{{- fail "control.replicas is above 1, but one run control owns the history at a time: set it to 1 and scale worker.replicas instead" -}}
{{- end -}}
{{- include "mor.databaseChecks" . -}}
{{- if and (gt (add (int (include "mor.mostEngines" .)) (int $v.worker.replicas)) 0) (not $v.model.name) -}}
{{- fail "model.name is not set: name the checkpoint to align, a folder below /models (with model.existingClaim) or a hub name owner/name; or set rollout.replicas and worker.replicas to 0" -}}
{{- end -}}
{{- if and (hasPrefix "/models/" $v.model.name) (not $v.model.existingClaim) -}}
{{- fail "model.name is a folder below /models, where nothing is mounted: set model.existingClaim to the PersistentVolumeClaim with the checkpoint" -}}
{{- end -}}
{{- if and $v.worker.jobSet.enabled (not $v.worker.together) -}}
{{- fail "worker.jobSet.enabled is for a run over several pods: set worker.together and worker.replicas, or leave it out" -}}
{{- end -}}
{{- if and $v.worker.jobSet.enabled (gt (len (include "mor.fullname" .)) 32) -}}
{{- fail (printf "worker.jobSet.enabled: the pods' names would be longer than 63 characters with %q: set fullnameOverride to at most 32 characters" (include "mor.fullname" .)) -}}
{{- end -}}
{{- if and (not $v.redis.bundled) (not $v.redis.external.existingSecret) -}}
{{- fail "redis.bundled is false and redis.external.existingSecret is not set: create a Secret with the server's address under the key `url` and name it there" -}}
{{- end -}}
{{- if regexMatch "^(localhost|[^/]*[.:][^/]*)/" $v.valkey.image.repository -}}
{{- fail (printf "valkey.image.repository %q begins with a registry: write that as valkey.image.registry, and the rest as valkey.image.repository" $v.valkey.image.repository) -}}
{{- end -}}
{{- if and $v.redis.bundled $v.redis.external.existingSecret -}}
{{- fail "redis.bundled and redis.external.existingSecret are both set: set redis.bundled=false to use the external server" -}}
{{- end -}}
{{- if and (not $v.redis.bundled) $v.networkPolicy.enabled (not $v.redis.external.cidrs) -}}
{{- fail "redis.external.cidrs is not set: name the networks of the server, such as 10.20.0.0/16, so that the network policy admits it; or set networkPolicy.enabled=false" -}}
{{- end -}}
{{- if and $v.control.settings.alert_webhook_url $v.networkPolicy.enabled (not $v.control.alertWebhook.cidrs) -}}
{{- fail "control.settings.alert_webhook_url is set and control.alertWebhook.cidrs is not: name the networks of that address, so that the network policy admits it; or set networkPolicy.enabled=false" -}}
{{- end -}}
{{- range $name := list "worker" "rollout" -}}
{{- $part := get $v $name -}}
{{- if and (hasSuffix "-cuda" $part.image.tag) (eq (int $part.gpus) 0) -}}
{{- fail (printf "%s.image.tag is a CUDA image and %s.gpus is 0: set %s.gpus, or use the CPU image" $name $name $name) -}}
{{- end -}}
{{- end -}}
{{- if and (eq (int $v.rollout.gpus) 0) (eq (toString $v.rollout.settings.eager) "false") -}}
{{- fail "rollout.settings.eager=false compiles the model, which is faster on GPUs only: set rollout.gpus, or remove the setting" -}}
{{- end -}}
{{- range $name := list "router" "rollout" -}}
{{- $scaling := (get $v $name).autoscaling -}}
{{- if and $scaling.enabled (gt (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- fail (printf "%s.autoscaling.minReplicas is above maxReplicas: raise maxReplicas" $name) -}}
{{- end -}}
{{- end -}}
{{- with $v.rollout.autoscaling -}}
{{- if and .enabled (not .prometheus.serverAddress) -}}
{{- fail "rollout.autoscaling.enabled is true and rollout.autoscaling.prometheus.serverAddress is not set: name the Prometheus that has run control's metrics, such as http://prometheus-operated.monitoring:9090" -}}
{{- end -}}
{{- if ne (empty .prometheus.authModes) (empty .prometheus.authenticationRef) -}}
{{- fail "rollout.autoscaling.prometheus.authModes and authenticationRef go together: set both, or none where Prometheus asks for no credentials" -}}
{{- end -}}
{{- end -}}
{{- if and $v.router.discovery.namespaces (not $v.router.discovery.networks) -}}
{{- fail "router.discovery.namespaces is set and router.discovery.networks is not: name the networks of the cluster's pods and Services, such as 10.244.0.0/16 and 10.96.0.0/12, in which discovered endpoints must be" -}}
{{- end -}}
{{- if and $v.router.clientTls.mutual (not $v.router.clientTls.existingSecret) -}}
{{- fail "router.clientTls.mutual needs router.clientTls.existingSecret: a Secret with ca.crt, tls.crt and tls.key" -}}
{{- end -}}
{{- if and $v.router.clientProxy.existingSecret $v.networkPolicy.enabled (not $v.router.clientProxy.cidrs) -}}
{{- fail "router.clientProxy.existingSecret is set and router.clientProxy.cidrs is not: name the networks of the proxy, so that the network policy admits it; or set networkPolicy.enabled=false" -}}
{{- end -}}
{{- if and $v.ingress.enabled (not (or $v.ingress.hosts.control $v.ingress.hosts.router $v.ingress.hosts.rollout)) -}}
{{- fail "ingress.enabled needs at least one of ingress.hosts.control, ingress.hosts.router and ingress.hosts.rollout" -}}
{{- end -}}
{{- range $path, $parts := dict "objectives" $v.objectives "runs" $v.runs "router.discovery.namespaces" $v.router.discovery.namespaces -}}
{{- $names := list -}}
{{- range $parts -}}
{{- if has .name $names -}}
{{- fail (printf "%s names %q twice: keep one" $path .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- end -}}
{{- range $path, $access := dict "ingress" $v.ingress "gateway" $v.gateway -}}
{{- $hosts := compact (values $access.hosts) -}}
{{- if and $access.enabled (ne (len $hosts) (len (uniq $hosts))) -}}
{{- fail (printf "%s.hosts has one host for two services, and each serves its paths from /: give each a host of its own" $path) -}}
{{- end -}}
{{- end -}}
{{- $taken := list "operator" "admin" "mor" "service" -}}
{{- range $token := $v.auth.tokens -}}
{{- if has $token.name $taken -}}
{{- fail (printf "auth.tokens: %q is the name of another token, or of its key in the Secret: choose another" $token.name) -}}
{{- end -}}
{{- $taken = append $taken $token.name -}}
{{- end -}}
{{- range $objective := $v.objectives -}}
{{- if and $objective.anchors (not $v.data.existingClaim) -}}
{{- fail (printf "objectives: the anchors of %q are below /data, where nothing is mounted: set data.existingClaim" $objective.name) -}}
{{- end -}}
{{- if and $objective.fit (not $objective.anchors) -}}
{{- fail (printf "objectives: %q has fit set and no anchors: name a mor.prefs/1 file below /data" $objective.name) -}}
{{- end -}}
{{- end -}}
{{- range $run := $v.runs -}}
{{- if ne $run.model $v.model.name -}}
{{- fail (printf "runs: %q trains %q and the rollout service holds model.name=%q: set both to the same model" $run.name $run.model $v.model.name) -}}
{{- end -}}
{{- end -}}
{{- include "mor.settingsChecks" . -}}
{{- include "mor.podChecks" . -}}
{{- end -}}
