{{- define "ue.deployment" -}}
{{ .Release.Name }}{{ .Values.kserve.enabled | ternary "-kserve-predictor" "" }}
{{- end }}

{{- define "ue.image" -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag }}{{- end -}}
{{- end }}

{{- define "ue.target" -}}
{{- eq .Values.profile "gpu" | ternary "tensorrt" "openvino" -}}-{{ .Values.precision }}
{{- end }}

{{/* "VERSION ENGINE" as in the output `version`; without a pinned id the engine's target and precision. */}}
{{- define "ue.expect" -}}
{{- $target := include "ue.target" . -}}
{{- $engine := .Values.embedder.engine -}}
{{- if and $engine (not (hasPrefix (print $target "-") $engine)) -}}
{{- fail (printf "embedder.engine %q is no %s engine: profile and precision say otherwise" $engine $target) -}}
{{- end -}}
{{ .Values.embedder.version }} {{ $engine | default $target }}
{{- end }}

{{/* Kubernetes never changes a selector: an upgrade to another version is refused by the API server,
     and no Service reaches pods of two versions. */}}
{{- define "ue.selector" -}}
app.kubernetes.io/name: unified-embedding
app.kubernetes.io/instance: {{ .Release.Name }}
embedding-version: {{ .Values.embedder.version | quote }}
{{- end }}

{{- define "ue.labels" -}}
{{ include "ue.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "ue.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "ue.placement" -}}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "ue.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "ue.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Requests equal limits: with whole cores the pod is Guaranteed, and /dev/shm is paid for. */}}
{{- define "ue.resources" -}}
{{- range list "requests" "limits" }}
{{ . }}:
  cpu: {{ $.Values.resources.cores | quote }}
  memory: {{ add $.Values.resources.memoryMiB $.Values.resources.shmMiB }}Mi
  {{- with $.Values.resources.gpus }}
  nvidia.com/gpu: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{/* What decides an engine's bits; its hash names the engine's folder, so that the engine of an older
     image stays for pods that still run it, and for a roll-back. */}}
{{- define "ue.build" -}}
{{- list (include "ue.image" .Values.engine.job) .Values.engine.job.model (include "ue.target" .) .Values.nodeSelector | toJson | sha256sum | trunc 8 -}}
{{- end }}

{{- define "ue.engine" -}}
{{- if eq .Values.engine.source "image" -}}/opt/unified-embedding/engine
{{- else if eq .Values.engine.source "claim" -}}/engine/embedder
{{- else -}}/engine/{{ include "ue.build" . }}/embedder
{{- end -}}
{{- end }}

{{- define "ue.claim" -}}
{{- eq .Values.engine.source "claim" | ternary .Values.engine.claim (print .Release.Name "-engine") -}}
{{- end }}

{{/* Real pictures by every process of each model: one whose process died still calls itself ready. */}}
{{- define "ue.askForPictures" -}}
exec:
  {{- $root := index . 0 }}
  {{- $seconds := index . 1 }}
  command: [unified-embedding, status, --probe, --pictures={{ mul 2 $root.Values.resources.preprocessInstances }}, --timeout={{ $seconds }}]
timeoutSeconds: {{ add $seconds 10 }}
{{- end }}

