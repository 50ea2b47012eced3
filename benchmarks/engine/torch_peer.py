#!/usr/bin/env python3
"""The same model in transformers on PyTorch, on the CPU: a batch by hand, no server.

usage: torch_peer.py MODEL_DIR f32|bf16 THREADS --case C [--prompt 1024]
"""

import argparse
import json
import time

import torch
from transformers import AutoModelForCausalLM, DynamicCache

SHORT = 16
# Steps whose time is taken together, as in load.py.
RUN = 8
TOKENS = {1: 48, 8: 32, 32: 16}


class Peer:
    def __init__(self, args):
        self.args = args
        kind = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
        self.model = AutoModelForCausalLM.from_pretrained(args.model, dtype=kind, attn_implementation="sdpa").eval()

    def report(self, case: str, metric: str, value: float, unit: str) -> None:
        line = {"bench": "engine", "case": f"{self.args.case}, {case}", "subject": f"PyTorch {self.args.dtype}"}
        print(json.dumps(line | {"metric": metric, "value": round(value, 3), "unit": unit}), flush=True)

    def ids(self, streams: int, length: int) -> torch.Tensor:
        return torch.randint(3, self.model.config.vocab_size, (streams, length))

    def forward(self, ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """The next token of each stream, `(streams, 1)`."""
        out = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits.argmax(-1)

    def prefill(self) -> None:
        length = self.args.prompt
        for _ in range(2):
            ids = self.ids(1, length)
            start, cpu = time.perf_counter(), time.process_time()
            self.forward(ids, DynamicCache())
            took, cpu = time.perf_counter() - start, time.process_time() - cpu
            self.report(f"prompt of {length}", "processor time a token", cpu / length * 1e3, "ms")
            self.report(f"prompt of {length}", "prefill", length / took, "tokens/s")
            self.report(f"prompt of {length}", "first token", took * 1e3, "ms")

    def decode(self, streams: int) -> None:
        cache, cpu = DynamicCache(), time.process_time()
        ids = self.forward(self.ids(streams, SHORT), cache)
        ids = self.forward(ids, cache)
        times = [time.perf_counter()]
        for _ in range(TOKENS[streams]):
            ids = self.forward(ids, cache)
            times.append(time.perf_counter())
        case = f"{streams} stream{'s' if streams > 1 else ''}"
        self.report(case, "decode", streams * TOKENS[streams] / (times[-1] - times[0]), "tokens/s")
        cpu, count = time.process_time() - cpu, streams * (SHORT + TOKENS[streams])
        self.report(case, "processor time a token, prompts included", cpu / count * 1e3, "ms")
        runs = sorted((later - at) / RUN for at, later in zip(times, times[RUN:]))
        self.report(case, "decode, quickest tenth", streams / runs[len(runs) // 10], "tokens/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("dtype", choices=["f32", "bf16"])
    parser.add_argument("threads", type=int)
    parser.add_argument("--case", required=True)
    parser.add_argument("--prompt", type=int, default=1024)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with torch.inference_mode():
        peer = Peer(args)
        if args.prompt:
            peer.prefill()
        for streams in TOKENS:
            peer.decode(streams)
    with open("/proc/self/status", encoding="ascii") as file:
        peak = next(line for line in file if line.startswith("VmHWM"))
    peer.report("after the load", "peak memory", int(peak.split()[1]) / 1024, "MiB")


if __name__ == "__main__":
    main()
