#!/usr/bin/env bash
# decoder-service and trainer on a GPU: checked against the CPU, measured beside PyTorch.
#
#   benchmarks/gpu.sh [PART]...       all parts, about 5 minutes
#
#   tokens   greedy tokens of models/demo, table embedded, on cuda:0 and on the CPU
#   train    50 training steps, held-out loss and table of models/demo, on both
#   load     prefill and decode through `serve` at 1, 8, 32, 128 streams
#   peer     the same model in transformers on PyTorch
#
# Results are JSON lines on stdout (for tabulate.py), notes on stderr; both also stand in gpu.jsonl
# and gpu.log in $OUT, or target/gpu. A part that fails or takes too long does not stop the others.
#
# Programs come from $PROGRAMS, a folder that was built elsewhere (.gpu when it is there), as they are
# or as .xz; without one they are built here, which wants nvcc (scripts/cuda-toolkit.sh). Needs Python
# with grpcio and protobuf, for `load` and `peer` with PyTorch, safetensors and transformers too.
# The model of `load` and `peer` has SmolLM2-135M's shape and random weights; its tokenizer.json is
# taken from the folder of programs, else models/demo's.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"

DEVICE=${DEVICE:-cuda:0}          # what is compared with the CPU
DTYPES=${DTYPES:-f32 bf16}        # those that decoder-service refuses are passed over
STREAMS=${STREAMS:-1,8,32,128}
PROMPT=${PROMPT:-512}             # tokens of a prompt in `load` and `peer`
TOKENS=${TOKENS:-64}              # tokens decoded by each stream in `peer`
LOAD_TOKENS=${LOAD_TOKENS:-500}   # and in `load`, where streams begin one after the other
LIMIT=${LIMIT:-30}                # seconds that one round of `load` may take
STEPS=${STEPS:-50}
export DEVICE DTYPES STREAMS PROMPT TOKENS LIMIT STEPS

out=${OUT:-$root/target/gpu}
work=${WORK:-${TMPDIR:-/tmp}/scone-gpu}
bin=$work/bin
mkdir -p "$out" "$bin/real"

note() { echo "gpu.sh: $*" >&2; }

# Puts decoder-service and trainer into $bin.
programs() {
    local from=${PROGRAMS:-$root/.gpu} name
    if [ ! -d "$from" ]; then
        cargo build --release --locked --features cuda -p decoder-service -p trainer >&2 || return
        from=$root/target/release
    fi
    for name in decoder-service trainer; do
        if [ -e "$from/$name.xz" ]; then
            python3 -c 'import lzma, shutil, sys
shutil.copyfileobj(lzma.open(sys.argv[1]), open(sys.argv[2], "wb"))' "$from/$name.xz" "$bin/real/$name" || return
        else
            cp "$from/$name" "$bin/real/$name" || return
        fi
        chmod +x "$bin/real/$name"
    done
    tokenizer=$from/tokenizer.json
    [ -e "$tokenizer" ] || tokenizer=$root/models/demo/tokenizer.json
}

