#!/bin/sh
# Makes what the gate needs and git must not have: a key for each client named on the command line, a key between gate
# and engine, and a certificate of its own making for HOSTS. Nothing that is there already is replaced.
#     sh deploy/secrets.sh alice bob
#     HOSTS=llm.example.org sh deploy/secrets.sh alice
set -eu
umask 077
cd "$(dirname "$0")"
mkdir -p "${SECRETS:=proxy/secrets}"
HOSTS=${HOSTS:-localhost}

key() { openssl rand -hex 24; }

if [ ! -e "$SECRETS/engine.key" ]; then
    # Without a line end: a Kubernetes Secret hands the file on as it is, and to vLLM the line end would be of the key.
    printf %s "$(key)" >"$SECRETS/engine.key"
    printf 'default "Bearer %s";\n' "$(cat "$SECRETS/engine.key")" >"$SECRETS/engine.map"
fi
touch "$SECRETS/keys.map"
for name in "$@"; do
    case $name in *[!A-Za-z0-9_-]*) echo "error: $name is not a name: letters, digits, - and _ only" >&2; exit 2 ;; esac
    if grep -q " $name;\$" "$SECRETS/keys.map"; then
        echo "$name has a key already"
    else
        new=$(key)
        printf '"Bearer %s" %s;\n' "$new" "$name" >>"$SECRETS/keys.map"
        echo "key of $name, shown once: $new"
    fi
done
if [ ! -e "$SECRETS/tls.crt" ]; then
    names=IP:127.0.0.1
    for host in $HOSTS; do names="$names,DNS:$host"; done
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 90 -subj "/CN=${HOSTS%% *}" \
        -addext "subjectAltName=$names" -keyout "$SECRETS/tls.key" -out "$SECRETS/tls.crt" 2>/dev/null
    echo "certificate for $names, 90 days, signed by itself: clients must be given $SECRETS/tls.crt"
fi
