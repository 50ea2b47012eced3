#!/usr/bin/env python3
"""Training steps of the same models in PyTorch: forward, backward, clipping, AdamW, in f32 on the CPU.

usage: torch_peer.py WIDTH STEPS DATA [--fgrams FILE] [--threads N]

The models of run.py, eager: scaled_dot_product_attention, torch's own RMSNorm, fused AdamW. With --fgrams the inputs of
a batch's f-grams come from an f-gram model of 4 layers, each distinct f-gram of the batch once, those of equal length
together; which positions match is found before the clock starts, which the trainer does not get. Text, tokenizer, windows
and batch are run.py's, without its order of documents. One JSON line: the median tokens a second of all steps but
the first five.
"""

import argparse
import io
import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import zstandard
from tokenizers import Tokenizer
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
LAYERS, WINDOW, BATCH_TOKENS, WARM_UP = 4, 256, 4096, 5


class Block(nn.Module):
    def __init__(self, width: int, inner: int, rotary: bool) -> None:
        super().__init__()
        self.heads, self.rotary = width // 64, rotary
        self.first, self.second = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)
        linear = lambda a, b: nn.Linear(a, b, bias=False)
        self.q, self.k, self.v, self.o = (linear(width, width) for _ in range(4))
        self.gate, self.up, self.down = linear(width, inner), linear(width, inner), linear(inner, width)

    def forward(self, x: torch.Tensor, angles: tuple | None) -> torch.Tensor:
        batch, length, width = x.shape
        y = self.first(x)
        split = lambda z: z.view(batch, length, self.heads, 64).transpose(1, 2)
        q, k, v = split(self.q(y)), split(self.k(y)), split(self.v(y))
        if angles is not None:
            q, k = turn(q, *angles), turn(k, *angles)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(batch, length, width))
        y = self.second(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Model(nn.Module):
    def __init__(self, vocab: int, width: int, longest: int) -> None:
        super().__init__()
        inner = width * 8 // 3 // 32 * 32
        self.table = nn.Parameter(torch.randn(vocab, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, inner, True) for _ in range(LAYERS))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        if longest:
            self.places = nn.Parameter(torch.randn(longest, width) * 0.02)
            self.fgram_blocks = nn.ModuleList(Block(width, inner, False) for _ in range(LAYERS))
        frequencies = 10000.0 ** (-torch.arange(0, 64, 2) / 64)
        angles = torch.arange(WINDOW)[:, None] * frequencies
        self.angles = (angles.cos(), angles.sin())

    def rows(self, fgrams: list[torch.Tensor]) -> torch.Tensor:
        rows = []
        for ids in fgrams:
            x = self.table[ids] + self.places[: ids.shape[1]]
            for block in self.fgram_blocks:
                x = block(x, None)
            rows.append(x[:, -1])
        return torch.cat(rows)

    def loss(self, index: torch.Tensor, targets: torch.Tensor, fgrams: list[torch.Tensor]) -> torch.Tensor:
        inputs = torch.cat([self.table, self.rows(fgrams)]) if fgrams else self.table
        x = F.embedding(index, inputs)
        for block in self.blocks:
            x = block(x, self.angles)
        logits = self.norm(x).flatten(0, 1) @ self.table.T
        return F.cross_entropy(logits, targets.flatten())


def read_set(path: Path) -> tuple[set, int]:
    """The f-grams of fgrams.bin (docs/formats.md), and K."""
    data = path.read_bytes()
    longest = int.from_bytes(data[16:20], "little")
    start = 60 + 8 * (longest - 1)
    count, at = int.from_bytes(data[start : start + 8], "little"), start + 8

    def varint() -> int:
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    found = set()
    for _ in range(count):
        found.add(tuple(varint() for _ in range(varint())))
        varint(), varint()
    return found, longest


def read_tokens(data: Path, tokenizer: Tokenizer, wanted: int) -> list[int]:
    """Documents, each behind an eos."""
    ids: list[int] = []
    with open(data / "wiki/train-00.jsonl.zst", "rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        for line in lines:
            ids += [0] + tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids
            if len(ids) > wanted:
                return ids
    return ids


def batches(ids: list[int], steps: int, fgrams: set, longest: int, vocab: int):
    """For each step the input of every position, the token after it, and the f-grams by length."""
    for step in range(steps):
        start = step * BATCH_TOKENS
        by_length: dict[int, dict[tuple, int]] = {n: {} for n in range(2, longest + 1)}
        sources = []
        for at in range(start, start + BATCH_TOKENS):
            found = None
            for n in range(min(longest, at + 1), 1, -1):
                key = tuple(ids[at + 1 - n : at + 1])
                if key in fgrams:
                    found = (n, by_length[n].setdefault(key, len(by_length[n])))
                    break
            sources.append(found or ids[at])
        first, rows = {}, vocab
        for n, known in by_length.items():
            first[n], rows = rows, rows + len(known)
        index = [s if isinstance(s, int) else first[s[0]] + s[1] for s in sources]
        tensor = lambda x: torch.tensor(x).view(-1, WINDOW)
        groups = [torch.tensor(list(known)) for known in by_length.values() if known]
        yield tensor(index), tensor(ids[start + 1 : start + BATCH_TOKENS + 1]), groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("width", type=int)
    parser.add_argument("steps", type=int)
    parser.add_argument("data", type=Path)
    parser.add_argument("--fgrams", type=Path)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    tokenizer = Tokenizer.from_file(str(ROOT / "models/demo/tokenizer.json"))
    vocab = tokenizer.get_vocab_size()
    fgrams, longest = read_set(args.fgrams) if args.fgrams else (set(), 0)
    model = Model(vocab, args.width, longest)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    ids = read_tokens(args.data, tokenizer, args.steps * BATCH_TOKENS + 1)
    speeds, loss = [], None
    for index, targets, groups in list(batches(ids, args.steps, fgrams, longest, vocab)):
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = model.loss(index, targets, groups)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss = loss.item()
        speeds.append(BATCH_TOKENS / (time.perf_counter() - started))
    print(json.dumps({"tokens_per_s": statistics.median(speeds[WARM_UP:]), "loss": loss, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
