"""What only a GPU can show: speed, peaks, resuming and merging on a model of Qwen2.5-0.5B's shape. `bash bench/gpu.sh`.

Model and rows are generated. Printed, and kept as OUT/gpu.json: doctor's findings; LoRA, QLoRA and DPO, and LoRA with
Liger's kernels where liger-kernel is installed: tokens a second and peak, measured and predicted; for LoRA and QLoRA
the same steps by a plain padded loop of transformers and peft (gpu_padded.py); whether a run that was stopped and
resumed gives the straight one's numbers; a merge with its proof. What fails is told in its row, and the rest goes on.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DRY = os.environ.get("DEVICE") == "cpu"
SHAPE = {
    "hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864,
    "num_hidden_layers": 24, "vocab_size": 151936, "tie_word_embeddings": True, "max_position_embeddings": 4096,
}  # fmt: skip
SMALLER = {"hidden_size": 112, "num_hidden_layers": 2, "intermediate_size": 608, "vocab_size": 4096}
"""What a dry run changes."""
ROWS = 64 if DRY else 1024
PROMPT, ANSWER = (20, 120), (10, 400)
"""Words, as few and as many: answers of instructions differ as much in length."""
EXACT = ["LoraConfig.lora_dropout=0"]


class FailedError(Exception):
    """A command's last words."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("bench-gpu"))
    parser.add_argument("--steps", type=int, default=4 if DRY else 48)
    given = parser.parse_args()
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    make_model(out / "model")
    make_rows(out)
    found: dict[str, Any] = {"doctor": doctor(out)}
    if not DRY and "none" in found["doctor"]["GPU"]:
        print("No CUDA GPU here; DEVICE=cpu makes a dry run.", file=sys.stderr)
        return 1
    cases = {
        "LoRA": ["--dataset", out / "rows.jsonl", "--method", "lora"],
        "QLoRA": ["--dataset", out / "rows.jsonl", "--method", "qlora"],
        "DPO, LoRA": ["--dataset", out / "pairs.jsonl", "--stage", "dpo", "--method", "lora"],
    }
    if find_spec("liger_kernel"):
        cases["LoRA, Liger"] = [*cases["LoRA"], "--set", "use_liger_kernel=true"]
    found["training"] = {name: attempt(train, out, words, given.steps) for name, words in cases.items()}
    for name in ("LoRA", "QLoRA"):
        found["training"][f"{name}, padded"] = attempt(padded, out, found["training"][name])
    found["resumed"] = attempt(resumed, out, given.steps)
    found["merged"] = attempt(merged, out, found["training"]["LoRA"])
    (out / "gpu.json").write_text(json.dumps(found, indent=1))
    print(table(found))
    return int("error" in json.dumps(found))


def attempt(work: Any, *given: Any) -> dict[str, Any]:
    try:
        return dict(work(*given))
    except FailedError as error:
        return {"error": str(error)}


def make_model(folder: Path) -> None:
    """Random weights in bfloat16; the tokenizer is the embedded model's."""
    if (folder / "config.json").exists():
        return
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "toolbox" / "embedded" / "model")
    config = Qwen2Config(**(SHAPE | SMALLER if DRY else SHAPE), eos_token_id=tokenizer.eos_token_id)  # type: ignore[arg-type]
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_rows(out: Path) -> None:
    """Conversations and pairs of random words of the embedded data."""
    draw = random.Random(0)
    text = (ROOT / "toolbox" / "embedded" / "data" / "demo-heldout.jsonl").read_text("utf-8")
    words = sorted({word for word in text.split() if word.isalpha() and word.isascii()})

    def said(role: str, least: int, most: int) -> dict[str, str]:
        return {"role": role, "content": " ".join(draw.choices(words, k=draw.randint(least, most)))}

    with (out / "rows.jsonl").open("w") as rows, (out / "pairs.jsonl").open("w") as pairs:
        for _number in range(ROWS):
            asked, chosen, rejected = said("user", *PROMPT), said("assistant", *ANSWER), said("assistant", *ANSWER)
            rows.write(json.dumps({"messages": [asked, chosen]}) + "\n")
            pairs.write(json.dumps({"prompt": [asked], "chosen": [chosen], "rejected": [rejected]}) + "\n")


