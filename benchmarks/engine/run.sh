#!/usr/bin/env bash
# decoder-service with each type of weights, beside llama.cpp, ik_llama.cpp, mistral.rs and transformers on PyTorch.
#
#   MODEL=DIR benchmarks/engine/run.sh [SUBJECT]...     without a subject: all, 10 to 15 minutes
#
# Subjects: decoder-service, llama.cpp, ik_llama.cpp, mistral.rs, pytorch. Each round runs every variant of each once, one after the
# other; the best over ROUNDS (default 2) counts. Results are JSON lines on stdout, notes on stderr.
#
# MODEL           SmolLM2-135M in Hugging Face layout; without it models/demo alone is measured
# GGUF            the same model as GGUF, any type, for llama.cpp, which gets it as F32, F16, Q8_0, Q4_0
# TORCH_PYTHON    Python with torch and transformers; without it a venv is made, by pip's settings
# LLAMA_PYTHON    Python with xllamacpp and gguf; without it a venv is made
# PEER_PYTHON     Python with ik-llama-cpp-python and mistralrs; without it a venv is made
# THREADS         threads that compute, the same for all; default 2
# LIMIT           seconds that one variant may take; what it measured until then counts; default 180
# More in ../serving/setup.sh.
shopt -s extglob
. "$(dirname "$0")/../serving/setup.sh"
ROUNDS=${ROUNDS:-2}
THREADS=${THREADS:-2}
LIMIT=${LIMIT:-180}
WEIGHTS=${WEIGHTS:-f32 bf16 int8 int4}
TYPES=${TYPES:-F32 F16 Q8_0 Q4_0}
subjects=${*:-decoder-service llama.cpp ik_llama.cpp mistral.rs pytorch}

# load KIND PORT MODEL CASE SUBJECT PROMPT ROOM [TOKENS]: measures the server that was started last.
load() {
    timeout "$LIMIT" "$PYTHON" benchmarks/serving/load.py "$1" "127.0.0.1:$2" --model "$3" --text "$TEXT" --bench engine \
        --case "$4" --subject "$5" --prompt "$6" --room "$7" --pid "$server" --seed "$round" --tokens "${8:-96,64,64}" | tee -a "$raw" >&2 ||
        note "$5, $4: $(tail -n 3 "$server_log")"
    stop "$server"
}

# ours MODEL CASE PROMPT ROOM [TOKENS]
ours() {
    local weights bytes
    for weights in $WEIGHTS; do
        port=$((port + 1))
        quiet
        serve "ours-$weights" "$bin/decoder-service" serve --model "$1" --weights "$weights" \
            --listen "127.0.0.1:$port" --http-listen none --threads "$THREADS" --max-batch 40 --max-queue 64 \
            --kv-memory 512MiB
        load decoder-service "$port" "$1" "$2" "decoder-service $weights" "$3" "$4" "${5:-}"
        bytes=$(sed -E 's/\x1b\[[0-9;]*m//g' "$server_log" | grep -oE 'weight_bytes"?[=:](Some\()?[0-9]+' | grep -oE '[0-9]+$')
        [ -z "$bytes" ] || [ -z "$memory" ] || "$PYTHON" - "$2" "$weights" "$bytes" "$memory" <<'P' | tee -a "$raw" >&2
import json, sys
case, weights, size, memory = sys.argv[1:]
for metric, value, unit in [
    ("weights", int(size) / 2**20, "MiB"),
    ("bound of one stream", float(memory) * 1e9 / int(size), "tokens/s"),
]:
    line = {"bench": "engine", "case": case, "subject": f"decoder-service {weights}"}
    print(json.dumps(line | {"metric": metric, "value": round(value, 1), "unit": unit}))
P
    done
}