# CUDA's libraries: those that PyTorch brings, a toolkit's, the driver's. For our programs alone: Python
# may have others of the same names.
libraries() {
    local dirs dir path=${LD_LIBRARY_PATH:-} name
    dirs=$(python3 -c 'import glob, site, sys
for place in site.getsitepackages() + sys.path:
    print(*glob.glob(place + "/nvidia/cu13/lib"), sep="\n")' | sort -u)
    for dir in $dirs "${CUDA_HOME:-/usr/local/cuda}"/lib64 /usr/local/nvidia/lib64; do
        [ -d "$dir" ] && path=${path:+$path:}$dir
    done
    for name in decoder-service trainer; do
        printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s/real/%s "$@"\n' "$path" "$bin" "$name" >"$bin/$name"
        chmod +x "$bin/$name"
    done
    LD_LIBRARY_PATH=$path ldd "$bin/real/decoder-service" | grep -E 'cuda|cublas|curand|not found' >&2
}

# precompute DEVICE DIR: the demo's table, and what that took.
precompute() {
    local began=$EPOCHREALTIME
    "$bin/trainer" precompute --model models/demo --device "$1" --out "$2" --store mapped --log warn >&2 || return
    python3 -c 'import json, sys
print(json.dumps({"bench": "gpu_table", "case": "models/demo, 200,000 rows", "subject": sys.argv[1],
    "metric": "precompute", "value": float(sys.argv[3]) - float(sys.argv[2]), "unit": "s"}))' \
        "${1%%:*}" "$began" "$EPOCHREALTIME"
}

# One that both devices read.
table() {
    [ -e "$work/table" ] || precompute cpu "$work/table"
}

# serve PORT DEVICE FLAG..: in the background, until its port is open; sets $server.
serve() {
    local port=$1 device=$2 log=$work/server-$1.log
    shift 2
    "$bin/decoder-service" serve --listen "127.0.0.1:$port" --http-listen none --device "$device" \
        --drain-timeout 1s "$@" \
        >"$log" 2>&1 &
    server=$!
    until (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
        if ! kill -0 $server 2>/dev/null; then
            note "the server on $device ended: $(tail -n 5 "$log")"
            return 1
        fi
        sleep 0.1
    done
}

part_tokens() {
    table || return
    local cpu
    serve 7511 cpu --model models/demo --table "$work/table" --weights f32 || return
    cpu=$server
    serve 7512 "$DEVICE" --model models/demo --table "$work/table" || return
    python3 benchmarks/gpu/tokens.py 127.0.0.1:7511 127.0.0.1:7512 "models/demo, f32"
    local code=$?
    kill "$cpu" "$server"
    [ $code = 0 ] || tail -n 20 "$work"/server-751?.log >&2
    return $code
}

# Text that is in the repository: its documents, several times over for a stream long enough.
corpus() {
    mkdir -p "$work/text"
    local copy
    for copy in 1 2 3 4; do
        cat README.md ARCHITECTURE.md docs/*.md models/demo/README.md >"$work/text/$copy.txt"
    done
}

part_train() {
    corpus
    local device name
    for device in cpu "$DEVICE"; do
        name=${device%%:*}
        rm -rf "$work/run-$name"
        "$bin/trainer" train --config models/demo/train.yaml --device "$device" --out "$work/run-$name" \
            --no-cache --log warn "data.train=[$work/text]" 'data.valid=[]' training.tokens=null \
            training.steps="$STEPS" training.log_every=1 training.eval_every=0 training.checkpoint_every=0 || return
    done
    python3 benchmarks/gpu/losses.py "$work/run-cpu/log.jsonl" "$work/run-${DEVICE%%:*}/log.jsonl" \
        "models/demo/train.yaml, $STEPS steps"
    table || return
    for device in cpu "$DEVICE"; do
        note "held-out loss of models/demo on $device, rows of the table and of the live f-gram model:"
        "$bin/trainer" evaluate --model models/demo --input "$work/text/1.txt" --table "$work/table" \
            --device "$device" --no-cache --max-tokens 20000 --log warn --json >&2 || return
        "$bin/trainer" evaluate --model models/demo --input "$work/text/1.txt" --row-dtype f16 \
            --device "$device" --no-cache --max-tokens 20000 --log warn --json >&2 || return
    done
    precompute "$DEVICE" "$work/table-gpu"
}

random_llama() {
    [ -e "$work/llama/model.safetensors" ] && return
    python3 benchmarks/gpu/random_llama.py "$tokenizer" "$work/llama" >&2
}

# measure PORT DTYPE CASE PROMPT TOKENS FLAG..: one model through `serve`.
measure() {
    local port=$1 dtype=$2 case=$3 prompt=$4 tokens=$5 code
    shift 5
    serve "$port" "$DEVICE" --dtype "$dtype" --max-batch 128 --max-queue 512 --max-step-tokens 2048 --kv-memory 16GiB "$@" || return
    python3 benchmarks/gpu/load.py "127.0.0.1:$port" "decoder-service $dtype" "$case" \
        --streams "$STREAMS" --prompt "$prompt" --tokens "$tokens" --limit "$LIMIT"
    code=$?
    [ $code = 0 ] || tail -n 20 "$work/server-$port.log" >&2
    kill "$server"
    return $code
}

part_load() {
    random_llama || return
    table || return
    local dtype port=7520 code=0
    for dtype in $DTYPES; do
        if [[ $("$bin/decoder-service" serve --device "$DEVICE" --dtype "$dtype" --model /nowhere 2>&1) == *--dtype* ]]; then
            note "decoder-service has no --dtype $dtype"
            continue
        fi
        measure $((++port)) "$dtype" "SmolLM2-135M's shape" "$PROMPT" "$LOAD_TOKENS" --model "$work/llama" ||
            code=1
        measure $((++port)) "$dtype" models/demo 128 200 --model models/demo --table "$work/table" || code=1
    done
    return $code
}

part_peer() {
    random_llama || return
    python3 benchmarks/gpu/peer.py "$work/llama" "SmolLM2-135M's shape" --device "$DEVICE" \
        --streams "$STREAMS" --prompt "$PROMPT" --tokens "$TOKENS"
}

limit_of() {
    case $1 in
        tokens) echo 60 ;;
        train) echo 90 ;;
        load) echo 180 ;;
        peer) echo 90 ;;
    esac
}

# A part runs in a process of its own, so that a limit ends it with all that it started.
if [ "${1:-}" = --part ]; then
    tokenizer=$3
    "part_$2"
    exit
fi

{
    note "$(nproc) x $(grep -m 1 'model name' /proc/cpuinfo | cut -d: -f2)"
    note "$(nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>&1)"
    programs || { note "no programs"; exit 1; }
    libraries
} 2> >(tee "$out/gpu.log" >&2)
: >"$out/gpu.jsonl"
for part in "${@:-tokens train load peer}"; do
    for part in $part; do
        began=$SECONDS
        {
            PYTHONUNBUFFERED=1 timeout -k 5 "$(limit_of "$part")" "$0" --part "$part" "$tokenizer" |
                tee -a "$out/gpu.jsonl"
            code=${PIPESTATUS[0]}
            note "part $part: exit code $code after $((SECONDS - began)) s"
        } 2> >(tee -a "$out/gpu.log" >&2)
    done
done
