"""Exporting a model to what other programs serve: written, loaded again, measured, then delivered (`export`)."""

import gc
import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from toolbox import exports, files, merging
from toolbox.errors import Interrupted
from toolbox.exporting import checking
from toolbox.exporting.checking import Questions, Said
from toolbox.i18n import _
from toolbox.plan import ExportPlan, MergePlan
from toolbox.runs import Reporter, Run, Silent

Step = Callable[[int, int], None]
"""Told (done, all) while weights are written, (0, 0) while nobody knows; stops the work by raising."""


class Work(Protocol):
    """What `exporting/FORMAT.py` brings; `ask` may be left out where plain transformers loads the folder."""

    def write(self, plan: ExportPlan, source: Path, folder: Path, step: Step) -> list[str]:
        """Write the model in `source` (a folder with safetensors, any adapter merged in) into `folder`.

        Returns what a person should know of it, in sentences.
        """

    def ask(self, plan: ExportPlan, source: Path, folder: Path, questions: Questions) -> dict[str, Said]:
        """What the export says, by the name of each program that loaded it again."""


def run(plan: ExportPlan, run: Run | None = None, reporter: Reporter | None = None) -> dict[str, Any]:
    """Export plan.model, with plan.adapter merged in, and deliver it at plan.output, which is whole or absent.

    Returns output, format, type, bytes_before, bytes, perplexity_before, readers[], notes, hashes, and merge where
    there was one. Raises InputError where plan.output exists, ToolboxError where what was loaded again is not the
    model that went in, Interrupted when told to stop.
    """
    reporter = reporter or Silent()
    try:
        with files.whole_folder(plan.output) as folder:
            source, merged = _source(plan, folder, reporter)
            questions = checking.questions(plan, source)
            reporter.phase(_("Writing {format} {type}").format(format=plan.format, type=plan.type))
            work = importlib.import_module(f"toolbox.exporting.{_module(plan)}")
            notes = work.write(plan, source, folder, _steps(reporter))
            _add_licence(source, folder)
            reporter.phase(_("Loading the export again, and measuring"))
            checked = checking.check(plan, source, folder, questions, getattr(work, "ask", checking.ask))
            _stop_if_asked(reporter)
            for scratch in (path for path in folder.iterdir() if path.name.startswith(".")):
                shutil.rmtree(scratch)
            made = {
                "bytes": sum(path.stat().st_size for path in _weights(folder)),
                "hashes": {"output": files.hashes(_weights(folder))},
            }
    except FileExistsError as error:
        raise files.taken(plan.output) from error
    said = {"output": str(plan.output), "format": plan.format, "type": plan.type}
    return {**said, **checked, **made, **({"merge": merged} if merged else {}), "notes": notes}


def _source(plan: ExportPlan, folder: Path, reporter: Reporter) -> tuple[Path, dict[str, Any]]:
    """The folder of the weights to export, and what the merge says of itself where there had to be one.

    Merged weights lie inside the scratch folder: what becomes of that becomes of them.
    """
    if plan.adapter is None or plan.adapter_only:
        return plan.model.path, {}
    output = folder / ".merged"
    merge = MergePlan(
        entry="toolbox.merging:run", model=plan.model, device=plan.device, seed=plan.seed, adapter=plan.adapter,
        output=output, dtype=plan.dtype, quantization=plan.quantization, run=plan.run,
        BitsAndBytesConfig=plan.BitsAndBytesConfig, datasets=plan.datasets,
    )  # fmt: skip
    proved = merging.run(merge, None, reporter)
    gc.collect()
    return output, {name: value for name, value in proved.items() if name not in ("output", "hashes")}


def _module(plan: ExportPlan) -> str:
    format = exports.FORMATS[plan.format]
    return format.adapter if plan.adapter_only else format.work or format.name


def _steps(reporter: Reporter) -> Step:
    """Tells a step once, however often it is told, so that work can be asked to stop while it waits."""
    told = (0, 0)

    def step(done: int, total: int) -> None:
        nonlocal told
        _stop_if_asked(reporter)
        if (done, total) != told:
            reporter.progress(done, total)
        told = done, total

    return step


def _stop_if_asked(reporter: Reporter) -> None:
    if reporter.stopping:
        raise Interrupted(_("Interrupted; nothing was written."))


def _add_licence(source: Path, folder: Path) -> None:
    for name in ("LICENSE", "LICENSE.txt", "NOTICE"):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _weights(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".gguf"))
