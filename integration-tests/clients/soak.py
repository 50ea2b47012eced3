"""Many HTTP clients, some of which go away, at twice what a decoder-service takes.

    python3 soak.py --server 'target/release/decoder-service serve --model models/demo' [--minutes 10] [--clients 64] [--whole 0.3]

Starts the server with room for half the clients (--max-batch 16 --max-queue 16), and little memory for keys and values,
which would count as growing until every block of it was used once. Each client asks for streams, or for whole answers with
this probability, over connections kept alive or not; three in ten leave at a random moment, and a few ask what an f-gram
did. Afterwards nothing may run, wait or hold memory; every answer that was read to its end must end properly; every place
must be there; and memory must not have grown.
"""

import argparse
import asyncio
import collections
import json
import random
import shlex
import subprocess
import time
import urllib.request

PROMPT = "In the beginning of the year the old house at the end of the street was sold to a man from the town. "


class Client:
    def __init__(self, address, number, counts, whole):
        self.whole = whole
        self.host, self.port = address.split(":")
        self.random = random.Random(number)
        self.counts = counts
        self.connection = None

    async def run(self, end):
        while time.monotonic() < end:
            try:
                outcome = await self.request()
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                outcome = f"lost: {type(error).__name__}"
            self.counts[outcome] += 1
            if outcome == "refused":
                await asyncio.sleep(self.random.uniform(0, 0.05))
        self.close()

    def close(self):
        if self.connection:
            self.connection[1].close()
            self.connection = None

    async def request(self):
        r = self.random
        stream, leaves = r.random() >= self.whole, r.random() < 0.3
        prompt = PROMPT * 2
        path = "/v1/completions"
        body = json.dumps({
            "prompt": prompt[:r.randrange(10, len(prompt))], "max_tokens": r.randrange(1, 150), "stream": stream,
            "ignore_eos": True, "n": r.choice((1, 1, 1, 2)), "logprobs": r.choice((None, 2)), "echo": r.random() < 0.2,
        }).encode()
        explains = r.random() < 0.05
        if explains:
            path, stream = "/v1/fgrams/explain", False
            body = json.dumps({"prompt": prompt[:r.randrange(10, len(prompt))]}).encode()
        if not self.connection:
            self.connection = await asyncio.open_connection(self.host, int(self.port), limit=1 << 24)
        reader, writer = self.connection
        head = f"POST {path} HTTP/1.1\r\nhost: soak\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        if leaves:
            try:
                await asyncio.wait_for(reader.readexactly(1 << 20), r.uniform(0, 0.3))
            except (asyncio.TimeoutError, asyncio.IncompleteReadError):
                pass
            self.close()
            return "left"
        status, text = await asyncio.wait_for(self.answer(reader), 600)
        if r.random() < 0.2:
            self.close()
        if status == 429:
            assert json.loads(text)["error"]["type"] == "rate_limit_error", text
            return "refused"
        assert status == 200, (status, text)
        if stream:
            assert text.endswith(b"data: [DONE]\n\n"), text[-200:]
        else:
            assert json.loads(text)["usage"]["completion_tokens"] > 0
        return "explained" if explains else "streamed" if stream else "whole"

    async def answer(self, reader):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        status = int(head.split(" ", 2)[1])
        if "transfer-encoding: chunked" in head:
            parts = []
            while size := int(await reader.readuntil(b"\r\n"), 16):
                parts.append(await reader.readexactly(size))
                await reader.readexactly(2)
            await reader.readexactly(2)
            return status, b"".join(parts)
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        return status, await reader.readexactly(length)


def resident_mib(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def metrics(url):
    with urllib.request.urlopen(url + "/metrics") as answer:
        lines = answer.read().decode().splitlines()
    found = {}
    for line in lines:
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            found[name] = float(value)
    return found


async def drive(address, args, counts, pid):
    end = time.monotonic() + 60 * args.minutes
    memory = []

    async def watch():
        while True:
            memory.append(resident_mib(pid))
            await asyncio.sleep(min(5, 6 * args.minutes))

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(Client(address, number, counts, args.whole).run(end) for number in range(args.clients)))
    watching.cancel()
    return memory


async def fill(address, requests):
    """Takes all places at once; whether it got them."""

    async def sixteen():
        reader, writer = await asyncio.open_connection(*address.split(":"), limit=1 << 24)
        body = b'{"prompt": "a", "n": 16, "max_tokens": 100, "ignore_eos": true}'
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: soak\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        status, text = await Client(address, 0, None, 0).answer(reader)
        writer.close()
        assert status in (200, 429), text[:200]
        return status == 200 and len(json.loads(text)["choices"]) == 16

    return all(await asyncio.gather(*(sixteen() for _ in range(requests))))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--whole", type=float, default=0)
    args = parser.parse_args()
    command = shlex.split(args.server)
    command += ["--kv-memory", "8MiB"]
    command += ["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--max-batch", "16", "--max-queue", "16"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        address = json.loads(server.stdout.readline())["http"]
        url = f"http://{address}"
        counts = collections.Counter()
        memory = asyncio.run(drive(address, args, counts, server.pid))
        for _ in range(200):
            left = metrics(url)
            busy = [name for name in ("running", "queue_depth", "kv_blocks_used") if left[f"scone_decoder_{name}"]]
            # The one that asks is open, and nobody else's.
            if left["scone_decoder_http_connections_open"] > 1:
                busy.append("http_connections_open")
            if not busy:
                break
            time.sleep(0.05)
        assert not busy, busy
        # All places at once: those that run and those that wait. Some are kept for clients that were refused and might
        # come back, for a while.
        until = time.monotonic() + 60
        while not asyncio.run(fill(address, 2)):
            assert time.monotonic() < until, "places were lost"
            time.sleep(1)
    finally:
        server.kill()
        server.wait()
    quarter = max(1, len(memory) // 4)
    early, late = max(memory[:2 * quarter]), max(memory[-quarter:])
    print(json.dumps({"requests": sum(counts.values()), **counts, "cancelled": left.get(
        'scone_decoder_requests_total{outcome="cancelled"}'), "tokens": left["scone_decoder_generated_tokens_total"],
        "rss_mib_first_half": round(early, 1), "rss_mib_last_quarter": round(late, 1)}))
    assert not any(outcome.startswith("lost") for outcome in counts), counts
    assert late < early * 1.1 + 8, "memory grew"


if __name__ == "__main__":
    main()
