#!/usr/bin/env python3
"""A decoder-service that is offered many times what it can do. Needs nothing but Python.

usage: overload.py --decoder target/release/decoder-service [--model models/demo] [-- FLAG ...]

Starts the service, with the flags behind `--`, and measures in three phases:

capacity  as many requests at once as fit into a batch, each followed by the next: requests a second,
          and how long one takes in a full batch. Before and after the overload, as a machine that others
          share may be another one then; the mean counts
overload  --factor times as many requests a second for --seconds, evenly spaced, whatever becomes of
          those before; each on a connection of its own, or with --keep, as a gateway sends them, on one
          that waits for another request, if there is one. Of those that end in the second half or later:
          the share of the capacity that is served, how long refusals take, and how long those that
          were admitted take, beside 2 times a full batch's time and --max-queue-time

The client needs processors too, and where it shares them with the service it takes them away: it says how
much. Times are the client's own, from opening the connection to the end of the answer. Prints one JSON object
a line; with --check it fails when an aim is missed.
"""

import argparse
import collections
import json
import os
import select
import socket
import statistics
import subprocess
import sys
import time

PATIENCE = 60
Done = collections.namedtuple("Done", "sent ended status tokens")


class Service:
    def __init__(self, args):
        flags = ["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
        flags += ["--max-batch", str(args.batch), "--max-queue-time", f"{args.queue_time}s"]
        command = [args.decoder, "serve", "--model", args.model, *flags, *args.flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for line in self.process.stdout:
            event = json.loads(line)
            if event.get("event") == "listening":
                self.host, port = event["http"].rsplit(":", 1)
                self.port = int(port)
                return
        sys.exit("the service did not start")

    def memory_mib(self, field: str) -> float:
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as file:
            line = next(line for line in file if line.startswith(field))
        return int(line.split()[1]) / 1024


class Call:
    """One request."""

    def __init__(self, service: Service, body: dict, kept: socket.socket | None, keep: bool) -> None:
        data = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {service.host}\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(data)}\r\nConnection: {'keep-alive' if keep else 'close'}\r\n\r\n"
        self.unsent, self.answer = head.encode() + data, b""
        self.sent = time.perf_counter()
        self.socket = kept
        if not kept:
            self.socket = socket.socket()
            self.socket.setblocking(False)
            self.socket.connect_ex((service.host, service.port))

    def go_on(self) -> bool:
        """Sends and reads what can be; whether the answer is there, or none will come."""
        try:
            if self.unsent:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]
            while read := self.socket.recv(65536):
                self.answer += read
                if self.is_whole():
                    return True
        except BlockingIOError:
            return False
        except OSError:
            # Refused or reset: an answer without a status.
            pass
        return True

    def body(self) -> bytes | None:
        end = self.answer.find(b"\r\n\r\n")
        return None if end < 0 else self.answer[end + 4 :]

    def is_whole(self) -> bool:
        body, head = self.body(), self.answer.lower()
        if body is None:
            return False
        start = head.index(b"content-length:") + 15
        return len(body) >= int(head[start : head.index(b"\r", start)])

    def done(self) -> Done:
        status, tokens = 0, 0
        if self.answer.startswith(b"HTTP/1.1 "):
            status = int(self.answer[9:12])
        if status == 200:
            tokens = json.loads(self.body())["usage"]["completion_tokens"]
        return Done(self.sent, time.perf_counter(), status, tokens)


class Calls:
    """Those that have not ended. On bare sockets, as asyncio takes more of the processors for each, which the
    service then lacks."""

    def __init__(self, service: Service, keep: bool) -> None:
        self.service, self.keep = service, keep
        self.poll = select.epoll()
        self.open: dict[int, Call] = {}
        # Connections that wait for another request.
        self.idle: dict[int, socket.socket] = {}
        # Ended when they had just begun: the service may run before this does again.
        self.early: list[Done] = []

    def begin(self, body: dict) -> None:
        kept = self.idle.popitem()[1] if self.idle else None
        call = Call(self.service, body, kept, self.keep)
        file = call.socket.fileno()
        self.open[file] = call
        ended = call.go_on()
        if not kept:
            self.poll.register(file, select.EPOLLIN | (select.EPOLLOUT if call.unsent else 0))
        if ended:
            self.early.append(self.end(file))

    def ended_by(self, until: float) -> list[Done]:
        """Waits for answers until then at most; what ended, without a status where that took too long."""
        done, self.early = self.early, []
        for file, _ in self.poll.poll(0 if done else max(until - time.perf_counter(), 0)):
            if file in self.idle:
                self.idle.pop(file).close()
                continue
            call = self.open[file]
            if call.go_on():
                done.append(self.end(file))
            elif not call.unsent:
                self.poll.modify(file, select.EPOLLIN)
        # The oldest comes first.
        while self.open and next(iter(self.open.values())).sent < time.perf_counter() - PATIENCE:
            done.append(self.end(next(iter(self.open))))
        return done

    def end(self, file: int) -> Done:
        call = self.open.pop(file)
        done = call.done()
        if self.keep and done.status:
            self.idle[file] = call.socket
        else:
            call.socket.close()
        return done


def request(args, number: int) -> dict:
    prompt = f"In the beginning of the year {number}"
    return {"prompt": prompt, "max_tokens": args.tokens, "ignore_eos": True, "seed": number}


