#!/usr/bin/env python3
"""Prefill and decode speed of transformers' LlamaForCausalLM on the same card: the model that
random_llama.py wrote, in f32 and bf16, eager and (decode) as a CUDA graph over a static cache.

usage: peer.py MODEL_DIR [--device cuda] [--streams 1,8,32,128] [--prompt 512] [--tokens 64]
"""

import argparse
import json
import sys
import time

import torch
from transformers import DynamicCache, LlamaForCausalLM, StaticCache

SHORT = 16


class Peer:
    def __init__(self, args, dtype: str):
        self.args, self.dtype = args, dtype
        kind = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
        model = LlamaForCausalLM.from_pretrained(args.model, dtype=kind, attn_implementation="sdpa")
        self.model = model.to(args.device).eval()

    def report(self, subject: str, metric: str, value: float, streams: int) -> None:
        case = f"{self.args.case}, {streams} streams"
        line = {"bench": "gpu_engine", "case": case, "subject": f"{subject} {self.dtype}"}
        print(json.dumps(line | {"metric": metric, "value": value, "unit": "tokens/s"}), flush=True)

    def ids(self, streams: int, length: int) -> torch.Tensor:
        shape = (streams, length)
        return torch.randint(1, self.model.config.vocab_size, shape, device=self.args.device)

    def sync(self) -> float:
        if self.args.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    def forward(self, ids: torch.Tensor, cache, **more) -> torch.Tensor:
        """The next token of each stream, `(streams, 1)`."""
        out = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **more)
        return out.logits.argmax(-1)

    def prefill(self, streams: int) -> None:
        best = float("inf")
        for _ in range(4):
            ids = self.ids(streams, self.args.prompt)
            start = self.sync()
            self.forward(ids, DynamicCache()).tolist()
            best = min(best, self.sync() - start)
        self.report("transformers", "prefill", ids.numel() / best, streams)

    def decode(self, streams: int) -> None:
        cache = DynamicCache()
        ids = self.forward(self.ids(streams, SHORT), cache)
        ids = self.forward(ids, cache)
        start = self.sync()
        for _ in range(self.args.tokens):
            ids = self.forward(ids, cache)
            # A server has to know the ids after each step.
            ids.tolist()
        took = self.sync() - start
        self.report("transformers", "decode", streams * self.args.tokens / took, streams)

    def decode_graph(self, streams: int) -> None:
        """The same step replayed as a graph: no launch costs."""
        length = SHORT + self.args.tokens + 8
        cache = StaticCache(config=self.model.config, max_cache_len=length)
        ids = self.forward(self.ids(streams, SHORT), cache).clone()
        position = torch.full((streams, 1), SHORT, device=self.args.device)
        # One position of each row is seen more with each step.
        seen = torch.zeros((streams, 1, 1, length), dtype=torch.bool, device=self.args.device)
        seen[..., : SHORT + 1] = True

        def step() -> torch.Tensor:
            return self.forward(ids, cache, position_ids=position, attention_mask=seen)

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = step()
        graph.replay()
        start = self.sync()
        for at in range(self.args.tokens):
            ids.copy_(out)
            position.add_(1)
            seen[..., SHORT + at : SHORT + at + 1] = True
            graph.replay()
            out.tolist()
        took = self.sync() - start
        self.report("transformers, CUDA graph", "decode", streams * self.args.tokens / took, streams)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("case")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtypes", default="f32,bf16")
    parser.add_argument("--streams", type=lambda s: [int(n) for n in s.split(",")], default=[1, 8, 32, 128])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    with torch.inference_mode():
        for dtype in args.dtypes.split(","):
            peer = Peer(args, dtype)
            for streams in args.streams:
                for part in (peer.decode, peer.prefill, peer.decode_graph):
                    try:
                        part(streams)
                    except Exception as error:  # the others still count
                        print(f"{part.__name__}, {dtype}, {streams} streams: {error}"[:500], file=sys.stderr)
            del peer


if __name__ == "__main__":
    main()
