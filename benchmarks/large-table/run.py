#!/usr/bin/env python3
"""A table of 100 million int4 rows of 128 elements: built, verified, served, and what that takes.

    cargo build --release -p embed-service && cargo bench --no-run -p scone-fgram --bench large
    benchmarks/large-table/run.py --dir /path/on/the/disk/to/measure [--rows 100000000] [--keep]

Each part is a process of its own, whose largest memory is told: anonymous, and with the pages of files
that it has mapped. Beside each figure of the disk stands what `dd` and, where it is installed, `fio` get
from the same file in the same minute. Needs root for nothing; takes 15 GB on the disk.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def say(part, metric, value, unit):
    print(json.dumps({"part": part, "metric": metric, "value": round(value, 4), "unit": unit,
                      "load": round(os.getloadavg()[0], 1)}), flush=True)


def memory(pid):
    """Resident bytes of a process, anonymous and of files; None once it has ended."""
    found = {}
    try:
        for line in open(f"/proc/{pid}/status"):
            name, _, rest = line.partition(":")
            if name in ("RssAnon", "RssFile"):
                found[name] = int(rest.split()[0]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        return None
    return (found["RssAnon"], found["RssFile"]) if len(found) == 2 else None


class Watched:
    """A process, and the most memory it was seen with."""

    def __init__(self, command):
        self.process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
        self.anonymous = self.all = 0
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self):
        while self.process.poll() is None:
            if seen := memory(self.process.pid):
                self.anonymous = max(self.anonymous, seen[0])
                self.all = max(self.all, sum(seen))
            time.sleep(0.05)

    def tell(self, part):
        say(part, "most anonymous memory", self.anonymous / 2**30, "GiB")
        say(part, "most memory with mapped files", self.all / 2**30, "GiB")


def run(part, command):
    """Runs a command to its end; returns the lines of JSON it printed."""
    watched = Watched(command)
    out, _ = watched.process.communicate()
    if watched.process.returncode:
        sys.exit(f"{command} failed")
    watched.tell(part)
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    for line in lines:
        if "metric" in line:
            say(part, line["metric"], line["value"], line["unit"])
    return lines


def drop(folder):
    """The page cache forgets the files; the disk, or the host of a virtual machine, may not."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def dd(path, *flags):
    """Bytes a second of one sequential read."""
    began = time.monotonic()
    subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=4M", "status=none", *flags], check=True)
    return path.stat().st_size / (time.monotonic() - began)


def disk_sequential(table, state):
    flags = {"cold": [], "warm": [], "past the page cache": ["iflag=direct"]}
    if state == "cold":
        drop(table)
    rate = dd(table / "rows.bin", *flags[state])
    say("disk", f"dd of rows.bin, {state}", rate / 1e9, "GB/s")


def disk_random(table):
    """Microseconds for 4 KiB at random offsets, as deep as look-ups ask."""
    if not shutil.which("fio"):
        return
    for depth in (1, 32, 128):
        command = ["fio", "--name=r", f"--filename={table / 'rows.bin'}", "--rw=randread", "--bs=4k",
                   "--direct=1", "--ioengine=libaio", f"--iodepth={depth}", "--runtime=3", "--time_based",
                   "--readonly", "--output-format=json"]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        iops = json.loads(out)["jobs"][0]["read"]["iops"]
        say("disk", f"fio, 4 KiB at random, depth {depth}", 1e6 / iops, "us")


def build(args, bench):
    run("build", [bench, "build", args.dir, args.rows])
    table = args.dir / "table"
    for path in sorted(table.iterdir()):
        say("files", path.name, path.stat().st_size / 1e9, "GB")


def verify(embed, table):
    for state in ("cold", "warm"):
        disk_sequential(table, state)
        if state == "cold":
            drop(table)
            disk_sequential(table, "past the page cache")
        [report] = run(f"verify, {state}", [embed, "verify", "--json", "--table", table])
        say(f"verify, {state}", "time", report["seconds"], "s")
        say(f"verify, {state}", "rate", report["bytes"] / report["seconds"] / 1e9, "GB/s")


def look_up(args, bench, table):
    drop(table)
    disk_random(table)
    run("look-up", [bench, "look-up", args.dir, args.rows])


def load(embed, table, address, part, *flags):
    command = [embed, "load", "--json", "--addr", address, "--table", table, *flags]
    out = subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout
    for line in out.splitlines():
        print(json.dumps({"part": part, **json.loads(line)}), flush=True)


def serve(embed, table):
    drop(table)
    began = time.monotonic()
    server = Watched([embed, "serve", "--table", table, "--listen", "127.0.0.1:0", "--log", "warn"])
    try:
        address = json.loads(server.process.stdout.readline())["address"]
        say("serve", "from the start to the first answer", time.monotonic() - began, "s")
        server.tell("serve, at start")
        load(embed, table, address, "serve, cold", "--draw", "uniform", "--windows", "32", "--seconds", "5",
             "--warm-up-seconds", "0")
        load(embed, table, address, "serve, as text asks", "--draw", "zipf", "--windows", "32", "--seconds", "10")
        server.tell("serve, afterwards")
    finally:
        server.process.terminate()
        server.process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=pathlib.Path, required=True, help="where set and table are built; these are removed afterwards")
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--keep", action="store_true", help="leave the table there; a later run takes it as it is")
    args = parser.parse_args()
    release = ROOT / "target" / "release"
    benches = [path for path in (release / "deps").glob("large-*") if not path.suffix]
    if not benches or not (release / "embed-service").exists():
        sys.exit("build first: the commands are at the top of this file")
    bench, embed = max(benches, key=lambda path: path.stat().st_mtime), release / "embed-service"
    args.dir.mkdir(parents=True, exist_ok=True)
    table = args.dir / "table"
    if not (table / "table.json").exists():
        build(args, bench)
    verify(embed, table)
    look_up(args, bench, table)
    serve(embed, table)
    if not args.keep:
        # Nothing else that may be there.
        shutil.rmtree(table)
        (args.dir / "fgrams.bin").unlink()


if __name__ == "__main__":
    main()