def capacity(service: Service, args) -> tuple[float, float]:
    """Requests a second, and the median time of one in a full batch."""
    begin = time.perf_counter() + args.warm_up
    end = begin + args.capacity_seconds
    calls, done, number = Calls(service, args.keep), [], 0
    while time.perf_counter() < end or calls.open:
        while len(calls.open) < args.batch and time.perf_counter() < end:
            calls.begin(request(args, number))
            number += 1
        done += calls.ended_by(time.perf_counter() + 1)
    if any(one.status != 200 for one in done):
        sys.exit("a request failed without load")
    if any(one.tokens != args.tokens for one in done):
        sys.exit(f"{done[0].tokens} tokens instead of {args.tokens}: the context of the model is too short")
    # Each counts with the part of its time that is in the window.
    inside = (max(0, min(one.ended, end) - max(one.sent, begin)) / (one.ended - one.sent) for one in done)
    times = [one.ended - one.sent for one in done if one.sent >= begin]
    return sum(inside) / (end - begin), statistics.median(times)


def overload(service: Service, args, rate: float) -> list[Done]:
    calls, done, begin = Calls(service, args.keep), [], time.perf_counter()
    for number in range(int(rate * args.seconds)):
        due = begin + number / rate
        # Late ones go out at once, but never without a look at the answers.
        done += calls.ended_by(due)
        while time.perf_counter() < due:
            done += calls.ended_by(due)
        calls.begin(request(args, number))
    while calls.open:
        done += calls.ended_by(time.perf_counter() + 1)
    return done


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)] if values else float("nan")


def report(args, metric: str, value: float, unit: str) -> None:
    line = {"bench": "overload", "case": f"{args.factor:g} x capacity, {args.tokens} tokens a request"}
    print(json.dumps(line | {"subject": "decoder-service", "metric": metric, "value": round(value, 3), "unit": unit}))
    sys.stdout.flush()


def run(args) -> bool:
    service = Service(args)
    try:
        rate, batch_time = capacity(service, args)
        report(args, "capacity", rate, "requests/s")
        report(args, "capacity", rate * args.tokens, "tokens/s")
        report(args, "a full batch's time, median", batch_time, "s")
        before = service.memory_mib("VmRSS")
        begin, own = time.perf_counter(), time.process_time()
        done = overload(service, args, rate * args.factor)
        own = (time.process_time() - own) / (time.perf_counter() - begin) / os.cpu_count()
        report(args, "of the machine's processors for this client", 100 * own, "%")
        peak = service.memory_mib("VmHWM")
        after, batch_time_after = capacity(service, args)
        report(args, "capacity afterwards", after, "requests/s")
    finally:
        service.process.terminate()
        service.process.wait(PATIENCE)
    mean = statistics.mean
    return judge(args, done, (begin, mean([rate, after]), mean([batch_time, batch_time_after])), (before, peak))


def judge(args, done: list[Done], measured: tuple[float, float, float], memory: tuple[float, float]) -> bool:
    begin, rate, batch_time = measured
    middle, end = begin + args.seconds / 2, begin + args.seconds
    served = [one for one in done if one.status == 200]
    refused = [(one.ended - one.sent) * 1e3 for one in done if one.status == 429]
    inside = [one for one in served if middle <= one.ended <= end]
    goodput = len(inside) / (end - middle) / rate
    took = [one.ended - one.sent for one in served]
    bound = 2 * batch_time + args.queue_time
    offered = len(done) / (max(one.sent for one in done) - begin)
    report(args, "offered", offered / rate, "x capacity")
    report(args, "goodput in the second half", goodput, "x capacity")
    report(args, "refusals", 100 * len(refused) / len(done), "% of requests")
    late = [took for took in refused if took > 1e3 * args.queue_time / 2]
    report(args, "refused after they had waited", len(late), "requests")
    report(args, "refusal, median", percentile(refused, 0.5), "ms")
    report(args, "refusal, 99 of 100", percentile(refused, 0.99), "ms")
    report(args, "admitted, median", percentile(took, 0.5), "s")
    report(args, "admitted, 99 of 100", percentile(took, 0.99), "s")
    report(args, "admitted, worst", max(took), "s")
    report(args, "admitted, bound", bound, "s")
    report(args, "neither served nor refused", len(done) - len(served) - len(refused), "requests")
    report(args, "memory before", memory[0], "MiB")
    report(args, "memory, peak", memory[1], "MiB")
    return goodput >= 0.9 and percentile(refused, 0.99) < 5 and max(took) <= bound


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--decoder", required=True, help="the program")
    parser.add_argument("--model", default="models/demo")
    parser.add_argument("--factor", type=float, default=10, help="times the capacity that is offered")
    parser.add_argument("--seconds", type=float, default=30, help="how long it is offered")
    parser.add_argument("--capacity-seconds", type=float, default=10, help="how long the capacity is measured")
    parser.add_argument("--warm-up", type=float, default=2, help="seconds before that")
    parser.add_argument("--tokens", type=int, default=240, help="of each request")
    parser.add_argument("--batch", type=int, default=16, help="--max-batch of the service")
    parser.add_argument("--queue-time", type=float, default=10, help="--max-queue-time of the service, in seconds")
    parser.add_argument("--keep", action="store_true", help="use connections again")
    parser.add_argument("--check", action="store_true", help="fail when an aim is missed")
    parser.add_argument("flags", nargs="*", help="more flags of the service")
    args = parser.parse_args()
    print(json.dumps({"machine": {"cpus": os.cpu_count(), "load": os.getloadavg()}}))
    met = run(args)
    if args.check and not met:
        sys.exit("an aim was missed: goodput 0.9, refusals below 5 ms, admitted ones within the bound")


if __name__ == "__main__":
    main()
