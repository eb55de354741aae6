"""Training beside its peers, in turn, on the same rows, model, batch and hyperparameters: `python bench/train.py`.

    PEERS_HOME=DIR .venv/bin/python bench/train.py [--shapes small qwen8] [--dtypes fp32 bf16] [--peers swift lf trl]
                                                   [--steps 12] [--threads 2] [--folder DIR] [--quick]

PEERS_HOME holds an environment for each peer (venvs/swift, venvs/lf, venvs/trl) and assets/small, a model with its
tokenizer, and assets/data/alpaca_en_demo.json. What is equal for all: LoRA of rank 8 on all linears, no dropout, AdamW
at 1e-4 falling linearly, no weight decay, norms clipped at 1, batches of 4 rows of up to 512 tokens, padded in the
peers, no checkpointing of gradients, no saving, threads that don't spin.

- Rows: longer ones are left out, since each tool cuts in its own way. The file that peers read has the order in which
  this toolbox shuffles, and peers are told not to shuffle, so step n has the same rows everywhere.
- Losses: against a plain padded loop (train_reference.py), whose first adapter all sides begin with. In bf16 roundings
  differ.
- Tokens a second and a CPU second: those that are no padding, without the first three steps and the last. Peers are
  measured by a hook within (hook/sitecustomize.py), this toolbox from outside, at the ends of its steps.
- Peak: the highest resident size of the process that trains, imports and loading included.
- First step: seconds from the command until the first step begins; nobody evaluates before it (`eval_on_start`).
- Of peak arithmetic: the operations a step needs (4 a weight and token where weights are frozen, 6 for the adapter:
  arXiv:2001.08361, section 2.1; logits at labels only; 12·n·d a layer and token of a causal row of n tokens, halved:
  arXiv:2204.02311, appendix B) a CPU second, over those of a product of two large matrices.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import train_assets
import train_sides
from train_sides import BATCH, LONGEST, PEERS, ROOT, SEED, Case, Measured, rates

WARM = 3
STEPS = {"small": 14, "qwen8": 9}
QUICK = {"small": 7, "qwen8": 6}
PRODUCT = """
import time, torch
a = b = torch.randn(2048, 2048).to(torch.{dtype})
a @ b
begun = time.process_time()
for _ in range(20):
    a @ b
print(20 * 2 * 2048**3 / (time.process_time() - begun))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=train_assets.SHAPES, default=list(train_assets.SHAPES))
    parser.add_argument("--dtypes", nargs="+", choices=train_sides.DTYPES, default=list(train_sides.DTYPES))
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--steps", type=int, help="by default 14 of small, 9 of qwen8")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, help="where logs and runs stay; by default a temporary one")
    parser.add_argument("--record", type=Path, help="docs/figures.json, from which the READMEs take what they state")
    parser.add_argument("--quick", action="store_true", help="few steps, and LLaMA-Factory alone")
    given = parser.parse_args()
    if given.steps and given.steps < WARM + 3:
        parser.error(f"--steps: at least {WARM + 3}, of which {WARM} and the last are not timed")
    peers = Path(os.environ.get("PEERS_HOME") or Path(tempfile.gettempdir()) / "peers")
    if not (peers / "assets" / "small" / "config.json").exists():
        print(f"No models in {peers}/assets: set PEERS_HOME, and make them there.", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="bench-train-") as scratch:
        folder = (given.folder or Path(scratch)).resolve()
        for shape in given.shapes:
            for dtype in given.dtypes:
                steps = given.steps or (QUICK if given.quick else STEPS)[shape]
                case = prepare(shape, dtype, steps, given.threads, folder, peers)
                compare(case, ["lf"] if given.quick else given.peers, given.record)
    return 0


