#!/usr/bin/env python3
"""The clients of the soak, and what is looked at meanwhile.

usage: soak.py ADDRESS METRICS_ADDRESS --model DIR --text FILE --minutes M --clients N --longest TOKENS --pid PID
"""

import argparse
import asyncio
import collections
import json
import math
import random
import statistics
import sys
import time
import urllib.request

import grpc
from scone.decoder.v1 import decoder_pb2 as pb
from targets import DecoderService
from tokenizers import Tokenizer

# How a request may end. CANCELLED is what a client that leaves sees itself.
EXPECTED = {"OK", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
PROBES, PROBE_TOKENS = 4, 24
# Longest that one request may take until it counts as stuck.
PATIENCE = 300


def resident_mib(pid: int) -> float:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return int(next(line for line in file if line.startswith("VmRSS")).split()[1]) / 1024


class Soak:
    def __init__(self, args):
        self.args = args
        self.target = DecoderService(args.address, channels=8)
        tokenizer = Tokenizer.from_file(f"{args.model}/tokenizer.json")
        with open(args.text, encoding="utf-8") as file:
            self.ids = tokenizer.encode(file.read(), add_special_tokens=False).ids
        self.random = random.Random(args.seed)
        self.ends: collections.Counter[str] = collections.Counter()
        self.tokens = self.short = self.changed = self.probed = self.started = 0
        self.memory: list[tuple[float, float]] = []
        self.end = math.inf

    def report(self, metric: str, value: float, unit: str) -> None:
        line = {"bench": "soak", "case": self.args.case, "subject": "decoder-service"}
        print(json.dumps(line | {"metric": metric, "value": round(value, 3), "unit": unit}), flush=True)

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://{self.args.metrics}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))

    def length(self, most: int) -> int:
        """As many short ones as long ones, by their logarithm."""
        return max(1, int(most ** self.random.random()))

    def prompt(self) -> list[int]:
        length = self.length(self.args.longest)
        # A third begins where others do, for the prefix cache.
        start = self.random.randrange(len(self.ids) - length)
        if self.random.random() < 1 / 3:
            start = self.random.choice([0, 1000, 2000]) % (len(self.ids) - length)
        return self.ids[start : start + length]

    def sampling(self) -> dict:
        roll = self.random.random()
        sampling = {"temperature": 0.0 if roll < 0.3 else 1.0, "ignore_eos": roll < 0.5}
        if roll > 0.8:
            sampling |= {"n": self.random.randrange(2, 4), "top_p": 0.9}
        if roll > 0.95:
            sampling |= {"logprobs": 3, "repetition_penalty": 1.1}
        return sampling

    async def request(self) -> None:
        """One request with a random fate; its end is counted."""
        wanted, sampling = self.length(self.args.longest // 2), self.sampling()
        data = self.target.request(self.prompt(), wanted, **sampling)
        roll = self.random.random()
        leave = self.length(wanted) if roll < 0.25 else None
        timeout = 0.05 + 3 * self.random.random() if 0.25 < roll < 0.3 else PATIENCE
        channel = self.random.choice(self.target.channels)
        method = DecoderService.METHOD + "Generate"
        call = channel.unary_stream(method, None, pb.GenerateResponse.FromString)(data, timeout=timeout)
        finished, tokens = 0, 0
        self.started += 1
        try:
            async for message in call:
                tokens += len(message.tokens)
                finished += message.HasField("finish")
                if leave is not None and tokens >= leave:
                    call.cancel()
            status = "OK"
        except asyncio.CancelledError:
            status = "CANCELLED"
        except grpc.aio.AioRpcError as error:
            status = error.code().name
            if status == "DEADLINE_EXCEEDED" and timeout == PATIENCE:
                status = "STUCK"
        self.tokens += tokens
        if status == "OK" and finished != sampling.get("n", 1):
            status = "OK WITHOUT FINISH"
        self.ends[status] += 1
        if status == "RESOURCE_EXHAUSTED":
            await asyncio.sleep(self.random.uniform(0.05, 0.3))

    async def client(self) -> None:
        while time.monotonic() < self.end:
            await self.request()

    async def probe_once(self, at: int) -> list[int]:
        """Greedy tokens of a prompt that starts at one place of the text."""
        prompt = self.ids[at * 777 : at * 777 + 10 + 20 * at]
        while True:
            try:
                answer = self.target.stream(prompt, PROBE_TOKENS)
                return [id async for _, data in answer for id in self.target.tokens(data)]
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                await asyncio.sleep(0.05)

    async def probes(self, expected: list[list[int]]) -> None:
        while time.monotonic() < self.end:
            at = self.random.randrange(PROBES)
            self.changed += await self.probe_once(at) != expected[at]
            self.probed += 1
            await asyncio.sleep(0.2)

    async def watch(self) -> None:
        while time.monotonic() < self.end:
            self.memory.append((time.monotonic(), resident_mib(self.args.pid)))
            await asyncio.sleep(1)

    async def run(self) -> int:
        args = self.args
        await self.target.ready(120)
        expected = [await self.probe_once(at) for at in range(PROBES)]
        began = time.monotonic()
        self.end = began + 60 * args.minutes
        clients = [self.client() for _ in range(args.clients)]
        await asyncio.gather(self.watch(), self.probes(expected), *clients)
        took = time.monotonic() - began
        used = await self.blocks_at_rest()
        return self.results(took, used)

    async def blocks_at_rest(self) -> float:
        """KV blocks in use once all requests have ended; waits for cancelled ones to be seen."""
        for _ in range(100):
            used = self.metric("scone_decoder_kv_blocks_used")
            if used == 0:
                break
            await asyncio.sleep(0.1)
        return used

    def results(self, took: float, used: float) -> int:
        for status, count in sorted(self.ends.items()):
            self.report(f"requests that ended {status}", count, "requests")
        without = self.started - sum(self.ends.values())
        self.report("requests without an end", without, "requests")
        self.report("received", self.tokens / took, "tokens/s")
        for name in ("preemptions", "cached_positions", "positions", "generated_tokens"):
            self.report(name, self.metric(f"scone_decoder_{name}_total"), name.split("_")[-1])
        self.report("KV blocks", self.metric("scone_decoder_kv_blocks"), "blocks")
        self.report("KV blocks in use at the end", used, "blocks")
        self.report("probes", self.probed, "requests")
        self.report("probes whose tokens changed", self.changed, "requests")
        self.report_memory()
        wrong = [status for status in self.ends if status not in EXPECTED]
        if wrong:
            print(f"unexpected: {wrong}", file=sys.stderr)
        return int(bool(wrong or without or used or self.changed))

    def report_memory(self) -> None:
        values = [mib for _, mib in self.memory]
        tenth = max(1, len(values) // 10)
        self.report("resident memory, second tenth of the time", statistics.median(values[tenth : 2 * tenth + 1]), "MiB")
        self.report("resident memory, last tenth", statistics.median(values[-tenth:]), "MiB")
        self.report("resident memory, most", max(values), "MiB")
        half = self.memory[len(self.memory) // 2 :]
        if len(half) > 2:
            slope = statistics.linear_regression(*zip(*half)).slope
            self.report("growth of resident memory, second half", slope * 60, "MiB/min")


async def run(args) -> int:
    # Inside, as its channels belong to the loop that runs when they are made.
    return await Soak(args).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("address")
    parser.add_argument("metrics")
    for name in ("model", "text", "case"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--longest", type=int, default=150)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    sys.exit(asyncio.run(run(parser.parse_args())))


if __name__ == "__main__":
    main()
