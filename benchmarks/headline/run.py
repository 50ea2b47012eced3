#!/usr/bin/env python3
"""Comparisons of SCONE on a small model: the headline, beside a plain model of twice its inference FLOPs, and
the ladder, what sizes and seeds change and what controls come to.

    benchmarks/headline/run.py --trainer trainer --data DIR --work DIR --out FILE ARM[:key=value,...]...

DIR of --data holds books, wiki and web as ../shared/data does. Each argument is an arm and what differs from its
default; `NAME=ARM:...` gives a run another name. The runs are a `trainer sweep`, --jobs of them at a time: it goes on
where it was stopped. --out gets JSON lines: a run's overrides, its log as it grows, what it came to.

    M            plain
    M2           plain, of more layers: twice M's inference FLOPs, output layer included
    SCONE        M with the f-grams of --fgrams and the f-gram model of the config
    direct       M with a trained row for each f-gram of --fgrams in place of A
    unigram      M with a trained row for each token, added to its embedding
    bigram       M with trained rows that the last two tokens are hashed to, added: control.rows of them

With --rates N, every arm is first trained for N tokens with each of its learning rates (RATES), and the arms' runs
take the best one.
"""

import argparse
import itertools
import json
import os
import signal
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
LR = ("optimizer.lr", ("2e-3", "4e-3", "8e-3"))
# Rows of controls are of the group of embeddings.
EMBEDDINGS = ("optimizer.groups.embeddings", ("1", "3"))
RATES = {arm: [LR, EMBEDDINGS] for arm in ARMS} | {"SCONE": [LR, EMBEDDINGS, ("optimizer.groups.fgram_model", ("0.3", "1"))]}


class Run:
    def __init__(self, text: str) -> None:
        """[NAME=]ARM[:key=value,...]"""
        head, _, rest = text.partition(":")
        name, _, arm = head.rpartition("=")
        self.arm, self.name = arm, name or arm
        self.overrides = [one for one in rest.split(",") if one]

    def all_overrides(self, args: argparse.Namespace) -> list[str]:
        fgrams = f"fgrams={args.fgrams}" if self.arm in WITH_FGRAMS else "fgrams=null"
        return [fgrams, *ARMS[self.arm], *args.set, *self.overrides]


class Lines:
    """JSON lines, written by several threads."""

    def __init__(self, path: str) -> None:
        self.lock = threading.Lock()
        self.file = open(path, "a", encoding="utf-8")

    def write(self, line: dict) -> None:
        with self.lock:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()


def follow(run: str, log: Path, lines: Lines, ended: threading.Event) -> None:
    """Copies a run's log as it grows."""
    seen = 0
    while True:
        last = ended.is_set()
        text = log.read_text(encoding="utf-8") if log.exists() else ""
        whole = text[: text.rfind("\n") + 1].splitlines()
        for line in whole[seen:]:
            lines.write({"run": run, **json.loads(line)})
        seen = len(whole)
        if last:
            return
        ended.wait(5)


