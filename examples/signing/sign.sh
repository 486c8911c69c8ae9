#!/bin/sh
# A signed request to Danlu with curl and openssl alone, as docs/reference/signing.md says:
#   sign.sh GET '/v1/jobs?limit=2'          sign.sh PUT /v1/jobs/ID job.yaml
# Where to: DANLU_URL; who: DANLU_ACCESS_KEY_ID and DANLU_SECRET_ACCESS_KEY; in which project: DANLU_PROJECT, if it is set.
# openssl gets the secret as an argument, which others on this machine can see while it runs: an example, not a tool.
set -eu
method=$1 target=$2 body=${3:-}
path=${target%%\?*}
query=${target#"$path"}
authority=$(printf '%s' "${DANLU_URL#*://}" | tr '[:upper:]' '[:lower:]')

components='"@method" "@authority" "@path" "@query"'
base="\"@method\": $method
\"@authority\": $authority
\"@path\": $path
\"@query\": ${query:-?}"

set -- --silent --show-error --request "$method"
header() { # name, value: is sent, and covered
	components="$components \"$1\"" base="$base
\"$1\": $2"
}
digest="sha-256=:$(openssl dgst -sha256 -binary "${body:-/dev/null}" | openssl base64 -A):"
header content-digest "$digest"
set -- "$@" --header "Content-Digest: $digest"
if [ -n "$body" ]; then
	header content-type application/json
	set -- "$@" --header 'Content-Type: application/json' --data-binary "@$body"
fi
if [ -n "${DANLU_PROJECT:-}" ]; then
	header danlu-project "$DANLU_PROJECT"
	set -- "$@" --header "Danlu-Project: $DANLU_PROJECT"
fi

created=$(date +%s) nonce=$(openssl rand -base64 16)
input="($components);created=$created;expires=$((created + 300));keyid=\"$DANLU_ACCESS_KEY_ID\";alg=\"hmac-sha256\""
input="$input;nonce=\"$nonce\";tag=\"danlu-v1\""
signature=$(printf '%s\n"@signature-params": %s' "$base" "$input" |
	openssl dgst -sha256 -hmac "$DANLU_SECRET_ACCESS_KEY" -binary | openssl base64 -A)
exec curl "$@" --header "Signature-Input: danlu=$input" --header "Signature: danlu=:$signature:" "$DANLU_URL$target"
