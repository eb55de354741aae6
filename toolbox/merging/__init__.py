"""Merging an adapter into its base model, with proof (`merge`)."""

import gc
import shutil
from pathlib import Path
from typing import Any

from toolbox import files, methods, own_code, templates
from toolbox.errors import InputError, Interrupted, ToolboxError
from toolbox.i18n import _
from toolbox.merging import proof, weights
from toolbox.plan import MergePlan
from toolbox.runs import Reporter, Run, Silent

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
    if not (plan.adapter / "adapter_model.safetensors").is_file():
        raise InputError(
            _("{path} holds no adapter in safetensors.").format(path=plan.adapter),
            _("Name the folder of a PEFT adapter."),
        )
    methods.refuse_unmergeable(plan.adapter)
    reporter.phase(_("Asking base model and adapter"))
    reference = proof.reference(plan)
    _stop_if_asked(reporter)
    try:
        with files.whole_folder(plan.output) as folder:
            reporter.phase(_("Merging"))
            weights.merge(plan, folder, lambda step, steps: _step(reporter, step, steps))
            _add_files(plan, folder)
            gc.collect()  # hooks tie models into cycles: the 4-bit base must be gone before the merged model is loaded
            reporter.phase(_("Proving the merge"))
            proved = proof.prove(plan, folder, reference)
            _stop_if_asked(reporter)
            hashes = _hashes(plan, folder)
            if not proved.passed:
                raise _failed(proved)
    except FileExistsError as error:
        raise exists(plan.output) from error
    return {"output": str(plan.output), "base": weights.base_name(plan), "hashes": hashes, **proved.as_dict()}


def exists(output: Path) -> InputError:
    """What to say where something stands at the destination."""
    return InputError(
        _("{path} is there already, and nothing is overwritten.").format(path=output),
        _("Name another folder with --output, or delete that one."),
    )


def _step(reporter: Reporter, step: int, steps: int) -> None:
    _stop_if_asked(reporter)
    reporter.progress(step, steps)


def _stop_if_asked(reporter: Reporter) -> None:
    if reporter.stopping:
        raise Interrupted(_("Interrupted; nothing was written."), _("Start it again when you like: merge."))


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


def _hashes(plan: MergePlan, folder: Path) -> dict[str, dict[str, str]]:
    """SHA-256 of every weight file that went in and came out."""
    sources = {"base": plan.model.path, "adapter": plan.adapter, "output": folder}
    return {
        role: {path.name: files.sha256(path) for path in sorted(source.glob("*.safetensors"))}
        for role, source in sources.items()
    }