# The model as GGUF of TYPE, in a folder with its tokenizer.
converted() {
    local dir=$work/gguf-$1
    mkdir -p "$dir"
    [ -e "$dir/model.gguf" ] ||
        "$LLAMA_PYTHON" benchmarks/engine/convert_gguf.py "$GGUF" "$dir/model.gguf" "$1" >&2 || return
    cp -f "$MODEL/tokenizer.json" "$dir"
    echo "$dir/model.gguf"
}

theirs() {
    local type file
    for type in $TYPES; do
        file=$(converted "$type") || continue
        port=$((port + 1))
        quiet
        serve "llama-$type" "$LLAMA_PYTHON" benchmarks/engine/llama_server.py "$file" "$port" \
            "$THREADS" 33
        load llama.cpp "$port" "$MODEL" SmolLM2-135M "llama.cpp $type" 1024 1000
    done
}

# in_process ENGINE: no server, one stream.
in_process() {
    local type file
    for type in $TYPES; do
        file=$(converted "$type") || continue
        quiet
        timeout "$LIMIT" "$PEER_PYTHON" benchmarks/engine/python_peer.py "$1" "$file" "$type" "$THREADS" \
            --case SmolLM2-135M 2>"$work/$1.log" | grep '^{' | tee -a "$raw" >&2 ||
            note "$1 $type: $(tail -n 1 "$work/$1.log")"
    done
}

prepare
[[ $subjects != *pytorch* ]] || [ -z "${MODEL:-}" ] ||
    TORCH_PYTHON=${TORCH_PYTHON:-$(venv torch torch transformers safetensors)} || subjects=${subjects/pytorch/}
[[ $subjects != *llama.cpp* && $subjects != *mistral.rs* ]] || [ -z "${GGUF:-}" ] ||
    LLAMA_PYTHON=${LLAMA_PYTHON:-$(venv llama xllamacpp gguf)} || subjects=${subjects//?(ik_)llama.cpp/}
[[ $subjects != *ik_llama.cpp* && $subjects != *mistral.rs* ]] || [ -z "${GGUF:-}" ] ||
    PEER_PYTHON=${PEER_PYTHON:-$(venv peers ik-llama-cpp-python mistralrs)} || subjects=${subjects//@(ik_llama.cpp|mistral.rs)/}
[ -z "${MODEL:-}" ] || need_model
[ -n "${MODEL:-}" ] || note "no MODEL: models/demo alone; see need_model in ../serving/setup.sh for SmolLM2"
memory=
if [ -e "$bin/examples/matmul_speed" ]; then
    line=$(RAYON_NUM_THREADS=$THREADS "$bin/examples/matmul_speed" none 1 | head -n 1)
    memory=$(grep -oE '"value":[0-9.]+' <<<"$line" | cut -d: -f2)
    echo "{\"bench\":\"engine\",\"case\":\"plain read\",\"subject\":\"memory\",\"metric\":\"bandwidth\",\"value\":$memory,\"unit\":\"GB/s\"}" | tee -a "$raw" >&2
fi
for round in $(seq "$ROUNDS"); do
    machine "round $round, start"
    for subject in $subjects; do
        case $subject in
            decoder-service)
                ours models/demo models/demo 200 0 230,230,230
                [ -z "${MODEL:-}" ] || ours "$MODEL" SmolLM2-135M 1024 1000
                ;;
            llama.cpp)
                [ -z "${MODEL:-}" ] || [ -z "${GGUF:-}" ] || theirs
                ;;
            ik_llama.cpp | mistral.rs)
                [ -z "${MODEL:-}" ] || [ -z "${GGUF:-}" ] || in_process "$subject"
                ;;
            pytorch)
                [ -z "${MODEL:-}" ] || for dtype in f32 bf16; do
                    quiet
                    timeout "$LIMIT" "$TORCH_PYTHON" benchmarks/engine/torch_peer.py "$MODEL" "$dtype" "$THREADS" \
                        --case SmolLM2-135M | tee -a "$raw" >&2
                done
                ;;
            *) fail "no subject $subject" ;;
        esac
    done
    machine "round $round, end"
done
results
