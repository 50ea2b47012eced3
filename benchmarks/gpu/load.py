#!/usr/bin/env python3
"""Prefill and decode speed of a running decoder-service at some numbers of streams.

usage: load.py ADDRESS SUBJECT CASE [--streams 1,8,32,128] [--prompt 512] [--tokens 64] [--limit 20]

Prefill: that many prompts of random ids at once, until each had its first token. Decode: short
prompts; tokens a second while all streams decode, from the last stream's first token to the first
stream's last. A round that takes longer than the limit is cut off there and counts what came.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import time

import grpc

from decoder import SERVICE, request, response, wait_until_ready

SHORT = 16


async def stream(call, data: bytes, limit: float) -> list[tuple[float, bytes]]:
    """When each response came, unread until the clock has stopped."""
    came = []
    try:
        async for message in call(data, timeout=limit):
            came.append((time.perf_counter(), message))
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
            raise
    return came


async def round_of(channels, prompts: list[list[int]], tokens: int, limit: float):
    """Start and, for each stream, when each token came."""
    method = SERVICE + "Generate"
    calls = [channel.unary_stream(method, None, None) for channel in channels]
    data = [request(prompt, tokens) for prompt in prompts]
    start = time.perf_counter()
    streams = [stream(calls[i % len(calls)], one, limit) for i, one in enumerate(data)]
    raw = await asyncio.gather(*streams)
    times = []
    for came in raw:
        parsed = [(at, response(message)) for at, message in came]
        times.append([at for at, one in parsed for _ in one.tokens])
    return start, times


class Bench:
    def __init__(self, args, vocab_size: int):
        self.args = args
        self.random = random.Random(1)
        self.vocab_size = vocab_size

    def prompts(self, count: int, length: int) -> list[list[int]]:
        return [[self.random.randrange(1, self.vocab_size) for _ in range(length)] for _ in range(count)]

    def report(self, metric: str, value: float, unit: str, streams: int) -> None:
        line = {"bench": "gpu_engine", "case": f"{self.args.case}, {streams} streams", "subject": self.args.subject}
        print(json.dumps(line | {"metric": metric, "value": value, "unit": unit}), flush=True)

    async def prefill(self, channels, streams: int) -> None:
        prompts = self.prompts(streams, self.args.prompt)
        start, times = await round_of(channels, prompts, 1, self.args.limit)
        firsts = sorted(one[0] - start for one in times if one)
        if not firsts:
            print(f"prefill, {streams} streams: no token in {self.args.limit} s", file=sys.stderr)
            return
        self.report("prefill", len(firsts) * self.args.prompt / firsts[-1], "tokens/s", streams)
        self.report("time to first token, median", statistics.median(firsts) * 1e3, "ms", streams)

    async def decode(self, channels, streams: int) -> None:
        prompts = self.prompts(streams, SHORT)
        _, times = await round_of(channels, prompts, self.args.tokens, self.args.limit)
        if any(len(one) < 2 for one in times):
            print(f"decode, {streams} streams: too few tokens in {self.args.limit} s", file=sys.stderr)
            return
        start, end = max(one[0] for one in times), min(one[-1] for one in times)
        if end <= start:
            print(f"decode, {streams} streams: never all at once", file=sys.stderr)
            return
        counted = sum(start < at <= end for one in times for at in one)
        gaps = [later - at for one in times for at, later in zip(one, one[1:])]
        self.report("decode", counted / (end - start), "tokens/s", streams)
        self.report("gap between tokens, median", statistics.median(gaps) * 1e3, "ms", streams)
        self.report("gap between tokens, worst", max(gaps) * 1e3, "ms", streams)

    async def run(self) -> None:
        # A pool each, or all would share one connection.
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(self.args.address, options) for _ in range(4)]
        # The first calls load kernels.
        await round_of(channels, self.prompts(2, self.args.prompt), 4, 60)
        for streams in self.args.streams:
            await self.decode(channels, streams)
            await self.prefill(channels, streams)
        for channel in channels:
            await channel.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("address")
    parser.add_argument("subject")
    parser.add_argument("case")
    parser.add_argument("--streams", type=lambda s: [int(n) for n in s.split(",")], default=[1, 8, 32, 128])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--limit", type=float, default=20)
    args = parser.parse_args()
    info = wait_until_ready(args.address, 40)
    asyncio.run(Bench(args, info.vocab_size).run())


if __name__ == "__main__":
    main()
