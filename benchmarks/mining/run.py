"""Mining beside DuckDB on the same tokens, in one run; JSON lines on stdout.

    trainer tokenize --input TEXT… --tokenizer models/demo/tokenizer.json --out tokens
    pip install duckdb numpy
    python benchmarks/mining/run.py --trainer target/release/trainer --tokens tokens --tokenizer models/demo/tokenizer.json

Three subjects find the same S f-grams: `trainer mine` in memory, `trainer mine --memory` with a quarter of
what that took, and DuckDB, scan by scan with the same pruning. DuckDB gets each scan's n-grams as one
column of packed 64-bit keys (a vocabulary of 2,048 and K = 5 fit), which numpy cuts from the tokens.
Its time is printed twice: `mining` is SQL alone, and `mining, with cutting keys` starts where ours does, at
the tokens and the ends of documents (numpy has them in memory as 64-bit numbers by then; ours are mapped
files). Its sets must be equal to ours. Each subject runs in a process of its own; `peak_rss` is that
process's.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BENCH = "mining"


def line(case, subject, metric, value, unit):
    print(json.dumps({"bench": BENCH, "case": case, "subject": subject, "metric": metric, "value": value, "unit": unit}), flush=True)


def machine():
    script = Path(__file__).parent.parent / "serving" / "machine.py"
    subprocess.run([sys.executable, script, BENCH], check=True)


def read_tokens(directory):
    """All ids and the document ends, from shards (docs/formats.md, "The tokens directory")."""
    import numpy as np

    manifest = json.loads((Path(directory) / "tokens.json").read_text())
    ids, ends, before = [], [], 0
    for file in manifest["files"]:
        data = np.memmap(Path(directory) / file["path"], mode="r", dtype=np.uint8)
        width = int(data[12:16].view("<u4")[0])
        documents, tokens = (int(n) for n in data[48:64].view("<u8"))
        ends.append(data[88 : 88 + 8 * documents].view("<u8").astype(np.int64) + before)
        start = 88 + 8 * documents
        ids.append(data[start : start + width * tokens].view(f"<u{width}").astype(np.int64))
        before += tokens
    return np.concatenate(ids), np.concatenate(ends), manifest["vocab_size"]


class Clock:
    """Seconds of wall time and of processor time spent inside `with`."""

    def __init__(self):
        self.seconds, self.cpu = 0.0, 0.0

    def __enter__(self):
        self.started = time.perf_counter(), time.process_time()

    def __exit__(self, *_):
        self.seconds += time.perf_counter() - self.started[0]
        self.cpu += time.process_time() - self.started[1]


def duckdb_mine(args):
    """Prints seconds in SQL and in numpy, and writes the best n-grams as JSON lines of [ids, count]."""
    import duckdb
    import numpy as np

    ids, ends, vocab_size = read_tokens(args.tokens)
    bits = (vocab_size - 1).bit_length()
    if bits * args.max_n > 63:
        sys.exit(f"a vocabulary of {vocab_size} and K = {args.max_n} do not fit 63 bits")
    sql, cutting = Clock(), Clock()
    with cutting:
        # The number of the document that each position is in; an n-gram has one alone.
        document = np.zeros(len(ids), dtype=np.int32)
        document[ends[:-1]] = 1
        document = np.cumsum(document, dtype=np.int32)
    database = duckdb.connect()
    database.execute(f"SET threads = {os.cpu_count()}")
    database.execute("SET preserve_insertion_order = false")
    database.execute("CREATE TABLE found (n INTEGER, key BIGINT, count BIGINT)")
    needed, key = 1, ids
    for n in range(2, args.max_n + 1):
        with cutting:
            # First id in the highest bits, so that keys sort as ids do.
            key = (key[:-1] << bits) | ids[n - 1 :]
            whole = document[: len(key)] == document[n - 1 :]
            scan = {"key": key[whole]}
        prefix, suffix = f"(key >> {bits})", f"(key & {(1 << bits * (n - 1)) - 1})"
        where = "" if n == 2 else f"WHERE {prefix} IN (FROM survivors) AND {suffix} IN (FROM survivors)"
        with sql:
            database.execute(
                f"INSERT INTO found SELECT {n}, key, count(*) AS count FROM scan {where} GROUP BY key HAVING count(*) >= {needed}"
            )
            cut = database.execute(f"SELECT count FROM found ORDER BY count DESC LIMIT 1 OFFSET {args.max_fgrams - 1}").fetchone()
            needed = max(args.min_count, (cut[0] if cut else 0) + 1)
            database.execute(f"CREATE OR REPLACE TABLE survivors AS SELECT key FROM found WHERE n = {n} AND count >= {needed}")
        del scan, whole
    with sql:
        best = database.execute(f"SELECT n, key, count FROM found ORDER BY count DESC, n, key LIMIT {args.max_fgrams}").fetchall()
    mask = (1 << bits) - 1
    with open(args.out, "w") as out:
        for n, key, count in best:
            gram = [(key >> bits * (n - 1 - i)) & mask for i in range(n)]
            out.write(json.dumps([gram, count]) + "\n")
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    result = {"seconds": sql.seconds, "cpu": sql.cpu, "tokens": len(ids), "peak_rss": 1024 * int(peak.split()[1])}
    result |= {"whole_seconds": sql.seconds + cutting.seconds, "whole_cpu": sql.cpu + cutting.cpu}
    print(json.dumps(result))


def trainer_mine(args, out, memory=None):
    command = [args.trainer, "mine", "--input", args.tokens, "--tokenizer", args.tokenizer, "--json", "--out", str(out)]
    command += ["--max-n", str(args.max_n), "--min-count", str(args.min_count), "--max-fgrams", str(args.max_fgrams)]
    command += ["--memory", f"{memory}B"] if memory else []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if memory and "in bounded memory" not in done.stderr:
        sys.exit(f"--memory {memory} was enough for all in memory")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(done.stdout) | {"cpu": cpu}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainer", default="target/release/trainer")
    parser.add_argument("--tokens", required=True, help="directory that `trainer tokenize` wrote")
    parser.add_argument("--tokenizer", default="models/demo/tokenizer.json")
    parser.add_argument("--max-n", type=int, default=5)
    parser.add_argument("--min-count", type=int, default=5)
    parser.add_argument("--max-fgrams", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=2, help="runs of each subject; the best counts")
    parser.add_argument("--out", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.out:
        return duckdb_mine(args)
    machine()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        runs = [trainer_mine(args, folder / "memory.bin") for _ in range(args.rounds)]
        best = min(runs, key=lambda run: run["mine_seconds"])
        case = f"{best['tokens']} tokens, K = {args.max_n}, S = {args.max_fgrams}"
        quarter = best["peak_memory_bytes"] // 4
        runs = [trainer_mine(args, folder / "bounded.bin", quarter) for _ in range(args.rounds)]
        bounded = min(runs, key=lambda run: run["mine_seconds"])
        same = (folder / "memory.bin").read_bytes() == (folder / "bounded.bin").read_bytes()
        for subject, run in (("trainer mine", best), (f"trainer mine --memory {quarter}", bounded)):
            line(case, subject, "mining", run["mine_seconds"], "s")
            line(case, subject, "processor time, with opening and tagging", run["cpu"], "s")
            line(case, subject, "speed", run["tokens"] / run["mine_seconds"], "tokens/s")
            line(case, subject, "peak_rss", run["peak_memory_bytes"], "bytes")
        line(case, "trainer mine --memory", "same bytes", int(same), "bool")
        command = [sys.executable, __file__, "--tokens", args.tokens, "--max-n", str(args.max_n)]
        command += ["--min-count", str(args.min_count), "--max-fgrams", str(args.max_fgrams), "--out", str(folder / "duckdb")]
        peers = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(args.rounds)]
        peer = min(map(json.loads, peers), key=lambda run: run["seconds"])
        line(case, "duckdb", "mining", peer["seconds"], "s")
        line(case, "duckdb", "mining, with cutting keys", peer["whole_seconds"], "s")
        line(case, "duckdb", "processor time, of SQL alone", peer["cpu"], "s")
        line(case, "duckdb", "processor time, with cutting keys", peer["whole_cpu"], "s")
        line(case, "duckdb", "speed", peer["tokens"] / peer["seconds"], "tokens/s")
        line(case, "duckdb", "speed, with cutting keys", peer["tokens"] / peer["whole_seconds"], "tokens/s")
        line(case, "duckdb", "peak_rss", peer["peak_rss"], "bytes")
        listing = [args.trainer, "fgrams", "--fgrams", str(folder / "memory.bin"), "--limit", str(args.max_fgrams), "--json"]
        listed = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.splitlines()[:-1]
        ours = [[row["ids"], row["count"]] for row in map(json.loads, listed)]
        theirs = [json.loads(row) for row in (folder / "duckdb").read_text().splitlines()]
        line(case, "duckdb", "same set", int(ours == theirs), "bool")
        line(case, "trainer mine", "times duckdb", peer["seconds"] / best["mine_seconds"], "x")
        line(case, "trainer mine", "times duckdb with cutting keys", peer["whole_seconds"] / best["mine_seconds"], "x")
        line(case, "trainer mine --memory", "slower than in memory", bounded["mine_seconds"] / best["mine_seconds"], "x")
    machine()


if __name__ == "__main__":
    main()
