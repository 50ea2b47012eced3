#!/usr/bin/env python3
"""Two training runs side by side, from their log.jsonl.

usage: losses.py EXPECTED_LOG LOG CASE
"""

import json
import sys


def steps(path: str) -> dict[int, dict]:
    lines = (json.loads(line) for line in open(path))
    return {line["step"]: line for line in lines if "loss" in line}


def speed(log: dict[int, dict]) -> float:
    """Tokens a second after the first tenth, in which kernels are loaded."""
    later = sorted(line["tokens_per_s"] for step, line in log.items() if step > len(log) // 10)
    return later[len(later) // 2]


def main() -> None:
    cpu, cuda, case = steps(sys.argv[1]), steps(sys.argv[2]), sys.argv[3]
    both = sorted(cpu.keys() & cuda.keys())
    for step in both:
        if step <= 5 or step % 5 == 0:
            a, b = cpu[step]["loss"], cuda[step]["loss"]
            print(f"step {step:3}  cpu {a:.6f}  cuda {b:.6f}  {b - a:+.6f}", file=sys.stderr)
    apart = [abs(cpu[step]["loss"] - cuda[step]["loss"]) for step in both]
    results = [
        ("cuda against cpu", "difference of the first loss", apart[0], "nats/token"),
        ("cuda against cpu", "largest difference of a loss", max(apart), "nats/token"),
        ("cpu", "last loss", cpu[both[-1]]["loss"], "nats/token"),
        ("cuda", "last loss", cuda[both[-1]]["loss"], "nats/token"),
        ("cpu", "speed, median step", speed(cpu), "tokens/s"),
        ("cuda", "speed, median step", speed(cuda), "tokens/s"),
    ]
    for subject, metric, value, unit in results:
        line = {"bench": "gpu_train", "case": case, "subject": subject}
        print(json.dumps(line | {"metric": metric, "value": value, "unit": unit}))


if __name__ == "__main__":
    main()
