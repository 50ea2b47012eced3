#!/usr/bin/env python3
"""Greedy tokens of two servers of the same model: how long they agree, and how far apart their
log probabilities are as long as they do.

usage: tokens.py EXPECTED_ADDRESS ADDRESS CASE
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

from decoder import generate, request, wait_until_ready

TOKENS = 60
PROMPTS = [
    "The old house at the end of the street",
    "In the beginning of the year",
    "Once upon a time there was",
    "The president of the United States",
    "He said that he would",
    "It was a dark and stormy night",
    "The history of the city",
    "A new method for",
    "She looked at him and",
    "According to the report",
    "In 1914 the war",
    "The river runs through",
    "My dear sir, I have",
    "You can use this",
    "The population of the town",
    "When the sun rose over the hills",
    "There is no doubt that",
    "To be or not to be",
    "The company announced",
    "Children should be",
]


def run(address: str, **fields) -> list[list]:
    """All prompts at once, so that their prompts and decode steps are mixed."""
    data = [request(prompt, TOKENS, **fields) for prompt in PROMPTS]
    of = lambda one: [t for r in generate(address, one, 120) for t in r.tokens]
    with ThreadPoolExecutor(len(data)) as threads:
        return list(threads.map(of, data))


def probabilities(token) -> dict[int, float]:
    known = {top.id: top.logprob for top in token.top_logprobs}
    known[token.id] = token.logprob
    return known


def compare(expected: list, got: list) -> tuple[int, float, float | None]:
    """Tokens before the first that differs, the largest difference of a log probability that both
    report on the way, and how close the two best were where they part."""
    largest = 0.0
    for at, (a, b) in enumerate(zip(expected, got)):
        # The first token that differs was still chosen after the same text.
        first, second = probabilities(a), probabilities(b)
        both = first.keys() & second.keys()
        largest = max([largest] + [abs(first[id] - second[id]) for id in both])
        if a.id != b.id:
            gap = abs(first[a.id] - first[b.id]) if b.id in first else None
            return at, largest, gap
    return min(len(expected), len(got)), largest, None


def main() -> None:
    expected_at, got_at, case = sys.argv[1:]
    info = [wait_until_ready(address, 40) for address in (expected_at, got_at)]
    same = info[0].table_id == info[1].table_id
    print(f"{info[1].embed_mode} rows, same table: {same}", file=sys.stderr)
    found = []
    scored = run(got_at, logprobs=5)
    for prompt, a, b in zip(PROMPTS, run(expected_at, logprobs=5), scored):
        at, largest, gap = compare(a, b)
        found.append((at, largest))
        if at < TOKENS:
            print(f"{prompt!r}: parts after {at} tokens, best two {gap} nats apart", file=sys.stderr)
    matched = sum(t.match_length > 0 for t in b) / max(len(b), 1)
    print(f"f-gram rows in the last text: {matched:.0%}", file=sys.stderr)
    # Without log probabilities tokens are chosen on the device.
    ids = lambda texts: [[token.id for token in text] for text in texts]
    chosen = sum(a == b for a, b in zip(ids(scored), ids(run(got_at))))
    lengths = sorted(at for at, _ in found)
    results = [
        ("prompts whose tokens are all equal", sum(at == TOKENS for at in lengths), "prompts"),
        ("tokens until the first that differs, least", lengths[0], "tokens"),
        ("tokens until the first that differs, mean", sum(lengths) / len(lengths), "tokens"),
        ("prompts with the same tokens when no logits are asked for", chosen, "prompts"),
        ("largest difference of a log probability", max(largest for _, largest in found), "nats"),
    ]
    for metric, value, unit in results:
        line = {"bench": "gpu_tokens", "case": case, "subject": "cuda against cpu"}
        print(json.dumps(line | {"metric": metric, "value": value, "unit": unit}))


if __name__ == "__main__":
    main()
