"""DPO beside TRL, in turn, on the same pairs, model, batch and hyperparameters: `python bench/train_dpo.py`.

    PEERS_HOME=DIR .venv/bin/python bench/train_dpo.py PAIRS.json [--shapes small] [--dtypes fp32 bf16] [--steps 12]
                                                       [--threads 2] [--folder DIR]

PAIRS.json holds `conversations`, `chosen` and `rejected` in sharegpt's manner, as dpo_en_demo.json. All else is as in
`bench/train.py`; TRL runs as it comes, with the reference's forward pass in each step, and with
`--precompute_ref_log_probs`.

- Tokens are those of both sequences of each pair, the prompt in each, without padding: the same number on all sides.
- With the reference: this toolbox's CPU seconds from the beginning of the reference pass to the first step count too,
  held-out pairs and their evaluation among them. TRL's steps hold the reference, but for the one computed before.
- Losses: against TRL's as it comes.
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import train
import train_assets
import train_sides
from train_sides import BATCH, LONGEST, ROOT, Case, Measured, rates

WARM = 1
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--shapes", nargs="+", choices=train_assets.SHAPES, default=["small"])
    parser.add_argument("--dtypes", nargs="+", choices=train_sides.DTYPES, default=list(train_sides.DTYPES))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, help="where logs and runs stay; by default a temporary one")
    given = parser.parse_args()
    peers = Path(os.environ.get("PEERS_HOME") or Path(tempfile.gettempdir()) / "peers")
    with tempfile.TemporaryDirectory(prefix="bench-dpo-") as scratch:
        folder = (given.folder or Path(scratch)).resolve()
        for shape in given.shapes:
            for dtype in given.dtypes:
                compare(prepare(given.pairs, shape, dtype, given.steps, given.threads, folder, peers))
    return 0


def prepare(pairs: Path, shape: str, dtype: str, steps: int, threads: int, folder: Path, peers: Path) -> Case:
    """Model, pairs and the adapter that all begin with, in files."""
    model = train_assets.make_model(shape, peers / "assets" / "small", folder / "models")
    rows, out = folder / f"pairs-{steps}", folder / f"dpo-{shape}-{dtype}"
    (rows / "trl").mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True)
    taken = take_pairs(pairs, model, steps * BATCH + steps * BATCH // 9)
    write(rows / "ours.jsonl", taken)
    write(rows / "trl" / "train.jsonl", [taken[index] for index in train.order(len(taken), steps)])
    write(rows / "messages.jsonl", [])
    case = Case(shape, dtype, steps, threads, model, rows, out, peers, "dpo")
    _, complaint = train_sides.run_reference(replace(case, steps=0))
    if not (out / "adapter.safetensors").exists():
        raise SystemExit(complaint)
    return case


def take_pairs(source: Path, model: Path, count: int) -> list[dict[str, Any]]:
    """The first `count` pairs both of whose sequences have at most LONGEST tokens: longer ones are cut in many ways."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)

    def turn(said: dict[str, str]) -> dict[str, str]:
        return {"role": ROLES[said["from"]], "content": said["value"].strip()}

    taken = []
    for row in json.loads(source.read_text("utf-8")):
        prompt, chosen, rejected = ([turn(said) for said in turns] for turns in
                                    (row["conversations"], [row["chosen"]], [row["rejected"]]))  # fmt: skip
        texts = [tokenizer.apply_chat_template(prompt + answer, tokenize=False) for answer in (chosen, rejected)]
        if all(len(tokenizer(text).input_ids) <= LONGEST for text in texts):
            taken.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    if len(taken) < count:
        raise SystemExit(f"{source} has {len(taken)} pairs of at most {LONGEST} tokens, not {count}: fewer --steps.")
    return taken[:count]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def trl(case: Case, *more: str) -> Measured:
    name = "TRL, reference before" if more else "TRL"
    words = [
        "trl", "dpo", "--model_name_or_path", str(case.model), "--dataset_name", str(case.rows / "trl"),
        "--dtype", case.torch_dtype, "--bf16", str(case.dtype == "bf16").lower(), "--use_peft",
        "--lora_target_modules", "all-linear", "--train_sampling_strategy", "sequential",
        *train_sides.common(case, "lora_r"), "--output_dir", str(case.out / "trl"), *more,
    ]  # fmt: skip
    return train_sides.watch(name, "trl", words, case)


def compare(case: Case) -> None:
    """Run all sides of a case and print its table."""
    ours = train_sides.run_ours(case)
    peers = [trl(case), trl(case, "--precompute_ref_log_probs", "true")]
    print(f"\n### DPO, {case.shape}, {case.dtype}, {case.threads} threads\n")
    print("| | tokens/CPU s | with the reference | peak | first step | largest loss difference |")
    print("|---|--:|--:|--:|--:|--:|")
    whole = tokens(case)
    ours.tokens = whole[1:]
    for side in (ours, *peers):
        print(row(side, peers[0], sum(whole)), flush=True)
    if not (ours.error or peers[0].error):
        speed = rates(peers[0], WARM)[0]
        print(f"\nOver TRL: {rates(ours, WARM)[0] / speed:.2f} times the tokens a CPU second, ", end="")
        print(f"{with_reference(ours, sum(whole)) / speed:.2f} with the reference; ", end="")
        print(f"{ours.peak_bytes / peers[0].peak_bytes:.2f} of the peak, ", end="")
        print(f"{ours.to_first_step_s / peers[0].to_first_step_s:.2f} of the time to the first step.", flush=True)


def tokens(case: Case) -> list[int]:
    """Of both sequences of each step's pairs."""
    from toolbox import loading
    from toolbox.datasets import Preference
    from toolbox.training.stages import pairs

    tokenizer, found = loading.tokenizer(case.model), []
    for number, line in enumerate((case.rows / "trl" / "train.jsonl").read_text("utf-8").splitlines(), 1):
        row = json.loads(line)
        found.append(pairs.encode_pair("x", Preference(number, **row), tokenizer).size)
    return [sum(found[at : at + BATCH]) for at in range(0, len(found), BATCH)]


def row(side: Measured, trl: Measured, whole: int) -> str:
    if side.error:
        return f"| {side.name} | failed: {side.error} | | | | |"
    apart = max(abs(one - other) for one, other in zip(side.losses, trl.losses, strict=True))
    speed = with_reference(side, whole) if side.reference_cpu_s else rates(side, WARM)[0]
    return (
        f"| {side.name} | {rates(side, WARM)[0]:.0f} | {speed:.0f} | {side.peak_bytes / 2**20:,.0f} MiB "
        f"| {side.to_first_step_s:.1f} s | {apart:.1e} |"
    )


def with_reference(side: Measured, whole: int) -> float:
    """Tokens a CPU second in one epoch of `whole` tokens, with its reference pass."""
    return whole / (whole / rates(side, WARM)[0] + side.reference_cpu_s)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    raise SystemExit(main())
