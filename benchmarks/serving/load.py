#!/usr/bin/env python3
"""Speed of a running server at some numbers of streams.

usage: load.py KIND ADDRESS --model DIR --text FILE --bench B --case C --subject S [...]

decode    short prompts at once; tokens a second while all streams decode, from the last stream's
          first token to the first stream's last, and by the quickest tenth of all runs of eight
          steps, as other work on the machine spoils some; time to first token
prefill   one prompt alone: its tokens by the time to its first token
          With --pid also the processor's time a token, of all threads: what a busy machine
          spoils least.
beside    streams that decode, and a long prompt that comes to them: gaps between tokens of one
          stream before and meanwhile
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time

from targets import KINDS
from tokenizers import Tokenizer

SHORT = 16
BESIDE = 8
# Steps whose time is taken together.
RUN = 8
# Seconds; of shorter ones several come at once, and single ones cannot be told apart here.
SHORTEST_STEP = 2e-3


def memory_mib(pid: int, field: str) -> float:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith(field))
    return int(line.split()[1]) / 1024


def quickest(times: list[list[float]]) -> float:
    """Seconds a step, by the quickest tenth of all runs of eight steps."""
    runs = [(later - at) / RUN for one in times for at, later in zip(one, one[RUN:])]
    return sorted(runs)[len(runs) // 10]


def cpu_seconds(pid: int) -> float:
    """Time that all threads of a process have computed."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Load:
    def __init__(self, args):
        self.args = args
        self.target = KINDS[args.kind](args.address)
        tokenizer = Tokenizer.from_file(f"{args.model}/tokenizer.json")
        with open(args.text, encoding="utf-8") as file:
            self.ids = tokenizer.encode(file.read(), add_special_tokens=False).ids
        self.vocabulary = tokenizer.get_vocab_size()
        self.random = random.Random(args.seed)

    def prompt(self, length: int) -> list[int]:
        """A piece of the text after a random token: no two begin alike."""
        start = self.random.randrange(len(self.ids) - length)
        return [self.random.randrange(3, self.vocabulary), *self.ids[start : start + length - 1]]

    def report(self, case: str, metric: str, value: float, unit: str) -> None:
        line = {"bench": self.args.bench, "case": f"{self.args.case}, {case}", "subject": self.args.subject}
        print(json.dumps(line | {"metric": metric, "value": round(value, 3), "unit": unit}), flush=True)

    def cpu(self) -> float:
        return cpu_seconds(self.args.pid) if self.args.pid else 0.0

    async def pieces(self, prompt: list[int], tokens: int) -> list[tuple[float, bytes]]:
        return [piece async for piece in self.target.stream(prompt, tokens)]

    def times_of(self, pieces: list[tuple[float, bytes]]) -> list[float]:
        """When each token came."""
        return [at for at, data in pieces for _ in self.target.tokens(data)]

    async def decode(self, streams: int, tokens: int) -> None:
        prompts = [self.prompt(SHORT) for _ in range(streams)]
        start = time.perf_counter()
        cpu = self.cpu()
        answers = await asyncio.gather(*(self.pieces(prompt, tokens) for prompt in prompts))
        cpu = self.cpu() - cpu
        times = [self.times_of(pieces) for pieces in answers]
        first, last = max(one[0] for one in times), min(one[-1] for one in times)
        if first >= last:
            print(f"decode, {streams} streams: never all at once", file=sys.stderr)
            return
        case = f"{streams} stream{'s' if streams > 1 else ''}"
        if self.args.pid:
            count = streams * (SHORT + tokens)
            self.report(case, "processor time a token, prompts included", cpu / count * 1e3, "ms")
        counted = sum(first < at <= last for one in times for at in one)
        self.report(case, "decode", counted / (last - first), "tokens/s")
        together = [[at for at in one if first <= at <= last] for one in times]
        if min(len(one) for one in together) > RUN and (step := quickest(together)) > SHORTEST_STEP:
            self.report(case, "decode, quickest tenth", streams / step, "tokens/s")
        waits = [one[0] - start for one in times]
        self.report(case, f"first token, prompts of {SHORT}, median", statistics.median(waits) * 1e3, "ms")
        if self.args.lookups:
            ends = [self.target.finish(pieces[-1][1]) for pieces in answers]
            waited = sum(end.timings.lookup_us for end in ends)
            took = sum(end.timings.prefill_us + end.timings.decode_us for end in ends)
            self.report(case, "wait for look-ups, of all time", 100 * waited / took, "%")
            positions = sum(end.usage.positions for end in ends)
            matched = sum(end.usage.matched_positions for end in ends)
            self.report(case, "positions with a row", 100 * matched / positions, "%")

    async def prefill(self) -> None:
        length = self.args.prompt
        prompt, cpu, start = self.prompt(length), self.cpu(), time.perf_counter()
        times = self.times_of(await self.pieces(prompt, 1))
        took, cpu = times[0] - start, self.cpu() - cpu
        self.report(f"prompt of {length}", "prefill", length / took, "tokens/s")
        self.report(f"prompt of {length}", "first token", took * 1e3, "ms")
        if self.args.pid:
            self.report(f"prompt of {length}", "processor time a token", cpu / length * 1e3, "ms")

    async def beside(self) -> None:
        """Gaps of eight streams without and with a long prompt beside them."""
        came: list[list[float]] = [[] for _ in range(BESIDE)]

        async def follow(times: list[float]) -> None:
            async for at, _ in self.target.stream(self.prompt(SHORT), self.args.room):
                times.append(at)

        streams = [asyncio.create_task(follow(times)) for times in came]
        while min(len(times) for times in came) < 10 and not any(task.done() for task in streams):
            await asyncio.sleep(0.002)
        from_here = time.perf_counter()
        while min(len(times) for times in came) < 50 and not any(task.done() for task in streams):
            await asyncio.sleep(0.002)
        sent = time.perf_counter()
        first = self.times_of(await self.pieces(self.prompt(self.args.prompt), 1))[0]
        # Until ordinary steps are known at the context that the streams have now.
        while min(sum(at > first for at in times) for times in came) < 25 and not any(task.done() for task in streams):
            await asyncio.sleep(0.002)
        whole = not any(task.done() for task in streams)
        for task in streams:
            task.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        gaps = [(at, later - at, later) for one in came for at, later in zip(one, one[1:])]
        before = [gap for at, gap, later in gaps if at >= from_here and later <= sent]
        meanwhile = [(at, gap) for at, gap, later in gaps if later > sent and at <= first]
        after = [gap for at, gap, later in gaps if at > first]
        if not whole or not before or not meanwhile or not after:
            print("beside: the streams ended before the prompt", file=sys.stderr)
            return
        step, later = statistics.median(before), statistics.median(after)

        def ordinary(at: float) -> float:
            """A step gets longer with the context of its streams, so what is ordinary lies between."""
            return step + (later - step) * min(max(at - sent, 0), first - sent) / (first - sent)

        in_steps = [gap / ordinary(at) for at, gap in meanwhile]
        meanwhile = [gap for _, gap in meanwhile]
        case = f"{BESIDE} streams beside a prompt of {self.args.prompt}"
        self.report(case, "ordinary step, median", step * 1e3, "ms")
        self.report(case, "ordinary step, worst", max(before) * 1e3, "ms")
        self.report(case, "ordinary step after the prompt, median", later * 1e3, "ms")
        self.report(case, "gap, median", statistics.median(meanwhile) * 1e3, "ms")
        self.report(case, "gap, median, in ordinary steps", statistics.median(in_steps), "steps")
        self.report(case, "gap, 95 of 100", statistics.quantiles(meanwhile, n=20)[18] * 1e3, "ms")
        self.report(case, "gap, worst", max(meanwhile) * 1e3, "ms")
        self.report(case, "gap, worst, in ordinary steps", max(in_steps), "steps")
        self.report(case, "first token of the prompt", (first - sent) * 1e3, "ms")

    async def run(self) -> None:
        args = self.args
        await self.target.ready(args.ready)
        if args.pid:
            self.report("loaded", "resident memory", memory_mib(args.pid, "VmRSS"), "MiB")
        await asyncio.gather(*(self.pieces(self.prompt(SHORT), 4) for _ in range(2)))
        if args.prompt:
            for _ in range(2):
                await self.prefill()
        for streams, tokens in zip(args.streams, args.tokens, strict=True):
            await self.decode(streams, tokens)
        if args.room:
            await self.beside()
        if args.pid:
            self.report("after the load", "resident memory", memory_mib(args.pid, "VmRSS"), "MiB")
            self.report("after the load", "peak memory", memory_mib(args.pid, "VmHWM"), "MiB")
        await self.target.close()


async def run(args) -> None:
    # Inside, as its channels belong to the loop that runs when they are made.
    await Load(args).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("address")
    for name in ("model", "text", "bench", "case", "subject"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--streams", type=lambda s: [int(n) for n in s.split(",")], default=[1, 8, 32])
    tokens = "tokens that each stream decodes, one number for each of --streams"
    parser.add_argument("--tokens", type=lambda s: [int(n) for n in s.split(",")], default=[96, 64, 64], help=tokens)
    parser.add_argument("--prompt", type=int, default=1024, help="tokens of the long prompt, 0 for none")
    parser.add_argument("--room", type=int, default=1000, help="tokens of streams beside it, 0 for none")
    parser.add_argument("--pid", type=int, help="process whose memory is read")
    parser.add_argument("--lookups", action="store_true", help="report what look-ups took")
    parser.add_argument("--ready", type=float, default=120, help="seconds that loading may take")
    parser.add_argument("--seed", type=int, default=1)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
