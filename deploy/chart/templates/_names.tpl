{{/* Names and labels, in one place. */}}
{{- define "danlu.name" -}}
{{- if contains "danlu" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-danlu" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end -}}
{{- end -}}

{{- define "danlu.selector" -}}
app.kubernetes.io/name: danlu
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end -}}

{{- define "danlu.labels" -}}
{{ include "danlu.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "danlu.jobs" -}}
{{ .Values.jobs.namespace | default .Release.Namespace }}
{{- end -}}

{{- define "danlu.keys" -}}
{{ .Values.keys.existingSecret | default (printf "%s-keys" (include "danlu.name" .)) }}
{{- end -}}

{{- define "danlu.scheme" -}}
{{ if .Values.tls.existingSecret }}https{{ else }}http{{ end }}
{{- end -}}

{{/* One name in the whole cluster, for what lies outside of the release's namespace. */}}
{{- define "danlu.unique" -}}
{{ printf "%s.%s" (include "danlu.name" .) .Release.Namespace | trunc 63 | trimSuffix "-" | trimSuffix "." }}
{{- end -}}

{{- define "danlu.templates" -}}
{{ toYaml .Values.jobs.templates }}
{{- end -}}
