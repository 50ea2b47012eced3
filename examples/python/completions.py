#!/usr/bin/env python3
"""Streams a text from decoder-service over OpenAI's API, and shows which tokens came from which f-grams.

    pip install openai
    python3 completions.py --url http://127.0.0.1:7480/v1 "The old house at the end of the street"
"""

import argparse

from openai import OpenAI


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt")
    parser.add_argument("--url", default="http://127.0.0.1:7480/v1")
    parser.add_argument("--max-tokens", type=int, default=60)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()

    # There is no authentication; the client wants a key all the same.
    client = OpenAI(base_url=args.url, api_key="none")
    model = client.models.list().data[0].id
    chunks = client.completions.create(
        model=model, prompt=args.prompt, max_tokens=args.max_tokens, seed=args.seed, stream=True,
        stream_options={"include_usage": True}, extra_body={"return_match_lengths": True})
    lengths = []
    print(args.prompt, end="", flush=True)
    for chunk in chunks:
        for choice in chunk.choices:
            print(choice.text, end="", flush=True)
            # How many tokens the f-gram had whose row was the input that chose each token.
            lengths += choice.match_lengths
        if chunk.usage:
            usage = chunk.usage
    by_length = {length: lengths.count(length) for length in sorted(set(lengths))}
    print(f"\n\n{usage.completion_tokens} tokens; by length of the f-gram before them (0 is none): {by_length}")


if __name__ == "__main__":
    main()
