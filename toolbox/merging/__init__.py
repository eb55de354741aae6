"""Merging an adapter into its base model, with proof (`merge`)."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from toolbox import files, methods, own_code, templates
from toolbox.errors import InputError, Interrupted, ToolboxError
from toolbox.i18n import _
from toolbox.merging import weights
from toolbox.plan import MergePlan
from toolbox.runs import Reporter, Run, Silent

if TYPE_CHECKING:
    from toolbox.merging import proof

ADAPTER = "adapter_model.safetensors"
OWN = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", templates.FILE, templates.GENERATION,
)  # fmt: skip
"""What an adapter may bring instead of the base's."""
PROCESSOR = (
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "chat_template.json",
)  # fmt: skip
"""What makes images and sound a model's input: engines don't start one that sees without them."""
COPIED = (*OWN, *PROCESSOR, "LICENSE", "LICENSE.txt", "NOTICE")


def run(plan: MergePlan, run: Run | None = None, reporter: Reporter | None = None) -> dict[str, Any]:
    """Merge plan.adapter into plan.model, prove the result, and deliver it at plan.output, which is whole or absent.

    Returns output, max_abs_diff, passed, tolerance, adapter_effect, rows, greedy_equal, base, proof and hashes.
    Raises InputError where plan.output exists, ToolboxError where the proof fails, Interrupted when told to stop.
    """
    reporter = reporter or Silent()
    if not (plan.adapter / ADAPTER).is_file():
        raise InputError(
            _("{path} holds no adapter in safetensors.").format(path=plan.adapter),
            _("Name the folder of a PEFT adapter."),
        )
    methods.refuse_unmergeable(plan.adapter)
    try:
        with files.whole_folder(plan.output) as folder, _mixed(plan, run, reporter) as plan:
            reporter.phase(_("Merging"))
            hashes = weights.merge(plan, folder, lambda step, steps: _step(reporter, step, steps))
            _add_files(plan, folder)
            proved = _prove(plan, folder, reporter)
    except FileExistsError as error:
        raise files.taken(plan.output) from error
    adapters = plan.mixture.adapters if plan.mixture else [plan.adapter]
    sums = {
        "base": hashes.base,
        "adapter": {
            (f"{folder.name}/{ADAPTER}" if plan.mixture else ADAPTER): files.sha256(folder / ADAPTER)
            for folder in adapters
        },
        "output": hashes.output,
    }
    return {"output": str(plan.output), "base": weights.base_name(plan), "hashes": sums, **proved.as_dict()}


@contextmanager
def _mixed(plan: MergePlan, run: Run | None, reporter: Reporter) -> Iterator[MergePlan]:
    """The plan with one adapter in the place of several, for as long as this lasts."""
    if plan.mixture is None:
        yield plan
        return
    from toolbox.merging import mixing

    reporter.phase(_("Mixing adapters"))
    with tempfile.TemporaryDirectory(prefix=".mixture.", suffix=".part", dir=run.path if run else None) as folder:
        mixing.mix(plan.mixture, plan.seed, Path(folder))
        yield msgspec.structs.replace(plan, adapter=Path(folder))


def _prove(plan: MergePlan, folder: Path, reporter: Reporter) -> "proof.Proof":
    """Raises ToolboxError where it fails. Only from here on transformers and a whole model are in memory."""
    from toolbox.merging import proof

    _stop_if_asked(reporter)
    reporter.phase(_("Proving the merge"))
    proved = proof.prove(plan, folder)
    _stop_if_asked(reporter)
    if not proved.passed:
        raise _failed(proved)
    return proved


def _step(reporter: Reporter, step: int, steps: int) -> None:
    _stop_if_asked(reporter)
    reporter.progress(step, steps)


def _stop_if_asked(reporter: Reporter) -> None:
    if reporter.stopping:
        raise Interrupted(_("Interrupted; nothing was written."))


def _failed(proved: "proof.Proof") -> ToolboxError:
    wrong = "; ".join(f"{check.name}: {check.detail}" for check in proved.checks if not check.passed)
    return ToolboxError(
        _("The merged model is not the base model with its adapter, so it was not kept ({wrong}).").format(wrong=wrong),
        _("Check that base model and adapter belong together, or merge with --dtype float32."),
    )


def _add_files(plan: MergePlan, folder: Path) -> None:
    """Tokenizer, chat template and generation settings (the adapter's own, where it brings them), licence."""
    for name in COPIED:
        own = plan.adapter / name
        source = own if name in OWN and own.is_file() else plan.model.path / name
        if source.is_file():
            shutil.copyfile(source, folder / name)
    own_code.copy(plan.model.path, folder)
