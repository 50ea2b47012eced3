#!/usr/bin/env python3
"""The same model in an engine that comes as a Python package, in this process: no server around it.

usage: python_peer.py ik_llama.cpp|mistral.rs MODEL.gguf TYPE THREADS --case C [--prompt 1024]

Packages: ik-llama-cpp-python, mistralrs. One stream: what these packages offer in a process.
"""

import argparse
import json
import os
import random
import time
from pathlib import Path

SHORT = 16
TOKENS = 64


class IkLlama:
    def __init__(self, path: Path, threads: int, context: int) -> None:
        from ik_llama_cpp import IkLlama as Model

        self.model = Model(str(path), n_ctx=context, n_threads=threads, verbose=False)
        self.random = random.Random(1)

    def run(self, prompt: int, tokens: int) -> tuple[float, float]:
        """Tokens/s of the prompt and of decoding."""
        ids = [self.random.randrange(3, 40_000) for _ in range(prompt)]
        took = []
        for count in (1, tokens):
            start = time.perf_counter()
            made = len(self.model.generate(ids, max_tokens=count, temperature=0.0))
            took.append(time.perf_counter() - start)
        return prompt / took[0], (made - 1) / (took[1] - took[0]) if made > 1 else 0.0


class MistralRs:
    def __init__(self, path: Path, threads: int, context: int) -> None:
        os.environ["RAYON_NUM_THREADS"] = str(threads)
        from mistralrs import CompletionRequest, Runner, Which

        self.request = CompletionRequest
        folder = str(path.parent)
        self.runner = Runner(which=Which.GGUF(folder, path.name, tokenizer_json=f"{folder}/tokenizer.json"))
        self.words = "time people way water work life day part place house hand night world year thing".split()
        self.random = random.Random(1)

    def run(self, prompt: int, tokens: int) -> tuple[float, float]:
        """By its own clocks."""
        text = " ".join(self.random.choice(self.words) for _ in range(prompt))
        request = self.request(text, "default", max_tokens=tokens, temperature=0.0, ignore_eos=True)
        usage = self.runner.send_completion_request(request).usage
        return usage.avg_prompt_tok_per_sec, usage.avg_compl_tok_per_sec


ENGINES = {"ik_llama.cpp": IkLlama, "mistral.rs": MistralRs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("model", type=Path)
    parser.add_argument("type")
    parser.add_argument("threads", type=int)
    parser.add_argument("--case", required=True)
    parser.add_argument("--prompt", type=int, default=1024)
    args = parser.parse_args()
    engine = ENGINES[args.engine](args.model, args.threads, args.prompt + TOKENS + 64)

    def report(case: str, metric: str, value: float, unit: str) -> None:
        line = {"bench": "engine", "case": f"{args.case}, {case}", "subject": f"{args.engine} {args.type}"}
        print(json.dumps(line | {"metric": metric, "value": round(value, 3), "unit": unit}), flush=True)

    for _ in range(2):
        prefill, _ = engine.run(args.prompt, 2)
        report(f"prompt of {args.prompt}", "prefill", prefill, "tokens/s")
        _, decode = engine.run(SHORT, TOKENS)
        report("1 stream", "decode", decode, "tokens/s")


if __name__ == "__main__":
    main()
