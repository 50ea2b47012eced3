#!/usr/bin/env python3
"""Comparisons of SCONE on a small model: the headline, beside a plain model of twice its inference FLOPs, and
the ladder, what sizes and seeds change and what controls come to.

    benchmarks/headline/run.py --trainer trainer --data DIR --work DIR --out FILE ARM[:key=value]...

DIR of --data holds books, wiki and web as ../shared/data does. Arms run on one device, --jobs of them at a
time. Each argument is an arm and what differs from its default; results come as JSON lines: one when an arm
starts, its log as it grows, one when it ends. A run goes on where it was stopped.

    M            plain
    M2           plain, of more layers: twice M's inference FLOPs, output layer included
    SCONE        M with the f-grams of --fgrams and the f-gram model of the config
    direct       M with a trained row for each f-gram of --fgrams in place of A
    unigram      M with a trained row for each token, added to its embedding
    bigram       M with trained rows that the last two tokens are hashed to, added: control.rows of them

`NAME=ARM:key=value,...` gives a run another name. Keys are those of --config.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

TRAIN = [
    *(f"books/train-0{i}" for i in range(4)),
    *(f"wiki/train-0{i}" for i in range(4)),
    "web/open-train",
    "web/crawl-train",
]
VALID = ["books/valid", "wiki/valid", "web/c4-valid"]
ARMS = {
    "M": [],
    "M2": ["model.num_hidden_layers=9"],
    "SCONE": [],
    "direct": ["control={kind: direct}"],
    "unigram": ["control={kind: unigram}"],
    "bigram": ["control={kind: bigram, rows: 500000}"],
}
WITH_FGRAMS = ("SCONE", "direct")


class Runs:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.lock = threading.Lock()
        self.turns = threading.Semaphore(args.jobs or len(args.runs))
        self.out = open(args.out, "a", encoding="utf-8")

    def write(self, line: dict) -> None:
        with self.lock:
            self.out.write(json.dumps(line) + "\n")
            self.out.flush()

    def command(self, run: str, arm: str, overrides: list[str]) -> list[str]:
        args = self.args
        ending = lambda name: "" if Path(args.data, name).is_dir() else ".jsonl.zst"
        texts = lambda names: "[" + ",".join(f"{args.data}/{name}{ending(name)}" for name in names) + "]"
        fgrams = f"fgrams={args.fgrams}" if arm in WITH_FGRAMS else "fgrams=null"
        return [
            *[args.trainer, "train", "--config", args.config],
            *["--out", f"{args.work}/{run}", "--device", args.device, "--threads", str(args.threads)],
            *["--log", "warn", f"data.train={texts(args.train)}", f"data.valid={texts(VALID)}"],
            *[fgrams, *ARMS[arm], *overrides],
        ]

    def follow(self, run: str, log: Path, ended: threading.Event) -> None:
        """Copies the run's log as it grows."""
        seen = 0
        while True:
            last = ended.is_set()
            lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
            for line in lines[seen:]:
                self.write({"run": run, **json.loads(line)})
            seen = len(lines)
            if last:
                return
            ended.wait(5)

    def run(self, name: str) -> None:
        with self.turns:
            self.run_now(name)

    def run_now(self, name: str) -> None:
        run, _, rest = name.partition("=") if "=" in name.split(":")[0] else (None, None, name)
        arm, _, overrides = rest.partition(":")
        run = run or arm
        overrides = [one for one in overrides.split(",") if one]
        self.write({"run": run, "arm": arm, "overrides": ARMS[arm] + overrides, "device": self.args.device})
        log, ended = Path(self.args.work, run, "log.jsonl"), threading.Event()
        follower = threading.Thread(target=self.follow, args=(run, log, ended))
        follower.start()
        began = time.time()
        process = subprocess.run(self.command(run, arm, overrides), capture_output=True, text=True)
        ended.set()
        follower.join()
        end = {"run": run, "ended": process.returncode, "wall_s": round(time.time() - began, 1)}
        if process.returncode:
            end["stderr"] = process.stderr[-2000:]
        self.write(end)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    for name in ("trainer", "data", "work", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--config", default="benchmarks/headline/headline.yaml")
    parser.add_argument("--train", type=lambda s: s.split(","), default=TRAIN, help="texts below --data, without endings, or what `trainer tokenize` wrote there")
    parser.add_argument("--jobs", type=int, help="arms at a time; default: all")
    parser.add_argument("--fgrams", help="f-gram set of SCONE arms")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 1) // 4))
    parser.add_argument("runs", nargs="+", metavar="ARM")
    args = parser.parse_args()
    for name in args.runs:
        arm = name.split(":")[0].split("=")[-1]
        if arm not in ARMS:
            sys.exit(f"{arm} is no arm: {', '.join(ARMS)}")
        if arm in WITH_FGRAMS and not args.fgrams:
            sys.exit(f"{arm} needs --fgrams")
    runs = Runs(args)
    threads = [threading.Thread(target=runs.run, args=(name,)) for name in args.runs]
    for thread in threads:
        thread.start()
        # In the order of the arguments.
        time.sleep(0.05)
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