def prepare(shape: str, dtype: str, steps: int, threads: int, folder: Path, peers: Path) -> Case:
    """Model and rows of a case, in files."""
    assets = peers / "assets"
    model = train_assets.make_model(shape, assets / "small", folder / "models")
    rows, out = folder / f"rows-{steps}", folder / f"{shape}-{dtype}"
    out.mkdir(parents=True)
    held_out = steps * BATCH // 9  # of so many more rows, `finetune` holds a tenth out
    taken = train_assets.take_rows(assets / "data" / "alpaca_en_demo.json", model, LONGEST, steps * BATCH + held_out)
    train_assets.write_rows([taken[index] for index in order(len(taken), steps)], rows)
    lines = [json.dumps({"messages": turns}) for turns in taken]
    (rows / "ours.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return Case(shape, dtype, steps, threads, model, rows, out, peers)


def order(rows: int, steps: int) -> list[int]:
    """The rows of a file of `rows` rows in the order in which `finetune` trains on them."""
    from toolbox.recipe import Training
    from toolbox.training import batches, preparing

    plan: Any = SimpleNamespace(seed=SEED, eval_rows=rows // 10, datasets=[SimpleNamespace(distinct=rows)])
    held_out = preparing._drawn(plan)
    kept: list[Any] = [SimpleNamespace(index=index, size=0) for index in range(rows) if index not in held_out]
    settings = Training(per_device_train_batch_size=BATCH, learning_rate=train_sides.RATE)
    taken = (batches.of_step(kept, step, settings, SEED) for step in range(steps))
    return [item.index for micro_batches in taken for items in micro_batches for item in items]


def compare(case: Case, peers: list[str], record: Path | None = None) -> None:
    """Run all sides of a case and print its table."""
    expected, complaint = train_sides.run_reference(case)
    if len(expected) < case.steps:
        raise SystemExit(f"the reference failed: {complaint}")
    found = [train_sides.run_ours(case), *(train_sides.run_peer(peer, case) for peer in peers)]
    tokens, needed = work(case)
    found[0].tokens = tokens[1:]
    print(f"\n### SFT, {case.shape}, {case.dtype}, {case.threads} threads\n")
    print("| | tokens/CPU s | tokens/s | peak | first step | largest loss difference |\n|---|--:|--:|--:|--:|--:|")
    for side in found:
        print(row(side, expected), flush=True)
    if all(side.error for side in found[1:]) or found[0].error:
        return
    peers_found = [side for side in found[1:] if not side.error]
    print("\n" + ratios(found[0], peers_found))
    if record and case.shape == "small":
        sys.path.insert(0, str(ROOT / "scripts"))
        import figures

        times = rates(found[0], WARM)[0] / max(rates(side, WARM)[0] for side in peers_found)
        unit = "times the best peer's tokens a CPU second"
        figures.keep({f"train.{case.dtype}.times": (times, unit, 1)}, "bench/train.py", record)
    rate = rates(found[0], WARM)[0] * sum(needed) / sum(tokens)
    most = product(case)
    print(f"Arithmetic: {rate / 1e9:.0f} of {most / 1e9:.0f} Gflop a CPU second, {rate / most:.0%}.", flush=True)


def row(side: Measured, expected: list[float]) -> str:
    if side.error:
        return f"| {side.name} | failed: {side.error} | | | | |"
    cpu, wall = rates(side, WARM)
    apart = max(abs(one - other) for one, other in zip(side.losses, expected, strict=True))
    peak = side.peak_bytes / 2**20
    return f"| {side.name} | {cpu:.0f} | {wall:.0f} | {peak:,.0f} MiB | {side.to_first_step_s:.1f} s | {apart:.1e} |"


def ratios(ours: Measured, peers: list[Measured]) -> str:
    """This toolbox over the best peer of each column."""
    speed = rates(ours, WARM)[0] / max(rates(side, WARM)[0] for side in peers)
    wall = rates(ours, WARM)[1] / max(rates(side, WARM)[1] for side in peers)
    peak = ours.peak_bytes / min(side.peak_bytes for side in peers)
    first = ours.to_first_step_s / min(side.to_first_step_s for side in peers)
    return (
        f"Over the best peer: {speed:.2f} times the tokens a CPU second, {wall:.2f} times a second, "
        f"{peak:.2f} of the peak, {first:.2f} of the time to the first step."
    )


def work(case: Case) -> tuple[list[int], list[float]]:
    """(tokens of each step, floating-point operations that it needs)."""
    from toolbox import loading
    from toolbox.datasets import Conversation
    from toolbox.training import rows

    settings = json.loads((case.model / "config.json").read_text("utf-8"))
    hidden, inner, layers = (settings[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    keys = hidden // settings["num_attention_heads"] * settings["num_key_value_heads"]
    weights = layers * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner)
    adapter = layers * 8 * (4 * hidden + 2 * (hidden + keys) + 3 * (hidden + inner))
    tokenizer, tokens, needed = loading.tokenizer(case.model), [], []
    for number, line in enumerate((case.rows / "messages.jsonl").read_text("utf-8").splitlines()):
        sample = rows.encode_row("rows", Conversation(number, json.loads(line)["messages"]), tokenizer)
        logits = 4 * settings["vocab_size"] * hidden * sum(label != rows.IGNORED for label in sample.labels[1:])
        attention = 6 * layers * hidden * sample.size**2
        tokens.append(sample.size)
        needed.append((4 * weights + 6 * adapter) * sample.size + logits + attention)
    steps = range(0, len(tokens), BATCH)
    return [sum(tokens[at : at + BATCH]) for at in steps], [sum(needed[at : at + BATCH]) for at in steps]


def product(case: Case) -> float:
    """Floating-point operations a CPU second of a large matrix product in the case's type."""
    code = PRODUCT.format(dtype=case.torch_dtype)
    done = subprocess.run(
        [sys.executable, "-c", code], env=train_sides.environment(case), capture_output=True, text=True, check=True
    )
    return float(done.stdout)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    raise SystemExit(main())
