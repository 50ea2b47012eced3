#!/usr/bin/env bash
# What f-gram look-ups cost a decoder: a model grafted on SmolLM2-135M computes what the plain model computes,
# so the difference is the look-ups.
#
#   MODEL=DIR benchmarks/tier-cost/run.sh     about 5 minutes
#
# Subjects: the plain model; the grafted one with its table in the process; with embed-services on loopback,
# one of all rows, and two of a shard each. Of models/demo, which has no plain form, the last three. All servers
# run from the start and are measured in turn; the median over ROUNDS (default 5) counts. Also checked: that the
# tokens of all are equal.
#
# MODEL      SmolLM2-135M in Hugging Face layout; without it models/demo alone is measured
# CORPUS     text to mine f-grams from; default: the text of the prompts, see TEXT in ../serving/setup.sh
# FGRAMS     f-grams at most; default 20000
# WEIGHTS    type of weights of the decoder; default bf16
# THREADS    threads that compute; default 2
. "$(dirname "$0")/../serving/setup.sh"
ROUNDS=${ROUNDS:-5}
THREADS=${THREADS:-2}
WEIGHTS=${WEIGHTS:-bf16}
FGRAMS=${FGRAMS:-20000}
STREAMS=${STREAMS:-1,8,32}

# tables MODEL DIR: the whole table and two shards, rows in f32 so that nothing is rounded.
tables() {
    local model=$1 dir=$2 part
    mkdir -p "$dir"
    [ -e "$dir/whole/table.json" ] ||
        "$bin/trainer" --log warn precompute --model "$model" --out "$dir/whole" --store mapped --dtype f32 >&2 || return
    for part in 0 1; do
        [ -e "$dir/$part/table.json" ] ||
            "$bin/trainer" --log warn precompute --model "$model" --out "$dir/$part" --store mapped --dtype f32 --shard "$part/2" >&2 ||
            return
    done
}

# decoder NAME FLAG..: a decoder-service; its name and address go to $subjects.
decoder() {
    local name=$1
    shift
    port=$((port + 1))
    serve "decoder-$port" "$bin/decoder-service" serve --listen "127.0.0.1:$port" --http-listen none --threads "$THREADS" \
        --weights "$WEIGHTS" --max-batch 40 --kv-memory 256MiB "$@"
    subjects+=("$name=127.0.0.1:$port")
}

embed() {
    port=$((port + 1))
    serve "embed-$port" "$bin/embed-service" serve --table "$1" --listen "127.0.0.1:$port" --hot-bytes 512MiB
    embed=127.0.0.1:$port
}

# three MODEL TABLES: the subjects with look-ups.
three() {
    local model=$1 dir=$2 first
    embed "$dir/whole"
    decoder "remote, 1 shard" --model "$model" --embed "$embed"
    embed "$dir/0"
    first=$embed
    embed "$dir/1"
    decoder "remote, 2 shards" --model "$model" --embed "$first,$embed"
    decoder embedded --model "$model" --table "$dir/whole"
}

# measure CASE MODEL: all subjects in turn, then their tokens.
measure() {
    local case=$1 model=$2 subject lookups
    for round in $(seq "$ROUNDS"); do
        for subject in "${subjects[@]}"; do
            quiet
            lookups=--lookups
            [ "${subject%=*}" != plain ] || lookups=
            # shellcheck disable=SC2086 # an absent flag
            "$PYTHON" benchmarks/serving/load.py decoder-service "${subject##*=}" --model "$model" --text "$TEXT" \
                --bench tier-cost --case "$case" --subject "${subject%=*}" --streams "$STREAMS" --prompt 200 --room 0 \
                --seed "$round" $lookups | tee -a "$raw" >&2 || note "failed: $subject"
        done
    done
    "$PYTHON" benchmarks/tier-cost/tokens.py "$model" "$TEXT" "$case" "${subjects[@]}" | tee -a "$raw" >&2
}

prepare
machine start
subjects=()
tables models/demo "$work/demo-tables" || fail "no tables of models/demo"
three models/demo "$work/demo-tables"
subjects=("${subjects[2]}" "${subjects[@]:0:2}")
measure models/demo models/demo
stop
servers=()
if [ -n "${MODEL:-}" ]; then
    need_model
    graft=$work/graft-$FGRAMS
    if [ ! -e "$graft/scone.json" ]; then
        "$bin/trainer" --log warn mine --input "${CORPUS:-$TEXT}" --tokenizer "$MODEL/tokenizer.json" --min-count 2 \
            --max-fgrams "$FGRAMS" --no-cache --out "$work/fgrams-$FGRAMS.bin" >&2 || fail "no f-grams"
        "$bin/trainer" --log warn graft --base "$MODEL" --fgrams "$work/fgrams-$FGRAMS.bin" --out "$graft" >&2 ||
            fail "no graft"
    fi
    tables "$graft" "$graft-tables" || fail "no tables of the grafted model"
    subjects=()
    decoder plain --model "$MODEL"
    three "$graft" "$graft-tables"
    measure "SmolLM2-135M, $WEIGHTS" "$MODEL"
fi
machine end
results --median
