"""`export`: a model, or what a run made, in a format that other programs serve; loaded again and measured first."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from toolbox.commands import Command, Session, devices, differing
from toolbox.config import command_line
from toolbox.i18n import N_, _
from toolbox.options import option

if TYPE_CHECKING:
    from toolbox.datasets import DatasetSpec
    from toolbox.exports import Format
    from toolbox.plan import ExportPlan, FinetunePlan
    from toolbox.targets import Target

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes a parameter takes, by its dtype."""
FALLBACK = ("demo-persona", "demo-heldout")
"""The embedded rows that are measured with where no others are known."""


class ExportOptions(msgspec.Struct, kw_only=True):
    """What `export` takes: a run, a model, or an adapter (with the model it belongs to); and the format."""

    run: Annotated[
        str,
        option(N_("What a finetune or merge run made; its adapter is merged first"), ask=True, choices="exportable"),
    ] = ""
    model: Annotated[
        str, option(N_("Model: demo, a folder, or OWNER/NAME"), ask=True, choices="models", unless="run")
    ] = ""
    adapter: Annotated[
        str, option(N_("Adapter folder, merged into the model first"), metavar="DIR", choices="adapters")
    ] = ""
    format: Annotated[
        Literal["gguf", "bnb", "gptq", "awq", "fp8", "peft"],
        option(N_("Format; see docs for what serves it"), ask=True, choices="formats"),
    ] = "gguf"
    type: Annotated[
        str,
        option(
            N_("How weights are stored, as q8_0; empty: the format's usual one"),
            ask=True, metavar="TYPE", choices="types",
        ),
    ] = ""  # fmt: skip
    adapter_only: Annotated[bool, option(N_("Export the adapter alone, to be served on top of its base model"))] = False
    output: Annotated[str, option(N_("New folder; empty: HOME/models/exported/NAME-TYPE"), ask=True, metavar="DIR")] = (
        ""
    )
    dataset: Annotated[
        list[str],
        option(N_("Rows that before and after are measured with; default: those the run held out"), choices="datasets"),
    ] = msgspec.field(default_factory=list)
    calibration: Annotated[
        list[str],
        option(N_("gptq, awq: rows to choose numbers by; default: those of the training"), choices="datasets"),
    ] = msgspec.field(default_factory=list)
    calibration_rows: Annotated[
        int, option(N_("gptq, awq: how many of them, of 512 tokens at most"), ge=1, le=4096)
    ] = 128


def run(options: ExportOptions, session: Session) -> dict[str, Any]:
    """Export, load again, measure, deliver. The `--json` object: `output format type bytes perplexity …`."""
    from toolbox import runs

    plan = make_plan(options, session)
    _show_plan(plan, session)
    if session.dry_run:
        return {"plan": msgspec.to_builtins(plan, enc_hook=str)}
    made = runs.undated(plan.run) if plan.run else Path(plan.model.id).name
    job = runs.create(session.home.runs, f"export-{made}-{plan.format}", plan)
    job.start()
    session.follow(job)
    result = {"run": job.id, **job.result()}
    show_check(result, session)
    session.say(_("The export lies in {output}.").format(output=result["output"]))
    flag = "--adapter" if plan.adapter_only else "--model"
    line = command_line(session.home.path, "serve", flag, str(result["output"]))
    session.say(_("Next: {command}").format(command=line))
    return result


