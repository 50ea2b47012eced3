#!/usr/bin/env python3
"""Turns the results of benchmarks (JSON lines on stdin or in files) into Markdown tables.

One table for each benchmark and metric: a row a case, a column a subject.
"""

import fileinput
import json


def main() -> None:
    tables: dict[tuple[str, str, str], dict[str, dict[str, float]]] = {}
    for line in fileinput.input():
        if not line.startswith("{"):
            continue
        result = json.loads(line)
        key = result["bench"], result["metric"], result["unit"]
        row = tables.setdefault(key, {}).setdefault(result["case"], {})
        row[result["subject"]] = result["value"]
    for (bench, metric, unit), rows in tables.items():
        subjects = list(dict.fromkeys(subject for row in rows.values() for subject in row))
        print(f"\n{bench}: {metric} ({unit})\n")
        print("| case | " + " | ".join(subjects) + " |")
        print("|---" * (len(subjects) + 1) + "|")
        for case, row in rows.items():
            cells = (f"{row[subject]:.4g}" if subject in row else "-" for subject in subjects)
            print(f"| {case} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
