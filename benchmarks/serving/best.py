#!/usr/bin/env python3
"""One figure of each result over the rounds of a benchmark.

usage: best.py ROUNDS.jsonl [--median]

The best: the most tokens/s and GB/s, the least of all else, as other work on a machine only ever makes a figure worse.
Or the median, where subjects that differ little were measured in turn and the machine's own speed changes. Lines of
`machine` stay as they are.
"""

import json
import statistics
import sys


def one_of(values: list[float], unit: str, median: bool) -> float:
    if median:
        return round(statistics.median(values), 3)
    return max(values) if unit in ("tokens/s", "GB/s") else min(values)


def main() -> None:
    median = "--median" in sys.argv[2:]
    results: dict[tuple[str, ...], list[dict]] = {}
    with open(sys.argv[1], encoding="utf-8") as file:
        for line in file:
            if not line.startswith("{"):
                continue
            result = json.loads(line)
            if result["bench"] == "machine":
                print(line, end="")
                continue
            key = tuple(result[name] for name in ("bench", "case", "subject", "metric"))
            results.setdefault(key, []).append(result)
    for rounds in results.values():
        value = one_of([result["value"] for result in rounds], rounds[0]["unit"], median)
        print(json.dumps(rounds[0] | {"value": value}))


if __name__ == "__main__":
    main()
