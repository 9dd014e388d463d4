{{/* Database of run control: an SQLite file on a volume of its own, or PostgreSQL. */}}

{{- define "mor.databaseClaim" -}}
{{- default (printf "%s-history" (include "mor.fullname" .)) .Values.control.database.existingClaim -}}
{{- end -}}

{{- define "mor.databaseVolumes" -}}
{{- $external := .Values.control.database.external -}}
{{- if not $external.existingSecret }}
- name: history
  persistentVolumeClaim: {claimName: {{ include "mor.databaseClaim" . }}}
{{- else if $external.existingCaSecret }}
- name: database-ca
  secret:
    secretName: {{ $external.existingCaSecret }}
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}
{{- end -}}

{{- define "mor.databaseMounts" -}}
{{- $external := .Values.control.database.external -}}
{{- if not $external.existingSecret }}
- {name: history, mountPath: /history}
{{- else if $external.existingCaSecret }}
- {name: database-ca, mountPath: /etc/mor/database, readOnly: true}
{{- end }}
{{- end -}}

{{- define "mor.databaseChecks" -}}
{{- $control := .Values.control -}}
{{- $external := $control.database.external -}}
{{- if and $external.existingSecret $control.database.existingClaim -}}
{{- fail "control.database.external.existingSecret and control.database.existingClaim are both set: remove one; with PostgreSQL no volume has the history" -}}
{{- end -}}
{{- if and (not $external.existingSecret) $external.existingCaSecret -}}
{{- fail "control.database.external.existingCaSecret is set and control.database.external.existingSecret is not: name the Secret with the address of PostgreSQL, or remove the CA" -}}
{{- end -}}
{{- if and $external.existingSecret .Values.networkPolicy.enabled (not $external.cidrs) -}}
{{- fail "control.database.external.cidrs is not set: name the networks of the PostgreSQL server, such as 10.20.0.0/16, so that the network policy admits it; or set networkPolicy.enabled=false" -}}
{{- end -}}
{{- end -}}