{{- define "ue.container" -}}
image: {{ include "ue.image" .Values.image }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
command: [unified-embedding, serve]
args:
  - --engine={{ include "ue.engine" . }}
  - --expect={{ include "ue.expect" . }}
  - --repository=/run/unified-embedding/model_repository
  - --preprocess-instances={{ .Values.resources.preprocessInstances }}
  {{- if eq .Values.profile "cpu" }}
  - --cores={{ .Values.resources.cores }}
  {{- end }}
  - --
  - --http-address=0.0.0.0
  - --grpc-address=0.0.0.0
  - --metrics-address=0.0.0.0
  - --exit-on-error=true
  - --strict-readiness=true
  - --exit-timeout-secs={{ .Values.stop.exitTimeoutSeconds }}
  - --grpc-max-connection-age={{ int .Values.maxConnectionAgeMs }}
  - --grpc-max-connection-age-grace={{ mul 1000 .Values.stop.exitTimeoutSeconds }}
  {{- if eq .Values.profile "gpu" }}
  - --disable-auto-complete-config
  - --backend-config=python,shm-default-byte-size=16777216
  - --pinned-memory-pool-byte-size=268435456
  - --cuda-memory-pool-byte-size=0:67108864
  {{- with .Values.tracing.endpoint }}
  - --trace-config=mode=opentelemetry
  - --trace-config=opentelemetry,url={{ . }}/v1/traces
  - --trace-config=rate=0
  - --trace-config=level=TIMESTAMPS
  {{- end }}
  - --http-restricted-api=shared-memory,model-repository,trace,logging:operator-key=$(UNIFIED_EMBEDDING_OPERATOR_KEY)
  - --grpc-restricted-protocol=shared-memory,model-repository,trace,logging:operator-key=$(UNIFIED_EMBEDDING_OPERATOR_KEY)
  {{- end }}
env:
  # Whoever may read pods may operate their server.
  - name: UNIFIED_EMBEDDING_OPERATOR_KEY
    valueFrom:
      fieldRef:
        fieldPath: metadata.uid
  {{- with .Values.tracing.endpoint }}
  - name: OTEL_EXPORTER_OTLP_ENDPOINT
    value: {{ . }}
  {{- end }}
  {{- range $name, $value := .Values.limits }}
  - name: {{ $name }}
    value: {{ kindIs "string" $value | ternary $value ($value | int64 | toString) | quote }}
  {{- end }}
ports:
  - name: grpc
    containerPort: 8001
  - name: http
    containerPort: 8000
  - name: metrics
    containerPort: 8002
resources: {{- include "ue.resources" . | nindent 2 }}
securityContext: {{- include "ue.containerSecurity" . | nindent 2 }}
startupProbe:
  {{- include "ue.askForPictures" (list . 20) | nindent 2 }}
  periodSeconds: 5
  failureThreshold: 60
readinessProbe:
  {{- if eq .Values.profile "cpu" }}
  # The launcher closes the ports within 1.5 s of a death, so readiness is the truth here.
  httpGet:
    path: /v2/health/ready
    port: http
  periodSeconds: 2
  failureThreshold: 2
  {{- else }}
  {{- include "ue.askForPictures" (list . 10) | nindent 2 }}
  periodSeconds: 15
  failureThreshold: 2
  {{- end }}
livenessProbe:
  # A long deadline: a busy server is not a dead one.
  {{- include "ue.askForPictures" (list . 50) | nindent 2 }}
  periodSeconds: 30
  failureThreshold: 3
lifecycle:
  preStop:
    sleep:
      seconds: {{ .Values.stop.drainSeconds }}
volumeMounts:
  - name: shm
    mountPath: /dev/shm
  - name: work
    mountPath: /run/unified-embedding
  - name: tmp
    mountPath: /tmp
  {{- if ne .Values.engine.source "image" }}
  - name: engine
    mountPath: /engine
    readOnly: true
  {{- end }}
{{- end }}

{{- define "ue.volumes" -}}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .Values.resources.shmMiB }}Mi
- name: work
  emptyDir:
    sizeLimit: 2Gi
- name: tmp
  emptyDir:
    sizeLimit: 256Mi
{{- if ne .Values.engine.source "image" }}
- name: engine
  persistentVolumeClaim:
    claimName: {{ include "ue.claim" . }}
    {{- if eq .Values.engine.source "claim" }}
    readOnly: true
    {{- end }}
{{- end }}
{{- end }}

{{- define "ue.spread" -}}
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
- maxSkew: 1
  topologyKey: {{ . }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: {{- include "ue.selector" $ | nindent 6 }}
{{- end }}
{{- end }}

{{- define "ue.grace" -}}
{{ add .Values.stop.drainSeconds .Values.stop.exitTimeoutSeconds 10 }}
{{- end }}

{{/* The volume is filled by the job: until then a pod waits, and does not fail and back off. */}}
{{- define "ue.waitForEngine" -}}
- name: wait-for-engine
  image: {{ include "ue.image" .Values.image }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [sh, -c, "until [ -f {{ include "ue.engine" . }}/1/engine.json ]; do sleep 2; done"]
  resources:
    requests: {cpu: 10m, memory: 32Mi}
    limits: {cpu: 100m, memory: 64Mi}
  securityContext: {{- include "ue.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - name: engine
      mountPath: /engine
      readOnly: true
{{- end }}