def make_plan(options: ExportOptions, session: Session) -> "ExportPlan":
    """Everything that is decided before the export. Raises InputError for what can't be exported so, or has no room."""
    from toolbox import exports, files, targets
    from toolbox.errors import InputError
    from toolbox.plan import ExportPlan

    format = exports.FORMATS[options.format]
    alone = options.adapter_only or format.adapter_only
    kind = exports.chosen_type(format, options.type, alone)
    target = targets.resolve(options.model, options.adapter, options.run, session.home)
    if alone and not target.adapter:
        raise InputError(
            _("{name} has no adapter to export alone.").format(name=target.name),
            _("Name a run of finetune with --method lora, or an adapter with --adapter."),
        )
    _refuse(format, target, alone, session)
    differing.show(target.model.path, [target.adapter], session)
    best = devices.best(session)
    exports.choose(format.name, kind, best.kind == "cuda", session.home)
    origin = _origin(target, session)
    specs, held_out = _rows(options, origin, target, session)
    calibration = _calibration(options, origin, session) if format.calibrated else []
    suffix = _suffix(format.name, kind, alone)
    plan = ExportPlan(
        entry="toolbox.exporting:run",
        model=target.model,
        device=best,
        format=format.name,
        type=kind,
        output=files.new_path(options.output, session.home.models / "exported" / f"{_name(target)}-{suffix}"),
        python=format.python(session.home, kind, best.kind == "cuda"),
        adapter=target.adapter,
        adapter_only=alone,
        run=target.run,
        dtype=_dtype(target, origin),
        quantization=origin.quantization if origin and target.adapter else "none",
        BitsAndBytesConfig=origin.BitsAndBytesConfig if origin and target.adapter else {},
        datasets=specs,
        held_out=held_out,
        calibration=calibration,
        settings=format.settings_for(target.model, kind, options.calibration_rows),
    )
    _look_for_room(plan, format)
    _look_for_memory(plan)
    return plan


def _refuse(format: "Format", target: "Target", adapter_only: bool, session: Session) -> None:
    from toolbox import exports, methods

    exports.refuse(format, target.model, session.home)
    if target.adapter and adapter_only:
        exports.refuse_adapter(target.adapter)
        methods.refuse_changed_base(target.adapter)
    elif target.adapter:
        methods.refuse_unmergeable(target.adapter)


def _origin(target: "Target", session: Session) -> "FinetunePlan | None":
    """The plan that it was tuned by, also where it was merged since."""
    from toolbox import runs
    from toolbox.plan import FinetunePlan, MergePlan, load

    path = runs.find(session.home.runs, target.run).plan_path if target.run else None
    path = path or (target.adapter.parent / "plan.yaml" if target.adapter else None)
    made = load(path) if path and path.is_file() else None
    if isinstance(made, MergePlan):
        path = made.adapter.parent / "plan.yaml"
        made = load(path) if path.is_file() else None
    return made if isinstance(made, FinetunePlan) else None


def _name(target: "Target") -> str:
    """What the export is called: the run's name without its date, else the model's."""
    from toolbox import runs

    return runs.undated(target.run) if target.run else Path(target.name).name


def _suffix(format: str, kind: str, alone: bool) -> str:
    """What tells an export from others of the same name; a type of GGUF says by itself what it is."""
    return f"adapter-{format}" if alone else kind if format == "gguf" else f"{format}-{kind}"


def _dtype(target: "Target", origin: "FinetunePlan | None") -> Literal["float32", "bfloat16", "float16"]:
    wanted = origin.dtype if origin and target.adapter else target.model.dtype
    return wanted if wanted in BYTES else "float32"  # type: ignore[return-value]


def _rows(
    options: ExportOptions, origin: "FinetunePlan | None", target: "Target", session: Session
) -> "tuple[list[DatasetSpec], dict[str, list[int]]]":
    """(data sets, which of their rows): those named, those held out from the training, else the embedded ones."""
    from toolbox import datasets, files

    if options.dataset:
        return [datasets.resolve(name, session.home) for name in options.dataset], {}
    known = (origin.eval_datasets or origin.datasets) if origin else []
    there = _unchanged(known)
    if not origin or not there:
        return [datasets.resolve(name, session.home) for name in FALLBACK], {}
    folder = target.adapter.parent if target.adapter else session.home.runs / target.run
    drawn = files.read_json(folder / "held_out.json") if not origin.eval_datasets else None
    held_out = {spec.name: drawn[spec.name] for spec in there if isinstance(drawn, dict) and drawn.get(spec.name)}
    return [spec for spec in there if spec.name in held_out] or there, held_out


