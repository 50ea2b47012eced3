"""Log likelihoods by lm-evaluation-harness, over HTTP, beside those of `trainer evaluate`.

    python3 lm_eval_check.py URL MODEL_DIR TRAINER [TABLE]

The texts fit one window of the model each, so both score every token given the same text before it. The server must
have --weights f32 --kv-dtype f32 and the same table: the trainer computes in f32.
"""

import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

TEXTS = pathlib.Path(__file__).parent / "texts.jsonl"
TASK = """task: scone_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}, {{metric: byte_perplexity}}]
"""
CHOICE = """task: scone_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""
QUESTIONS = [
    {"question": "The old house at the end of the", "choices": [" street", " xylophone"]},
    {"question": "He was born in the United", "choices": [" States", " banana"]},
    {"question": "In the middle of the", "choices": [" night", " quickly"]},
]


def main():
    url, model, trainer, *table = sys.argv[1:]
    with urllib.request.urlopen(url + "/v1/models") as answer:
        served = json.load(answer)["data"][0]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "rolling.yaml").write_text(TASK.format(file=TEXTS.resolve()))
        questions = folder / "questions.jsonl"
        questions.write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
        (folder / "choice.yaml").write_text(CHOICE.format(file=questions))
        arguments = (f"model={served['id']},base_url={url}/v1/completions,tokenizer_backend=remote,num_concurrent=1,"
                     f"max_length={served['max_model_len']}")
        command = ["lm_eval", "--model", "local-completions", "--model_args", arguments, "--tasks",
                   "scone_rolling,scone_choice", "--include_path", folder, "--output_path", folder / "out"]
        environment = {**os.environ, "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
                       "HF_DATASETS_CACHE": str(folder / "cache")}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        found = json.loads(next((folder / "out").rglob("results_*.json")).read_text())["results"]
        theirs = found["scone_rolling"]["bits_per_byte,none"]
        accuracy = found["scone_choice"]["acc,none"]
    rows = ["--table", table[0]] if table else ["--row-dtype", "f16"]
    command = [trainer, "evaluate", "--json", "--model", model, "--input", TEXTS, *rows]
    ours = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    per_token = ours["bytes"] * math.log(2) / ours["tokens"]
    difference = abs(theirs - ours["bits_per_byte"]) * per_token
    print(f"bits per byte: lm_eval {theirs:.7f}, trainer evaluate {ours['bits_per_byte']:.7f}; "
          f"nats a token differ by {difference:.1e}; {accuracy:.2f} of {len(QUESTIONS)} questions")
    assert difference < 1e-4
    print("ok: log likelihoods")


if __name__ == "__main__":
    main()
