#!/usr/bin/env bash
# The images as containers, on one machine: replicas of the embed tier behind one DNS name, a decoder that
# resolves it, and clients that generate all the while. Replicas come, go, are killed, cut off and frozen;
# no generation may fail while one is left, and all give the same text.
#
#   integration-tests/images/run.sh [BINARIES]
#
# BINARIES is a folder with embed-service, decoder-service and trainer, built for this machine
# (target/release): the images are made of the Dockerfile's last stages around them. Without it the whole
# Dockerfile is built, which needs the registries of its FROM lines, and trainer is taken from target/release.
#
# Needs podman with netavark and aardvark-dns, buildah, curl, python3, ip, and root or the right to run
# containers. Takes two minutes. Leaves images, no containers.
set -euo pipefail
cd "$(dirname "$0")/../.."
binaries=${1:-}
tag=images-test
network=scone-images-test
work=$(mktemp -d)
generations=$work/generations
stopping=$work/stopping

clean_up() {
    touch "$stopping"
    wait
    podman rm -f -t 0 decoder embed-1 embed-2 embed-3 >/dev/null 2>&1 || true
    podman network rm -f "$network" >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap clean_up EXIT

say() { printf '%s %s\n' "$(date +%T)" "$*"; }
fail() {
    say "FAILED: $*"
    for name in decoder embed-1 embed-2 embed-3; do
        echo "--- $name"
        podman logs --tail 20 "$name" 2>&1 || true
    done
    exit 1
}

# An image with the libraries that our programs load, where distroless cannot be had.
make_runtime() {
    local root=$work/runtime
    mkdir -p "$root/etc" "$root/tmp"
    chmod 1777 "$root/tmp"
    echo 'nonroot:x:65532:65532::/home/nonroot:/sbin/nologin' >"$root/etc/passwd"
    ldd "$binaries/embed-service" "$binaries/decoder-service" | grep -oE '/[^ ]+' | grep -v ':$' | sort -u |
        while read -r library; do
            install -D "$(readlink -f "$library")" "$root$library"
        done
    tar -C "$root" -c . | podman import -q - "localhost/scone-runtime:$tag" >/dev/null
}

build() {
    local target=$1 options=()
    if [ -n "$binaries" ]; then
        mkdir -p "$work/built/$target/out"
        cp "$binaries/$target" "$work/built/$target/out/"
        options=(--pull-never
            --build-context "build-$target=$work/built/$target"
            --build-context "runtime=container-image://localhost/scone-runtime:$tag")
    fi
    buildah bud -q "${options[@]}" -f k8s/images/Dockerfile --build-arg REVISION=images-test \
        --target "$target" -t "localhost/scone/$target:$tag" . >"$work/build.log" 2>&1 ||
        { cat "$work/build.log"; fail "cannot build $target"; }
    say "$target: $(podman image inspect --format '{{.Size}}' "localhost/scone/$target:$tag") bytes"
}

# As the manifests run it: no root, no capability, nothing to write to, bounded memory.
contain() {
    podman run -d --user 65532:65532 --read-only --cap-drop all --security-opt no-new-privileges \
        --network "$network" "$@" >/dev/null
}

start_embed() {
    contain --name "embed-$1" --network-alias embed --memory 96m -v "$work/disk:/table:ro" \
        "localhost/scone/embed-service:$tag" serve --table /table/current --listen 0.0.0.0:7300 \
        --metrics-listen 0.0.0.0:9100 --hot-bytes 16MiB --drain-timeout 20s
}

start_decoder() {
    contain --name decoder --memory 1g -v "$PWD/models/demo:/model:ro" \
        "localhost/scone/decoder-service:$tag" serve --model /model --embed embed:7300 \
        --listen 0.0.0.0:7400 --http-listen 0.0.0.0:7480 --metrics-listen 0.0.0.0:9100 \
        --embed-start-timeout 60s --embed-resolve-interval 1s --embed-poll-interval 500ms --kv-memory 64MiB
}

address_of() {
    podman inspect --format "{{(index .NetworkSettings.Networks \"$network\").IPAddress}}" "$1"
}

# Calls its arguments until they succeed, for at most a minute.
eventually() {
    local what=$1 deadline=$((SECONDS + 60))
    shift
    while [ "$SECONDS" -lt "$deadline" ]; do
        if "$@"; then return; fi
        sleep 0.1
    done
    fail "never: $what"
}

replicas() {
    curl -sf "http://$(address_of decoder):9100/metrics" | sed -n 's/^scone_decoder_embed_replicas{[^}]*} //p'
}
has_replicas() { [ "$(replicas)" = "$1" ]; }

# One generation: its HTTP status, and a checksum of its text.
generate() {
    local answer
    answer=$(curl -s --max-time 60 -w '\n%{http_code}' "http://$1:7480/v1/completions" \
        -d '{"prompt": "The old house at the end of the street", "max_tokens": 200, "temperature": 0, "ignore_eos": true}')
    python3 -c '
import hashlib, json, sys
body, status = sys.stdin.read().strip().rsplit("\n", 1)
try:
    text = json.loads(body)["choices"][0]["text"]
    print(status, hashlib.sha256(text.encode()).hexdigest()[:12])
except (KeyError, ValueError):
    print(status, body[:300].replace("\n", " "))
' <<<"$answer"
}

client() {
    while [ ! -e "$stopping" ]; do
        generate "$1" >>"$generations"
    done
}

# So many generations that began and ended after now.
after_generations() {
    local before
    before=$(wc -l <"$generations")
    more() { [ "$(wc -l <"$generations")" -ge $((before + $1)) ]; }
    eventually "$1 generations" more "$1"
}

check() {
    local texts
    if grep -v '^200 [0-9a-f]\{12\}$' "$generations"; then fail "$1: generations failed"; fi
    texts=$(cut -d' ' -f2 "$generations" | sort -u | wc -l)
    [ "$texts" = 1 ] || fail "$1: $texts different texts"
    say "$1: $(wc -l <"$generations") generations so far, none failed, one text; $(replicas) replicas"
}

memory_held() {
    local name
    for name in "$@"; do
        [ "$(podman inspect --format '{{.State.OOMKilled}} {{.State.Running}}' "$name")" = 'false true' ] ||
            fail "$name ran out of memory, or ended"
    done
}

if [ -n "$binaries" ]; then make_runtime; fi
build embed-service
build decoder-service
trainer=${binaries:-target/release}/trainer
"$trainer" precompute --model models/demo --store mapped --dtype f16 --out "$work/published" >/dev/null

podman network create "$network" >/dev/null
mkdir -m 777 "$work/disk"
chmod -R a+rX "$work"
podman run --rm --user 65532:65532 --read-only --cap-drop all --network none --memory 64m \
    -v "$work/published:/data:ro" -v "$work/disk:/table" "localhost/scone/embed-service:$tag" \
    fetch --from /data --to /table
podman run --rm "localhost/scone/embed-service:$tag" --version | tee "$work/version"

start_embed 1
# A bridge takes the lowest address of its ports for its own, unless it was given one. When that port
# goes, its neighbours talk to an address that is nobody's until their ARP entries age, near a minute:
# names do not resolve, and clients on the host get no answer.
bridge=$(podman network inspect --format '{{.NetworkInterface}}' "$network")
ip link set dev "$bridge" address "$(cat "/sys/class/net/$bridge/address")"
start_decoder
touch "$generations"
decoder_answers() { [ "$(generate "$(address_of decoder)" | cut -d' ' -f1)" = 200 ]; }
eventually 'an answer' decoder_answers
decoder=$(address_of decoder)
for _ in 1 2 3 4; do client "$decoder" & done
after_generations 8
check 'one replica'

start_embed 2
start_embed 3
eventually 'three replicas' has_replicas 3
after_generations 8
check 'from one to three'

podman kill embed-2 >/dev/null
eventually 'two replicas after a kill' has_replicas 2
after_generations 8
check 'one killed'
podman rm -f embed-2 >/dev/null
start_embed 2
eventually 'three replicas again' has_replicas 3

podman network disconnect -f "$network" embed-3
eventually 'two replicas after a cut' has_replicas 2
after_generations 8
check 'one cut off'
podman network connect --alias embed "$network" embed-3
eventually 'three replicas, one with a new address' has_replicas 3

podman pause embed-1 >/dev/null
after_generations 8
check 'one frozen'
podman unpause embed-1 >/dev/null
eventually 'three replicas after the thaw' has_replicas 3
after_generations 8
memory_held embed-1 embed-2 embed-3 decoder

podman stop -t 30 embed-1 >/dev/null
podman stop -t 30 embed-2 >/dev/null
[ "$(podman inspect --format '{{.State.ExitCode}}' embed-1)" = 0 ] || fail 'a drain that ends with an error'
eventually 'one replica' has_replicas 1
after_generations 8
check 'from three to one'
memory_held embed-3 decoder

# With none left there is an error, and with one back there is service again.
touch "$stopping"
wait
check 'all ended'
podman kill embed-3 >/dev/null
status=$(generate "$decoder" | cut -d' ' -f1)
[ "$status" = 503 ] || fail "without a replica: HTTP $status, not 503"
say 'none left: 503'
podman rm -f embed-3 >/dev/null
start_embed 3
eventually 'an answer again' decoder_answers
say 'one back: answers again'
say 'passed'