def _calibration(options: ExportOptions, origin: "FinetunePlan | None", session: Session) -> "list[DatasetSpec]":
    """Data sets whose rows a format chooses its numbers by: those named, the training's, or the embedded ones."""
    from toolbox import datasets

    named = options.calibration or ([] if origin and _unchanged(origin.datasets) else FALLBACK)
    return [datasets.resolve(name, session.home) for name in named] or _unchanged(origin.datasets if origin else [])


def _unchanged(specs: "list[DatasetSpec]") -> "list[DatasetSpec]":
    """Those that still lie where they lay."""
    from toolbox import files

    return [spec for spec in specs if spec.path.is_file() and files.sha256(spec.path) == spec.sha256]


def _look_for_room(plan: "ExportPlan", format: "Format") -> None:
    """Raises DoesNotFitError where the export, and the weights it is made from or tried on, don't go onto the disk."""
    from toolbox import files, units
    from toolbox.errors import DoesNotFitError

    whole = plan.model.parameters * BYTES[plan.dtype]
    scratch = whole * (bool(plan.adapter) + bool(format.types[plan.type].interpreter))  # merged; not yet quantised
    size = format.size_bytes(plan.model, plan.type) if not plan.adapter_only else files.size_of(plan.adapter or Path())
    needed, free = scratch + size, files.free_bytes(plan.output)
    if needed > free:
        raise DoesNotFitError(
            _("The export takes {needed} while it is made, and {path} has {free} left.").format(
                needed=units.size(needed), path=plan.output.parent, free=units.size(free)
            ),
            _("Free some space, name a folder on another disk with --output, or take a type of fewer bits."),
        )


def _look_for_memory(plan: "ExportPlan") -> None:
    """Raises DoesNotFitError where writing the weights takes more RAM than is free."""
    from toolbox import exports, processor, units
    from toolbox.errors import DoesNotFitError

    needed = exports.FORMATS[plan.format].memory_bytes(plan.model, plan.dtype, plan.settings)
    free = processor.memory(Path("/"))[1]
    if needed > free:
        raise DoesNotFitError(
            _("An export to {format} takes {needed} of memory, and {free} are free.").format(
                format=plan.format, needed=units.size(needed), free=units.size(free)
            ),
            _("Free some, calibrate with fewer rows (--calibration-rows), or take gguf, which needs little."),
        )


def _show_plan(plan: "ExportPlan", session: Session) -> None:
    from toolbox import exports, units

    format = exports.FORMATS[plan.format]
    memory = format.memory_bytes(plan.model, plan.dtype, plan.settings)
    size = "" if plan.adapter_only else "≈ " + units.size(format.size_bytes(plan.model, plan.type))
    rows = [
        (_("Model"), plan.model.id),
        (_("Adapter"), str(plan.adapter or "")),
        (_("Format"), f"{plan.format} {plan.type}"),
        (_("Size"), size),
        (_("Memory"), "≈ " + units.size(memory) if memory else ""),
        (_("Output"), str(plan.output)),
        (_("Loaded again by"), ", ".join(format.loaded_by)),
        (_("Calibrated with"), ", ".join(spec.name for spec in plan.calibration)),
        (_("Measured with"), ", ".join(spec.name for spec in plan.datasets)),
    ]
    session.table(_("Plan"), (_("What"), _("Which")), [row for row in rows if row[1]])


def show_check(result: dict[str, Any], session: Session) -> None:
    """Before and after in a table."""
    from toolbox.report import merged

    header, rows = merged.exported(result)
    session.table(_("Before and after"), header, rows)
    if merge := result.get("merge"):
        session.say(_("The adapter was merged first, into {base}.").format(base=merge["base"]))
    for note in result.get("notes", []):
        session.say(note)


COMMANDS = (Command("export", N_("Export to GGUF and other formats, with proof"), ExportOptions, run),)
