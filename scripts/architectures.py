"""Trains a shrunken copy of each architecture in the registry through the toolbox's own job: docs/architectures.json.

python scripts/architectures.py [--only TYPE …] [--check]     measure all, or these; then: scripts/architectures_page.py

--check writes nothing and fails where what is measured is not what the file says.
"""

import argparse
import math
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts")]

import tuners  # noqa: E402
from watching import Watching, tensors  # noqa: E402

from toolbox import registry  # noqa: E402
from toolbox.errors import ToolboxError  # noqa: E402

FIGURES = ROOT / "docs" / "architectures.json"
STEPS = 2
"""LoRA's A gets its first gradient at the second step: B is zero before."""
SAME = 1e-4
"""The largest difference of a logit, as a share of the largest, that is rounding in float32."""
PLACES = ("Paris", "Rome", "Oslo", "Cairo", "Lima", "Quito")
BESIDE = {
    "diffusion_gemma": "DiffusionGemmaForBlockDiffusion", "hy_v3": "HYV3ForCausalLM",
    "minimax_m3_vl": "MiniMaxM3SparseForConditionalGeneration", "modernbert": "ModernBertForMaskedLM",
    "unlimited_ocr": "UnlimitedOCRForCausalLM", "xlm-roberta": "XLMRobertaForSequenceClassification",
}  # fmt: skip
"""Types that are measured though the registry has none of theirs that could be tuned, and their class."""
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class Trained(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What became of an architecture. Differences are the largest of a logit, as a share of the largest logit."""

    model_type: str
    loaded_as: str = ""
    """The class that our loading chose."""
    layers: list[str] = []
    """The kinds of layers of the copy, where its config names them."""
    layout: str = ""
    """flatten_shared, flatten, or pad."""
    adapted: list[str] = []
    """The names of the modules that the adapter was put on."""
    moved: float = 0.0
    """The share of the adapter's tensors that changed."""
    reload_diff: float | None = None
    merge_diff: float | None = None
    unmerged: str = ""
    """Why it can't be merged."""
    reason: str = ""
    """Why it does not train."""
    refused: bool = False
    """Whether the toolbox itself says so, in a sentence."""

    @property
    def works(self) -> bool:
        return not self.reason


class Figures(msgspec.Struct, kw_only=True):
    """docs/architectures.json."""

    versions: dict[str, str]
    types: list[Trained]


def registered() -> Counter[str]:
    """How many models of each `model_type` that transformers knows are registered."""
    return Counter(model.model_type for model in registry.shipped() if model.native)


def every() -> list[str]:
    """The types that are measured."""
    return sorted({*registered(), *BESIDE})


def architecture(model_type: str) -> str:
    """The class that most of the registered models of that type name in their config.json."""
    named = Counter(model.architecture for model in registry.shipped() if model.model_type == model_type)
    return BESIDE.get(model_type) or (named.most_common(1)[0][0] if named else "")


def measure(model_type: str, home: Path) -> Trained:
    """Make the copy, train, look at what moved, reload, merge."""
    figures = Trained(model_type=model_type)
    try:
        make(model_type, home / "copy")
        _train(figures, home)
    except ToolboxError as error:
        figures.reason, figures.refused = error.message.replace(f"{home}/", ""), True
    except Exception as error:  # whatever a library says is the result
        traceback.print_exc()
        figures.reason = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    return figures


def make(model_type: str, folder: Path) -> None:
    """A shrunken copy of `model_type` with random weights in `folder`, as its makers would upload it."""
    import shrinking
    import torch
    import transformers

    from toolbox import embedded

    config = shrinking.config(model_type)
    torch.manual_seed(0)
    kind = _class(model_type, config)
    try:
        model = kind(config)
    except ImportError:  # a tower is another library's; whoever has it not sees what follows
        model = transformers.AutoModelForCausalLM.from_config(config.get_text_config())
    if model.can_generate():
        model.generation_config.update(eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
    config.architectures = [kind.__name__]
    config.save_pretrained(folder)
    for name in TOKENIZER:
        shutil.copyfile(embedded.MODEL / name, folder / name)


def _class(model_type: str, config: Any) -> Any:
    import transformers

    named = getattr(transformers, architecture(model_type), None)
    if named is not None:
        return named
    known = (transformers.AutoModelForMultimodalLM, transformers.AutoModelForCausalLM)
    return next(auto._model_mapping[type(config)] for auto in known if type(config) in auto._model_mapping)


def _train(figures: Trained, home: Path) -> None:
    import torch

    from toolbox import loading, runs, training

    made = _plan(home)
    run = runs.create(home / "runs", "once", made)
    with tuners.caught() as models, _layouts() as layouts:
        reporter = Watching(models)
        training.run(made, run, reporter)
    model = models[0]
    base = model.get_base_model()
    if not all(map(math.isfinite, reporter.losses)) or len(reporter.losses) < STEPS:
        raise ArithmeticError(f"losses {reporter.losses}")
    moved = {name for name, tensor in tensors(model) if not torch.equal(reporter.before[name], tensor)}
    if strayed := sorted(moved - reporter.trained):
        raise ArithmeticError(f"weights moved that are not trained: {', '.join(strayed[:3])}")
    figures.loaded_as, figures.layout = type(base).__name__, layouts[-1]
    figures.layers = sorted(set(getattr(base.config.get_text_config(), "layer_types", None) or []))
    figures.adapted = sorted({name.split(".lora_A")[0].split(".")[-1] for name in reporter.trained if "lora_A" in name})
    figures.moved = round(len(moved) / len(reporter.trained), 3)
    expected = _logits(model)
    reloaded = loading.with_adapter(loading.base_model(made.model.path, made.dtype, "cpu"), run.adapter)
    figures.reload_diff = _difference(_logits(reloaded), expected)
    _merge(figures, made, run.adapter, home / "merged", float(expected.abs().max()))


def _merge(figures: Trained, made: Any, adapter: Path, output: Path, largest: float) -> None:
    """Merge with the whole proof, answers included; `largest`: of the logits."""
    from toolbox import merging
    from toolbox.plan import MergePlan

    plan = MergePlan(
        entry="toolbox.merging:run", model=made.model, device=made.device, adapter=adapter, output=output,
        dtype="float32", datasets=made.datasets,
    )  # fmt: skip
    try:
        figures.merge_diff = merging.run(plan)["max_abs_diff"] / largest
    except Exception as error:  # training works all the same
        traceback.print_exc()
        figures.unmerged = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"


def _plan(home: Path) -> Any:
    from plans import CPU

    from toolbox import datasets, models
    from toolbox.config import Home
    from toolbox.planning import plan_finetune
    from toolbox.wishes import Wishes

    facts = models.read(home / "copy", id="copy", source="local")
    settings = [
        f"max_steps={STEPS}", "save_steps=100", "eval_steps=100", "per_device_train_batch_size=2",
        "gradient_accumulation_steps=1", "max_length=64",
    ]  # fmt: skip
    wishes: Any = Wishes(method="lora", quantization="none", stage="sft", recipe="cpu-tiny", settings=settings)
    spec = datasets.resolve(str(_rows(home / "rows.jsonl")), Home(home))
    return plan_finetune(facts, [spec], CPU, wishes, Home(home), must_fit=False)


def _rows(path: Path) -> Path:
    from plans import write_jsonl

    return write_jsonl(
        path, [{"prompt": f"What is {place}?", "completion": f"{place} is a lovely city."} for place in PLACES]
    )


@contextmanager
def _layouts() -> Iterator[list[str]]:
    """The names of the layouts that training chooses meanwhile."""
    from toolbox import training

    found: list[str] = []
    original = training.choose

    def choose(*arguments: Any, **options: Any) -> Any:
        forward = original(*arguments, **options)
        found.append(forward.layout.__name__)
        return forward

    training.choose = choose
    try:
        yield found
    finally:
        training.choose = original


def _logits(model: Any) -> Any:
    """What `model` says of two rows, by attention as everybody has it."""
    import torch

    from toolbox.training import attention

    model.eval()
    if model.config._attn_implementation == attention.TREES:
        attention.attend_by(model.get_base_model(), "sdpa")
    with torch.no_grad():
        ids = tuners.tokens()
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.float()


def _difference(some: Any, others: Any) -> float:
    return float((some - others).abs().max() / others.abs().max())


def read() -> Figures:
    return msgspec.json.decode(FIGURES.read_bytes(), type=Figures)


def keep(measured: Trained) -> None:
    """Put `measured` in the place of what was measured of that type before."""
    known = {old.model_type: old for old in (read().types if FIGURES.exists() else [])}
    known[measured.model_type] = measured
    types = [known[name] for name in every() if name in known]
    lines = b",\n".join(msgspec.json.encode(each) for each in types)
    FIGURES.write_bytes(b'{"versions": ' + msgspec.json.encode(versions()) + b', "types": [\n' + lines + b"\n]}\n")


def versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("transformers", "peft", "torch")}


def same(measured: Trained, told: Trained | None) -> bool:
    """Whether both say the same, rounding aside."""
    if told is None or max(measured.reload_diff or 0, measured.merge_diff or 0) > SAME:
        return False
    names = ("loaded_as", "layout", "adapted", "moved", "works", "refused", "unmerged")
    return all(getattr(measured, name) == getattr(told, name) for name in names)


def main() -> int:
    """0 where all was measured and, with --check, is as the file says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    told = {one.model_type: one for one in read().types} if FIGURES.exists() else {}
    differing = []
    for model_type in options.only or every():
        begun = time.process_time()
        with tempfile.TemporaryDirectory() as home, redirect_stdout(StringIO()):
            measured = measure(model_type, Path(home))
        print(f"{time.process_time() - begun:.1f} s", msgspec.json.encode(measured).decode(), flush=True)
        if not options.check:
            keep(measured)
        elif not same(measured, told.get(model_type)):
            differing.append(model_type)
    if differing:
        print("not as docs/architectures.json says:", *differing)
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())
