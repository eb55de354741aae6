"""Measures every method of tuning on the embedded model and writes docs/tuners.json.

python scripts/tuners.py [METHOD …]     measure all, or these (minutes); then: python scripts/tuners_page.py
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from toolbox import methods  # noqa: E402

FIGURES = ROOT / "docs" / "tuners.json"
STEPS, STOP = 4, 2
"""Optimizer steps of a short run, and after how many of them the interrupted one stops."""
SAME, MERGED = 2e-5, 5e-5
"""The largest difference of a logit that is rounding in float32, where logits go up to 11: reloaded, and merged."""


class Figures(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a method did. Differences are of logits, the largest; None: not tried."""

    method: str
    quantization: str = "none"
    weights: int
    """Trained weights of the embedded model."""
    loss_before: float
    loss_after: float
    """On held-out rows, before the first and after the last of the short run's steps."""
    reload_diff: float
    resumed_equal: bool | None = None
    """A stopped and resumed run leaves the very weights of a straight one."""
    merge_diff: float | None = None
    engine_diff: float | None = None
    """As the engine that comes along serves it, unmerged."""
    engine_error: str = ""


def measure(method: str, quantization: str, home: Path, merge: bool = True) -> Figures:
    """Train, stop, resume, reload, merge and load as an engine does, through the toolbox's own jobs."""
    from toolbox import plan as plans

    straight, model, result = _train(method, quantization, home)
    expected = logits(model)
    made: Any = plans.load(straight.plan_path)
    adapter = straight.adapter if straight.adapter.is_dir() else None
    reloaded = _reloaded(made, adapter, Path(result.get("model", ".")))
    figures = Figures(
        method=method, quantization=quantization, reload_diff=difference(logits(reloaded), expected),
        weights=sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        loss_before=result["eval_loss_before"], loss_after=result["eval_loss"],
    )  # fmt: skip
    if quantization == "none" or method == "qlora":
        figures.resumed_equal = same_files(straight.path, _stopped(method, quantization, home).path)
    if adapter and quantization == "none":
        figures.engine_diff, figures.engine_error = _as_engine(made, adapter, home / "view", expected)
    if adapter and merge and not methods.find(method).unmergeable:
        figures.merge_diff = _merged(made, adapter, home / "merged")
    return figures


def _plan(method: str, quantization: str, home: Path) -> Any:
    from plans import CPU, demo_facts

    from toolbox import datasets
    from toolbox.config import Home
    from toolbox.planning import plan_finetune
    from toolbox.wishes import Wishes

    settings = [
        f"max_steps={STEPS}", f"save_steps={STOP}", "eval_steps=100", "per_device_train_batch_size=4",
        "gradient_accumulation_steps=1", "max_length=128",
    ]  # fmt: skip
    wishes: Any = Wishes(method=method, quantization=quantization, recipe="cpu-tiny", settings=settings)
    made = plan_finetune(
        demo_facts(), [datasets.resolve("demo-persona", Home(home))], CPU, wishes, Home(home), must_fit=False
    )
    made.eval_rows = 32  # on fewer, the order of rows weighs more than four steps do
    return made


def _train(method: str, quantization: str, home: Path) -> tuple[Any, Any, dict[str, Any]]:
    """(the run, the model as it was when it ended, what the job returned) of a straight run."""
    from toolbox import runs, training
    from toolbox.runs import Silent

    made = _plan(method, quantization, home)
    run = runs.create(home / "runs", "straight", made)
    with caught() as models:
        result = training.run(made, run, Silent())
    return run, models[0], result


def _stopped(method: str, quantization: str, home: Path) -> Any:
    """A run of the same plan that was asked to stop, and resumed."""
    from toolbox import runs, training
    from toolbox.errors import Interrupted
    from toolbox.runs import Silent

    class Stopping(Silent):
        done = 0

        def progress(self, step: int, steps: int, **metrics: float) -> None:
            self.done = step

        @property
        def stopping(self) -> bool:  # type: ignore[override]
            return self.done >= STOP

    made = _plan(method, quantization, home)
    run = runs.create(home / "runs", "stopped", made)
    try:
        training.run(made, run, Stopping())
    except Interrupted:
        training.run(made, run, Silent())
    return run