def call(out: Path, *words: Any) -> dict[str, Any]:
    """A command of the toolbox; its `--json` object. Raises FailedError with what it said last."""
    done = subprocess.run(command(out, *words), capture_output=True, text=True, env=os.environ | {"YCDY_LANG": "en"})
    last = done.stdout.rstrip().rpartition("\n")[2]
    if done.returncode or not last.startswith("{"):
        raise FailedError((done.stderr or done.stdout)[-600:])
    return dict(json.loads(last))


def command(out: Path, *words: Any) -> list[str]:
    whole = ["bash", ROOT / "yichuidingyin.sh", *words, "--home", out / "home", "--yes", "--json"]
    return [str(word) for word in whole]


def doctor(out: Path) -> dict[str, str]:
    found = call(out, "doctor")["checks"]
    return {check["name"]: check["detail"] for check in found if check["name"] in ("GPU", "torch", "Processor")}


def train(out: Path, words: list[Any], steps: int) -> dict[str, Any]:
    settings = [f"max_steps={steps}", "save_steps=1000", "eval_steps=1000", *EXACT]
    where = words.index("--set") if "--set" in words else len(words)
    words = [*words[:where], "--set", *words[where + 1 :], *settings]
    made = call(out, "finetune", "--model", out / "model", *words)
    told = ("run", "tokens_per_s", "peak_bytes", "predicted_peak_bytes", "train_loss")
    return {name: made[name] for name in told} | {"losses": losses(out, made["run"])}


def padded(out: Path, ours: dict[str, Any]) -> dict[str, Any]:
    """The same steps of the same plan by the plain loop, and how far its losses are from ours."""
    if "run" not in ours:
        raise FailedError("there is no run to compare with")
    words = [sys.executable, "-P", ROOT / "bench" / "gpu_padded.py", out / "home" / "runs" / ours["run"]]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        raise FailedError(done.stderr[-600:])
    made = dict(json.loads(done.stdout.rstrip().rpartition("\n")[2]))
    return made | {"loss_apart": apart(made["losses"], ours["losses"])}


def resumed(out: Path, steps: int) -> dict[str, Any]:
    """A run that was stopped on its way and went on, beside one that was not."""
    words = ["finetune", "--model", out / "model", "--dataset", out / "rows.jsonl", "--method", "lora", "--set"]
    words += [f"max_steps={steps}", "save_steps=1000", "eval_steps=1000"]
    straight = call(out, *words)["run"]
    before = set((out / "home" / "runs").iterdir())
    child = subprocess.Popen(command(out, *words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = ""
    while child.poll() is None and len(losses(out, run)) < 2:
        time.sleep(0.02)
        run = run or next((path.name for path in set((out / "home" / "runs").iterdir()) - before), "")
    call(out, "runs", "stop", run)
    child.wait()
    stopped = len(losses(out, run))
    if stopped < steps:
        call(out, "runs", "resume", run)
    return {"stopped_after": stopped, "steps": steps, "loss_apart": apart(losses(out, run), losses(out, straight))}


def merged(out: Path, ours: dict[str, Any]) -> dict[str, Any]:
    if "run" not in ours:
        raise FailedError("there is no run to merge")
    made = call(out, "merge", "--run", ours["run"])
    return {name: made[name] for name in ("passed", "max_abs_diff", "tolerance", "adapter_effect", "greedy_equal")}


def losses(out: Path, run: str) -> list[float]:
    path = out / "home" / "runs" / run / "metrics.jsonl"
    lines = path.read_text().splitlines() if run and path.exists() else []
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def apart(one: list[float], other: list[float]) -> float:
    return max((abs(left - right) for left, right in zip(one, other, strict=True)), default=float("nan"))


def table(found: dict[str, Any]) -> str:
    lines = [", ".join(found["doctor"].values()), "", "| | tokens/s | peak | predicted | losses apart |"]
    lines.append("|---|--:|--:|--:|--:|")
    for name, made in found["training"].items():
        if "error" in made:
            lines.append(f"| {name} | failed: {' '.join(made['error'].split())[-200:]} | | | |")
            continue
        peaks = [made["peak_bytes"], made.get("predicted_peak_bytes")]
        shown = ["" if peak is None else f"{peak / 2**20:,.0f} MiB" for peak in peaks]
        gap = f"{made['loss_apart']:.1e}" if "loss_apart" in made else ""
        lines.append(f"| {name} | {made['tokens_per_s']:.0f} | {shown[0]} | {shown[1]} | {gap} |")
    return "\n".join([*lines, "", f"Resumed: {found['resumed']}", f"Merged: {found['merged']}"])


if __name__ == "__main__":
    raise SystemExit(main())
