"""Measures every method at every stage on the embedded model and writes docs/matrix.json.

python scripts/matrix.py [METHOD|STAGE …]    measure all, or these (minutes); then: python scripts/tuners_page.py

Each pair goes through the toolbox's own job twice: straight, and resumed from the straight run's first checkpoint.
"""

import math
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts")]

import tuners  # noqa: E402
from watching import Watching, tensors  # noqa: E402

from toolbox import methods, stages  # noqa: E402
from toolbox.runs import Silent  # noqa: E402

FIGURES = ROOT / "docs" / "matrix.json"
STEPS = 3
SETTINGS = {
    "ppo": ["ppo.response_length=6", "ppo.num_ppo_epochs=2", "ppo.num_mini_batches=2", "ppo.temperature=2.0"],
    "grpo": ["grpo.max_completion_length=6", "grpo.num_generations=4", "grpo.num_iterations=2", "grpo.beta=0.1",
             "grpo.temperature=2.0"],
}  # fmt: skip
"""Short answers that differ, learnt from more than once and held to the reference."""
REWARD = "brevity:40"
"""Answers in characters differ nearly always, so that there is something to learn from."""
SCORES = 1e-4
"""The largest difference of a score that is rounding in float32."""
PLACES = ("Paris", "Rome", "Oslo", "Cairo", "Lima", "Quito")