@contextmanager
def caught() -> Iterator[list[Any]]:
    """The models that tuners load meanwhile."""
    from toolbox import training

    found: list[Any] = []
    original = training.tuner_for

    def tuner_for(plan: Any) -> Any:
        tuner = original(plan)
        load = tuner.load

        def loaded(device: str) -> Any:
            found.append(load(device))
            return found[-1]

        tuner.load = loaded  # type: ignore[method-assign]
        return tuner

    training.tuner_for = tuner_for
    try:
        yield found
    finally:
        training.tuner_for = original


def _reloaded(made: Any, adapter: Path | None, model: Path) -> Any:
    from toolbox import loading

    if adapter is None:
        return loading.base_model(model, made.model.dtype, "cpu")
    base = loading.base_model(made.model.path, made.dtype, "cpu", made.BitsAndBytesConfig or None)
    return loading.with_adapter(base, adapter)


def _as_engine(made: Any, adapter: Path, view: Path, expected: Any) -> tuple[float | None, str]:
    """(difference, "") of the model as our own engine loads it with its adapter, or (None, why it does not)."""
    from toolbox import loading
    from toolbox.engines import ENGINES, SERVED
    from toolbox.serving import view as views
    from toolbox.serving.batching.adapters import Adapters

    (tuned,) = views.make(view, made.model.path, [adapter], ENGINES["transformers"])
    try:
        adapters = Adapters(loading.base_model(view / SERVED, "float32", "cpu"), {tuned: view / tuned})
        with adapters.over([(tuned, expected.shape[1])]):
            return difference(logits(adapters.base), expected), ""
    except Exception as error:  # whatever a library says is the result
        said = str(error).replace(f"{view}/", "").splitlines()[0][:120]
        return None, f"{type(error).__name__}: {said}"


def _merged(made: Any, adapter: Path, output: Path) -> float:
    """The proof's largest difference. Raises ToolboxError where the merge is no good."""
    from toolbox import merging
    from toolbox.plan import MergePlan

    plan = MergePlan(
        entry="toolbox.merging:run", model=made.model, device=made.device, adapter=adapter, output=output,
        dtype="float32", quantization=made.quantization, BitsAndBytesConfig=made.BitsAndBytesConfig,
    )  # fmt: skip
    return float(merging.run(plan)["max_abs_diff"])


def tokens() -> Any:
    """Two rows of 24 tokens, always the same."""
    import torch

    return torch.randint(5, 1000, (2, 24), generator=torch.Generator().manual_seed(0))


def logits(model: Any) -> Any:
    """What `model` says of `tokens`, by attention as everybody has it."""
    import torch

    model.eval()
    with plain_attention(model), torch.no_grad():
        return model(input_ids=tokens(), use_cache=False).logits.float()


@contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    text = model.config.get_text_config()
    attention, text._attn_implementation = text._attn_implementation, "sdpa"
    try:
        yield
    finally:
        text._attn_implementation = attention


def difference(some: Any, others: Any) -> float:
    return float((some - others).abs().max())


def same_files(one: Path, other: Path) -> bool:
    """Whether two runs left the same weights, byte for byte."""
    made = sorted(path for folder in ("adapter", "model") for path in (one / folder).glob("*.safetensors"))
    return bool(made) and all(path.read_bytes() == (other / path.relative_to(one)).read_bytes() for path in made)


def every() -> Iterator[tuple[str, str]]:
    """(method, quantization) of all that is measured."""
    for method in methods.METHODS:
        if method.name != "qlora":
            yield method.name, "none"
        if method.nf4 and method.name != "lora":
            yield method.name, "nf4"


def read() -> list[Figures]:
    return msgspec.json.decode(FIGURES.read_bytes(), type=list[Figures])


def keep(figures: Figures) -> None:
    """Put `figures` in the place of what was measured of that method before."""
    known = {(old.method, old.quantization): old for old in (read() if FIGURES.exists() else [])}
    known[figures.method, figures.quantization] = figures
    ordered = [known[pair] for pair in every() if pair in known]
    FIGURES.write_bytes(msgspec.json.format(msgspec.json.encode(ordered), indent=1) + b"\n")


def main(chosen: list[str]) -> int:
    for method, quantization in every():
        if not chosen or method in chosen:
            begun = time.monotonic()
            with tempfile.TemporaryDirectory() as home:
                keep(measure(method, quantization, Path(home)))
            print(f"{method} {quantization}: {time.monotonic() - begun:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
