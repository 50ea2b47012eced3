#!/usr/bin/env python3
"""Greedy tokens of several servers of what should be the same model.

usage: tokens.py MODEL_DIR TEXT CASE NAME=ADDRESS...     the first is what the others should equal
"""

import asyncio
import json
import sys

from targets import DecoderService
from tokenizers import Tokenizer

PROMPTS, LENGTH, TOKENS = 5, 40, 50


async def answers(address: str, prompts: list[list[int]]) -> list[list[int]]:
    target = DecoderService(address)
    await target.ready(120)

    async def one(prompt: list[int]) -> list[int]:
        return [id async for _, data in target.stream(prompt, TOKENS) for id in target.tokens(data)]

    found = [await one(prompt) for prompt in prompts]
    await target.close()
    return found


async def main() -> None:
    model, text, case, *servers = sys.argv[1:]
    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    with open(text, encoding="utf-8") as file:
        ids = tokenizer.encode(file.read(), add_special_tokens=False).ids
    step = len(ids) // PROMPTS
    prompts = [ids[at * step : at * step + LENGTH] for at in range(PROMPTS)]
    expected = None
    for server in servers:
        name, address = server.split("=")
        got = await answers(address, prompts)
        if expected is None:
            expected = got
            continue
        equal = sum(a == b and len(a) == TOKENS for a, b in zip(expected, got))
        line = {"bench": "tier-cost", "case": case, "subject": name}
        line |= {"metric": f"prompts of {PROMPTS} with equal tokens", "value": equal, "unit": "prompts"}
        print(json.dumps(line))


if __name__ == "__main__":
    asyncio.run(main())