class Pair(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a method did at a stage. Differences are the largest of a logit; at the stage rm, of a score."""

    method: str
    stage: str
    quantization: str = "none"
    weights: int = 0
    """How many were trained."""
    moved: float = 0.0
    """The share of the trained tensors that changed in these steps."""
    strayed: list[str] = []
    """Weights that changed though they are not trained."""
    reload_diff: float = math.inf
    resumed_equal: bool = False
    """Resumed after its first step, the run left the very weights of the straight one."""
    merge_diff: float | None = None
    """None: it leaves a whole model, or does not merge."""


class Copying(Watching):
    """It also copies the first checkpoint of `run`, for `other` to go on from."""

    def __init__(self, run: Any, other: Any, models: list[Any]) -> None:
        super().__init__(models)
        self._source, self._destination = run.checkpoints, other.checkpoints

    def resumable(self) -> None:
        if not self._destination.exists():
            shutil.copytree(self._source, self._destination)


def every() -> Iterator[tuple[str, str, str]]:
    """(method, stage, quantization) of all that is measured."""
    for method, quantization in tuners.every():
        for stage in stages.NAMES:
            yield method, stage, quantization


def measure(method: str, stage: str, quantization: str, home: Path) -> Pair:
    """Train, look at what moved, reload, resume and merge. Raises what the job would end with."""
    import torch

    from toolbox import runs, training

    made = _plan(method, stage, quantization, home)
    straight, resumed = (runs.create(home / "runs", name, made) for name in ("straight", "resumed"))
    with tuners.caught() as models:
        reporter = Copying(straight, resumed, models)
        result = training.run(made, straight, reporter)
        training.run(made, resumed, Silent())
    if not all(map(math.isfinite, reporter.losses)) or len(reporter.losses) < STEPS:
        raise ArithmeticError(f"losses {reporter.losses}")
    model, before, trained = models[0], reporter.before, reporter.trained
    moved = {name for name, tensor in tensors(model) if not torch.equal(before[name], tensor)}
    answers = _scores if stage == "rm" else tuners.logits
    expected = answers(model)
    pair = Pair(
        method=method, stage=stage, quantization=quantization,
        weights=sum(weight.numel() for name, weight in model.named_parameters() if name in trained),
        moved=round(len(moved & trained) / len(trained), 3), strayed=sorted(moved - trained),
        resumed_equal=tuners.same_files(straight.path, resumed.path),
        reload_diff=tuners.difference(answers(_reloaded(made, straight, result)), expected),
    )  # fmt: skip
    if straight.adapter.is_dir() and not methods.find(method).unmergeable:
        pair.merge_diff = tuners.difference(answers(_merged(made, straight.adapter, home / "merged")), expected)
    return pair


def _plan(method: str, stage: str, quantization: str, home: Path) -> Any:
    from plans import CPU, demo_facts

    from toolbox import datasets
    from toolbox.config import Home
    from toolbox.planning import plan_finetune
    from toolbox.wishes import Wishes

    settings = [
        f"max_steps={STEPS}", "save_steps=1", "eval_steps=100", "per_device_train_batch_size=2",
        "gradient_accumulation_steps=1", "max_length=64", *SETTINGS.get(stage, ()),
    ]  # fmt: skip
    wishes: Any = Wishes(
        method=method, quantization=quantization, stage=stage, recipe="cpu-tiny", settings=settings,
        reward_funcs=[REWARD] if stage in SETTINGS else [],
    )  # fmt: skip
    spec = datasets.resolve(str(_rows(stage, home)), Home(home))
    return plan_finetune(demo_facts(), [spec], CPU, wishes, Home(home), must_fit=False)


def _rows(stage: str, home: Path) -> Path:
    """A file of a few rows that fit the stage."""
    from plans import write_jsonl

    asked = [(f"What is {place}?", f"{place} is a lovely city.", f"Go away with {place}.") for place in PLACES]
    match stage:
        case "pt":
            rows = [{"text": f"{question} {wanted}"} for question, wanted, _ in asked]
        case "kto":
            rows = [
                {"prompt": question, "completion": answers[number % 2], "label": number % 2 == 0}
                for number, (question, *answers) in enumerate(asked)
            ]
        case "ppo" | "grpo":
            rows = [{"prompt": question} for question, _, _ in asked]
        case "sft":
            rows = [{"prompt": question, "completion": wanted} for question, wanted, _ in asked]
        case _:
            rows = [{"prompt": question, "chosen": wanted, "rejected": other} for question, wanted, other in asked]
    return write_jsonl(home / f"{stage}.jsonl", rows)


def _reloaded(made: Any, run: Any, result: dict[str, Any]) -> Any:
    from toolbox import loading

    folder = run.adapter if run.adapter.is_dir() else None
    scores = made.stage == "rm"
    if folder is None:
        return loading.base_model(Path(result["model"]), made.model.dtype, "cpu", scores=scores)
    base = loading.base_model(made.model.path, made.dtype, "cpu", made.BitsAndBytesConfig or None, scores=scores)
    return loading.with_adapter(base, folder)


def _merged(made: Any, adapter: Path, output: Path) -> Any:
    from toolbox import loading
    from toolbox.merging import weights
    from toolbox.plan import MergePlan

    plan = MergePlan(
        entry="", model=made.model, device=made.device, adapter=adapter, output=output, dtype="float32",
        quantization=made.quantization, BitsAndBytesConfig=made.BitsAndBytesConfig,
    )  # fmt: skip
    output.mkdir()
    weights.merge(plan, output, lambda step, steps: None)
    return loading.base_model(output, "float32", "cpu", scores=made.stage == "rm")


def _scores(model: Any) -> Any:
    """What a reward model gives to a few rows of one length, [rows]."""
    import torch

    from toolbox.training.rows import Sample
    from toolbox.training.stages import scoring
    from toolbox.training.step import Forward

    ids, head = tuners.tokens(), scoring.head_of(model)
    model.eval()
    with tuners.plain_attention(model), torch.no_grad():
        if head and model.get_output_embeddings() is not None:  # as it was trained
            samples = [Sample("", 0, row, row) for row in ids.tolist()]
            return head(Forward(model, 0, "cpu", "float32").last_hidden(samples))[:, 0]
        model.config.pad_token_id = 0
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, 0].float()


def read() -> list[Pair]:
    return msgspec.json.decode(FIGURES.read_bytes(), type=list[Pair])


def keep(pair: Pair) -> None:
    """Put `pair` in the place of what was measured of it before."""
    known = {(old.method, old.stage, old.quantization): old for old in (read() if FIGURES.exists() else [])}
    known[pair.method, pair.stage, pair.quantization] = pair
    lines = [msgspec.json.encode(known[names]) for names in every() if names in known]
    FIGURES.write_bytes(b"[\n" + b",\n".join(lines) + b"\n]\n")


def main(chosen: list[str]) -> int:
    """0 where every pair was measured, else 1, the reasons said."""
    failed = False
    for names in every():
        if chosen and not set(chosen) & set(names):
            continue
        begun = time.process_time()
        with tempfile.TemporaryDirectory() as home, redirect_stdout(StringIO()):
            try:
                pair = measure(*names, Path(home))
            except Exception:  # the others are measured all the same
                traceback.print_exc()
                failed = True
                continue
        keep(pair)
        print(*names, f"{time.process_time() - begun:.1f} s", pair, flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
