#!/usr/bin/env python3
"""Training steps with factors in f32 and in bf16, plain and with f-grams, and PyTorch's in f32, in turn.

usage: run.py [--trainer target/release/trainer] [--data ../shared/data] [--widths 128,256,512] [--rounds 2] [--steps 20]
              [--torch PYTHON]

Models of 4 layers on the demo's tokenizer and f-grams, one part of Wikipedia, windows of 256 tokens, 4,096 tokens a step. Each round trains
every variant once from its first step; the best of the rounds' medians counts, over all steps but the first five. JSON lines
on stdout, the last training loss beside the speed. PYTHON has torch, tokenizers and zstandard; without it there is no peer.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WARM_UP = 5


def overrides(width: int, precision: str, fgrams: bool, data: Path) -> list[str]:
    shape = {
        "hidden_size": width,
        "num_hidden_layers": 4,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64,
        "intermediate_size": width * 8 // 3 // 32 * 32,
    }
    keys = [f"model.{key}={value}" for key, value in shape.items()]
    keys += [f"fgram_model.num_attention_heads={width // 64}", f"fgram_model.intermediate_size={shape['intermediate_size']}"]
    keys += [f"data.train=[{data}/wiki/train-00.jsonl.zst]", "data.valid=[]", "training.batch_tokens=4096"]
    keys += ["training.log_every=1", f"training.precision={precision}"]
    return keys + ([] if fgrams else ["fgrams=null"])


def train(trainer: Path, steps: int, keys: list[str]) -> tuple[float, float]:
    """Median tokens/s, and the loss of the last step."""
    with tempfile.TemporaryDirectory() as out:
        command = [trainer, "train", "--config", "models/demo/train.yaml", "--out", out, "--stop-after", str(steps), *keys]
        subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
        lines = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    speeds = [line["tokens_per_s"] for line in lines if "tokens_per_s" in line][WARM_UP:]
    return statistics.median(speeds), lines[-1]["loss"]


def peer(python: str, steps: int, width: int, fgrams: bool, data: Path) -> tuple[float, float]:
    """As `train`, by torch_peer.py."""
    command = [python, ROOT / "benchmarks/training/torch_peer.py", str(width), str(steps), data]
    command += ["--fgrams", ROOT / "models/demo/fgrams.bin"] if fgrams else []
    result = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    return result["tokens_per_s"], result["loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--trainer", type=Path, default=ROOT / "target/release/trainer")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--widths", default="128,256,512")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--torch", metavar="PYTHON")
    args = parser.parse_args()
    widths = [int(width) for width in args.widths.split(",")]
    best: dict[tuple[int, bool, str], tuple[float, float]] = {}
    for number in range(args.rounds):
        machine = ROOT / "benchmarks/serving/machine.py"
        subprocess.run([sys.executable, machine, f"training, round {number + 1}"], check=True)
        for width in widths:
            for fgrams in (False, True):
                for subject in ("trainer f32", "trainer bf16", *(["PyTorch f32"] if args.torch else [])):
                    if subject.startswith("trainer"):
                        keys = overrides(width, subject.split()[1], fgrams, args.data)
                        result = train(args.trainer.resolve(), args.steps, keys)
                    else:
                        result = peer(args.torch, args.steps, width, fgrams, args.data)
                    case = (width, fgrams, subject)
                    best[case] = max(best.get(case, result), result)
    for (width, fgrams, subject), (speed, loss) in best.items():
        line = {"bench": "training", "case": f"d = {width}, {'SCONE' if fgrams else 'plain'}", "subject": subject}
        print(json.dumps(line | {"metric": "training", "value": round(speed), "unit": "tokens/s"}))
        print(json.dumps(line | {"metric": "loss of the last step", "value": round(loss, 4), "unit": "nats"}))


if __name__ == "__main__":
    main()
