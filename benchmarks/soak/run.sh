#!/usr/bin/env bash
# Hours in small: decoder-service under twice the load that it admits, with prompts and texts of all lengths,
# clients that leave, deadlines that pass, and so little memory for keys and values that sequences give way.
#
#   benchmarks/soak/run.sh [MINUTES]     default 30
#
# Looked at: memory of the process, KV blocks in use at the end, how each request ended, and a few
# greedy requests that come again and again, whose tokens must never change.
# The exit code is 1 when a request got no status or a wrong one, a block was lost or tokens changed.
#
# MODEL        model directory; default models/demo, whose table is then in the process
# WEIGHTS      default bf16
# KV_MEMORY    default 1MiB for models/demo, 100MiB otherwise
# LONGEST      tokens of the longest prompt; default 150 for models/demo, 1000 otherwise
. "$(dirname "$0")/../serving/setup.sh"
minutes=${1:-30}
prepare
if [ -n "${MODEL:-}" ]; then
    need_model
    case=$(basename "$MODEL") kv=${KV_MEMORY:-100MiB} longest=${LONGEST:-1000}
else
    MODEL=models/demo case=models/demo kv=${KV_MEMORY:-1MiB} longest=${LONGEST:-150}
fi
WEIGHTS=${WEIGHTS:-bf16}
case=${CASE:-$case}
machine start
serve soak "$bin/decoder-service" serve --model "$MODEL" --weights "$WEIGHTS" --listen "127.0.0.1:$port" --http-listen none \
    --metrics-listen "127.0.0.1:$((port + 1))" --max-batch 16 --max-queue 16 --kv-memory "$kv" \
    --client-timeout 5s --drain-timeout 5s
"$PYTHON" benchmarks/soak/soak.py "127.0.0.1:$port" "127.0.0.1:$((port + 1))" --model "$MODEL" --text "$TEXT" \
    --minutes "$minutes" --clients 64 --longest "$longest" --pid "$server" \
    --case "$case, $WEIGHTS, --kv-memory $kv, $minutes minutes" | tee -a "$raw" >&2
code=${PIPESTATUS[0]}
kill "$server"
wait "$server"
ended=$?
[ $ended = 0 ] || note "the server ended with $ended: $(tail -n 5 "$server_log")"
grep -E 'ERROR|panic' "$server_log" >&2
machine end
results
[ "$code" = 0 ] && [ $ended = 0 ]
