#!/usr/bin/env bash
# Real clients against a decoder-service with models/demo: the official openai client, langchain-openai, litellm,
# lm-evaluation-harness beside `trainer evaluate`, NVIDIA AIPerf, and chromium with the page. Makes the Python
# environments it needs in $VENVS (default target/clients; a few minutes, from PyPI), or takes those that are there.
# BIN names a folder with built programs; without it they are built. CLIENTS chooses some of: openai frameworks lm-eval
# aiperf page.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=integration-tests/clients
VENVS=${VENVS:-target/clients}
CLIENTS=${CLIENTS:-openai frameworks lm-eval aiperf page}
bin=${BIN:-target/release}
[ -n "${BIN:-}" ] || cargo build --release -q -p decoder-service -p trainer
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT

# venv NAME PACKAGE..: an environment with them.
venv() {
    local name=$1
    shift
    [ -x "$VENVS/$name/bin/python" ] || {
        python3 -m venv "$VENVS/$name"
        "$VENVS/$name/bin/pip" install -q "$@"
    }
    python=$VENVS/$name/bin/python
}

# What the trainer computes, so that log likelihoods can be compared.
"$bin/decoder-service" --log warn serve --model models/demo --weights f32 --kv-dtype f32 --listen 127.0.0.1:0 \
    --http-listen 127.0.0.1:0 --chat-template $here/chat_template.jinja >"$work/address" &
until [ -s "$work/address" ]; do sleep 0.1; done
url=http://$(grep -oE '"http":"[^"]+' "$work/address" | cut -d'"' -f4)

for client in $CLIENTS; do
    echo "== $client"
    case $client in
    openai)
        venv clients -r $here/requirements.txt
        "$python" $here/openai_check.py "$url/v1"
        ;;
    frameworks)
        venv clients -r $here/requirements.txt
        "$python" $here/frameworks_check.py "$url/v1" demo
        ;;
    lm-eval)
        venv clients -r $here/requirements.txt
        "$python" $here/lm_eval_check.py "$url" models/demo "$bin/trainer"
        ;;
    aiperf)
        venv aiperf aiperf==0.13.0
        for kind in completions chat; do
            "$VENVS/aiperf/bin/aiperf" profile -m demo --url "$url" --endpoint-type $kind --streaming \
                --tokenizer models/demo --synthetic-input-tokens-mean 64 --output-tokens-mean 64 --concurrency 8 \
                --request-count 64 --extra-inputs ignore_eos:true --ui none --output-artifact-dir "$work/$kind" >"$work/$kind.log" 2>&1 ||
                { tail -50 "$work/$kind.log"; exit 1; }
            python3 - "$work/$kind/profile_export_aiperf.json" $kind <<'P'
import json, sys
found = json.load(open(sys.argv[1]))
one = lambda name, part="avg": found[name][part]
assert one("request_count") == 64 and not found.get("error_request_count", {}).get("avg"), found
print(f"ok: aiperf {sys.argv[2]}: {one('output_token_throughput'):.0f} tokens/s, first token "
      f"{one('time_to_first_token', 'p50'):.1f} ms, {one('inter_token_latency', 'p50'):.2f} ms between tokens (medians)")
P
        done
        ;;
    page)
        if command -v chromedriver >/dev/null; then
            python3 integration-tests/page/check.py --server "$bin/decoder-service serve --model models/demo --chat-template $here/chat_template.jinja" \
                ${AXE:+--axe "$AXE"} ${SHOTS:+--shots "$SHOTS"}
        else
            echo "skipped: no chromedriver"
        fi
        ;;
    *)
        echo "no such client: $client"
        exit 2
        ;;
    esac
done
