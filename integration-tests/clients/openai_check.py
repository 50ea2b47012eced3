"""The official client against a decoder-service: sync and async, whole and streamed, both endpoints.

    python3 openai_check.py http://127.0.0.1:7480/v1
"""

import asyncio
import sys

import openai
from openai import AsyncOpenAI, OpenAI

PROMPT = "In the beginning of the year"
OPTIONS = {"max_tokens": 24, "temperature": 0.8, "seed": 7}
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is the river?"}]


def completions(client, model):
    whole = client.completions.create(model=model, prompt=PROMPT, **OPTIONS)
    text = whole.choices[0].text
    assert whole.usage.completion_tokens == 24 and whole.choices[0].finish_reason == "length"
    chunks = list(client.completions.create(
        model=model, prompt=PROMPT, stream=True, stream_options={"include_usage": True}, **OPTIONS))
    assert len({(c.id, c.created, c.model) for c in chunks}) == 1
    assert "".join(c.choices[0].text for c in chunks if c.choices) == text
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage.model_copy(update={"scone": chunks[-1].usage.scone})
    several = client.completions.create(
        model=model, prompt=[PROMPT, "The river"], n=2, logprobs=3, echo=True,
        extra_body={"top_k": 40, "min_p": 0.01, "return_match_lengths": True}, **OPTIONS)
    assert [c.index for c in several.choices] == [0, 1, 2, 3]
    # Another top_k draws otherwise; the prompt is the same.
    assert several.choices[0].text.startswith(PROMPT)
    for choice in several.choices:
        said = choice.logprobs
        assert len(said.tokens) == len(said.token_logprobs) == len(said.text_offset) == len(choice.match_lengths)
        assert said.token_logprobs[0] is None and all(p <= 0 for p in said.token_logprobs[1:])
    ids = client.completions.create(model=model, prompt=[[5, 6, 7], [8]], max_tokens=2)
    assert len(ids.choices) == 2 and ids.usage.prompt_tokens == 4


def chats(client, model):
    whole = client.chat.completions.create(model=model, messages=MESSAGES, logprobs=True, top_logprobs=2, **OPTIONS)
    choice = whole.choices[0]
    assert choice.message.role == "assistant" and len(choice.logprobs.content) == 24
    assert bytes(b for t in choice.logprobs.content for b in t.bytes).decode(errors="replace") == choice.message.content
    chunks = list(client.chat.completions.create(model=model, messages=MESSAGES, stream=True, **OPTIONS))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == choice.message.content
    reasons = [c.choices[0].finish_reason for c in chunks]
    assert reasons[-1] == "length" and not any(reasons[:-1])
    with client.chat.completions.stream(model=model, messages=MESSAGES, **OPTIONS) as stream:
        # The helper's final completion is only for answers that stopped by themselves.
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        assert text == choice.message.content


def errors(client, model):
    for change, kind, param in [
        ({"temperature": 200}, openai.BadRequestError, "temperature"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
        ({"model": "no-such-model"}, openai.NotFoundError, None),
    ]:
        try:
            client.completions.create(**{"model": model, "prompt": PROMPT, **OPTIONS, **change})
            raise AssertionError(f"accepted: {change}")
        except kind as error:
            assert error.param == param, error


async def asynchronous(base_url, model):
    client = AsyncOpenAI(base_url=base_url, api_key="none")

    async def streamed(seed):
        stream = await client.completions.create(
            model=model, prompt=PROMPT, stream=True, max_tokens=24, temperature=0.8, seed=seed)
        return "".join([c.choices[0].text async for c in stream])

    alone = [await streamed(seed) for seed in range(4)]
    together = await asyncio.gather(*(streamed(seed) for seed in range(4)))
    assert alone == together
    chat = await client.chat.completions.create(model=model, messages=MESSAGES, **OPTIONS)
    assert chat.choices[0].message.content
    # More than run and wait at one time: refused ones come again by themselves, and all succeed.
    patient = client.with_options(max_retries=20)
    many = await asyncio.gather(*(
        patient.completions.create(model=model, prompt=PROMPT, n=4, max_tokens=24) for _ in range(40)))
    assert len(many) == 40
    await client.close()


def main():
    base_url = sys.argv[1]
    client = OpenAI(base_url=base_url, api_key="none")
    model = client.models.list().data[0].id
    assert client.models.retrieve(model).id == model
    for check in (completions, chats, errors):
        check(client, model)
        print("ok:", check.__name__, flush=True)
    asyncio.run(asynchronous(base_url, model))
    print("ok: asynchronous")
    print("openai", openai.__version__)


if __name__ == "__main__":
    main()