def sweep(args: argparse.Namespace, runs: list[Run], work: Path, lines: Lines) -> dict[str, dict]:
    """Makes the runs; what each came to, by name."""
    ending = lambda name: "" if Path(args.data, name).is_dir() else ".jsonl.zst"
    texts = lambda names: "[" + ",".join(f"{args.data}/{name}{ending(name)}" for name in names) + "]"
    common = [f"data.train={texts(args.train)}", f"data.valid={texts(VALID)}"]
    parts = [(work / f"part-{i}", runs[i :: args.processes]) for i in range(min(args.processes, len(runs)))]
    ended = threading.Event()
    processes, followers = [], []
    for part, own in parts:
        part.mkdir(parents=True, exist_ok=True)
        spec = {"config": args.config, "set": common, "runs": {run.name: run.all_overrides(args) for run in own}}
        # JSON is YAML.
        (part / "sweep.yaml").write_text(json.dumps(spec, indent=1), encoding="utf-8")
        for run in own:
            lines.write({"run": run.name, "arm": run.arm, "overrides": run.all_overrides(args), "device": args.device})
            log = part / "runs" / run.name / "log.jsonl"
            followers.append(threading.Thread(target=follow, args=(run.name, log, lines, ended)))
        command = [args.trainer, "sweep", str(part / "sweep.yaml"), "--out", str(part), "--log", "warn"]
        jobs = min(len(own), -(-args.jobs // args.processes))
        command += ["--jobs", str(jobs), "--device", args.device]
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
    for follower in followers:
        follower.start()
    for process in processes:
        try:
            process.wait(max(1, args.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            # Runs leave a checkpoint; the same command goes on from there.
            process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait()
    ended.set()
    for follower in followers:
        follower.join()
    came_to = {}
    for part, _ in parts:
        results = part / "results.jsonl"
        for line in results.read_text(encoding="utf-8").splitlines() if results.exists() else []:
            line = json.loads(line)
            came_to[line["run"]] = line
            lines.write({"ended": "error" not in line, **line, "overrides": line["overrides"][len(common) :]})
    return came_to


def best_rates(args: argparse.Namespace, arms: set[str], lines: Lines) -> dict[str, list[str]]:
    """The overrides of the best of each arm's learning rates."""
    runs = []
    for arm in sorted(arms):
        for values in itertools.product(*(values for _, values in RATES[arm])):
            rates = [f"{key}={value}" for (key, _), value in zip(RATES[arm], values)]
            short = ",".join([f"training.tokens={args.rates}", "training.eval_every=0", *args.rates_set, *rates])
            runs.append(Run(f"{'-'.join(['rates', arm, *values])}={arm}:{short}"))
    came_to = sweep(args, runs, Path(args.work, "rates"), lines)
    best = {}
    for arm in arms:
        own = [run for run in runs if run.arm == arm and "valid_nats_per_token" in came_to.get(run.name, {})]
        if not own:
            sys.exit(f"no learning rate of {arm} was measured")
        found = min(own, key=lambda run: came_to[run.name]["valid_nats_per_token"])
        best[arm] = found.overrides[-len(RATES[arm]) :]
        lines.write({"best_rates_of": arm, "overrides": best[arm]})
    return best


def at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    for name in ("trainer", "data", "work", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--config", default="benchmarks/headline/headline.yaml")
    parser.add_argument("--train", type=lambda s: s.split(","), default=TRAIN, help="texts below --data, without endings, or what `trainer tokenize` wrote there")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an override of all runs")
    parser.add_argument("--rates", type=int, metavar="TOKENS", help="choose learning rates by runs of this length")
    parser.add_argument("--rates-set", action="append", default=[], metavar="KEY=VALUE", help="an override of those")
    parser.add_argument("--jobs", type=at_least_one, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--processes", type=at_least_one, default=1, help="sweeps that share the runs; several are quicker on a GPU under MPS, and slower without")
    parser.add_argument("--limit", type=float, default=1e9, metavar="SECONDS", help="stop then, to go on another time")
    parser.add_argument("--fgrams", help="f-gram set of SCONE and direct")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("runs", nargs="+", metavar="ARM", type=Run)
    args = parser.parse_args()
    args.deadline = time.monotonic() + args.limit
    for run in args.runs:
        if run.arm not in ARMS:
            sys.exit(f"{run.arm} is no arm: {', '.join(ARMS)}")
        if run.arm in WITH_FGRAMS and not args.fgrams:
            sys.exit(f"{run.arm} needs --fgrams")
    names = [run.name for run in args.runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        sys.exit(f"several runs have one name, {', '.join(twice)}: call them NAME=ARM:...")
    lines = Lines(args.out)
    if args.rates:
        best = best_rates(args, {run.arm for run in args.runs}, lines)
        for run in args.runs:
            run.overrides = best[run.arm] + run.overrides
    came_to = sweep(args, args.runs, Path(args.work), lines)
    missing = [run.name for run in args.runs if "valid_nats_per_token" not in came_to.get(run.name, {})]
    if missing:
        sys.exit(f"not ended: {', '.join(missing)}")


if __name__ == "__main__":
    main()
