"""langchain-openai and litellm against a decoder-service.

    python3 frameworks_check.py http://127.0.0.1:7480/v1 MODEL
"""

import os
import sys
from importlib.metadata import version

# It would fetch a list of prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm  # noqa: E402
from langchain_openai import ChatOpenAI, OpenAI  # noqa: E402

PROMPT = "In the beginning of the year"
MESSAGES = [{"role": "user", "content": "Where is the river?"}]


def main():
    base_url, model = sys.argv[1:]
    own = {"base_url": base_url, "api_key": "none", "model": model, "max_tokens": 16, "temperature": 0, "seed": 1}
    text = OpenAI(**own).invoke(PROMPT)
    assert text == "".join(OpenAI(**own).stream(PROMPT))
    chat = ChatOpenAI(**own)
    answer = chat.invoke("Where is the river?")
    assert answer.usage_metadata["output_tokens"] == 16
    assert answer.content == "".join(part.content for part in chat.stream("Where is the river?"))
    print("ok: langchain-openai", version("langchain-openai"), flush=True)

    own = {"api_base": base_url, "api_key": "none", "max_tokens": 16, "temperature": 0, "seed": 1}
    by_litellm = litellm.text_completion(model=f"text-completion-openai/{model}", prompt=PROMPT, **own)
    assert by_litellm.choices[0].text == text
    whole = litellm.completion(model=f"openai/{model}", messages=MESSAGES, **own)
    assert whole.choices[0].message.content == answer.content
    parts = litellm.completion(model=f"openai/{model}", messages=MESSAGES, stream=True, **own)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == answer.content
    print("ok: litellm", version("litellm"))


if __name__ == "__main__":
    main()
