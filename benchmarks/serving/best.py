#!/usr/bin/env python3
"""The best of each result over the rounds of a benchmark: the most tokens/s and GB/s, the least of all else.

usage: best.py ROUNDS.jsonl

Other work on a machine only ever makes a figure worse. Lines of `machine` stay as they are.
"""

import json
import sys


def main() -> None:
    best: dict[tuple[str, ...], dict] = {}
    with open(sys.argv[1], encoding="utf-8") as file:
        for line in file:
            if not line.startswith("{"):
                continue
            result = json.loads(line)
            if result["bench"] == "machine":
                print(line, end="")
                continue
            key = tuple(result[name] for name in ("bench", "case", "subject", "metric"))
            most = result["unit"] in ("tokens/s", "GB/s")
            before = best.setdefault(key, result)
            if (result["value"] > before["value"]) == most:
                best[key] = result
    for result in best.values():
        print(json.dumps(result))


if __name__ == "__main__":
    main()
