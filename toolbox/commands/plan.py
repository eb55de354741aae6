"""`plan`: what a fine-tuning would take on this machine or on another, before anything is downloaded or started."""

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from toolbox.commands import Command, Session, devices, distributed, plugged, searched
from toolbox.errors import DONE, REFUSED
from toolbox.i18n import N_, _
from toolbox.options import option
from toolbox.stages import StageName

if TYPE_CHECKING:
    from toolbox.datasets import DatasetSpec
    from toolbox.plan import FinetunePlan
    from toolbox.planning import Alternative
    from toolbox.wishes import Wishes


class TuningOptions(msgspec.Struct, kw_only=True):
    """What `plan` and `finetune` both take."""

    model: Annotated[
        str, option(N_("Base model: demo, a folder, or OWNER/NAME of a hub"), ask=True, choices="catalogue")
    ] = "demo"
    dataset: Annotated[
        list[str],
        option(
            N_("Data sets: demo-persona, JSON, CSV or Parquet files, or downloaded ones"), ask=True, choices="datasets"
        ),
    ] = msgspec.field(default_factory=list)
    eval_dataset: Annotated[
        list[str], option(N_("Data sets for the evaluation loss only, in place of held-out rows"), choices="datasets")
    ] = msgspec.field(default_factory=list)
    val_size: Annotated[
        float | None, option(N_("Rows to hold out for the evaluation loss, or below 1 their share, as 0.05"), ge=0)
    ] = None
    columns: Annotated[
        list[str], option(N_("Column of a key where it has another name, as response=answer"), metavar="KEY=COLUMN")
    ] = msgspec.field(default_factory=list)
    skip_broken: Annotated[bool, option(N_("Leave out rows that can't be used, counted and listed"))] = False
    stage: Annotated[
        Literal["auto", StageName],
        option(N_("Stage of training; auto: what the data are made for"), ask=True, choices="stages"),
    ] = "auto"
    reward: Annotated[
        list[str],
        option(
            N_("What judges answers at the stages grpo and ppo: exact_match, number_match, format:REGEX …"),
            ask=True,
            when="stage=ppo grpo",
            choices="rewards",
        ),
    ] = msgspec.field(default_factory=list)
    reward_model: Annotated[
        str,
        option(
            N_("A reward model that judges them: a run of the stage rm, or a folder"),
            ask=True,
            when="stage=ppo grpo",
            metavar="RUN",
            choices="judges",
        ),
    ] = ""
    method: Annotated[
        str, option(N_("Method of tuning, as lora or dora; auto: by hardware and model"), ask=True, choices="methods")
    ] = "auto"
    quantization: Annotated[Literal["auto", "none", "nf4"], option(N_("Bits of the frozen base: nf4 is 4 of them"))] = (
        "auto"
    )
    prefer: Annotated[
        Literal["auto", "quality", "speed", "memory"],
        option(N_("Among what fits: auto by hardware, quality a base in 16 bits before 4, speed, or least memory")),
    ] = "auto"
    max_length: Annotated[int | None, option(N_("Tokens a row; longer rows are cut"), ge=16)] = None
    epochs: Annotated[float | None, option(N_("Times all rows are gone through"), ge=0.01, le=1000)] = None
    learning_rate: Annotated[float | None, option(N_("Learning rate, as 2e-4"), ge=1e-9, le=10)] = None
    per_device_train_batch_size: Annotated[
        int | None, option(N_("Rows at once; without it, as many as fit, up to the effective batch"), ge=1)
    ] = None
    chat_template: Annotated[
        str, option(N_("Chat template for a base model that has none: chatml, plain …, or a Jinja file"))
    ] = ""
    packing: Annotated[
        bool, option(N_("Fill batches with short rows up to --max-length tokens each, so that steps are alike"))
    ] = False
    allow_4bit: Annotated[bool, option(N_("Where memory runs out, the base may be put into 4 bits"))] = False
    allow_shorter: Annotated[bool, option(N_("Where it still runs out, rows may be cut shorter"))] = False
    recipe: Annotated[str, option(N_("A recipe by name, or its YAML file"), choices="recipes")] = ""
    set: Annotated[
        list[str], option(N_("Any other setting, as max_steps=50 or LoraConfig.r=16"), metavar="KEY=VALUE")
    ] = msgspec.field(default_factory=list)
    plugin: Annotated[list[str], option(plugged.HELP, metavar="FILE.py")] = msgspec.field(default_factory=list)
    callback: Annotated[
        list[str],
        option(N_("Callbacks of installed packages; those of --plugin files always take part"), metavar="NAME"),
    ] = msgspec.field(default_factory=list)
    tracker: Annotated[
        list[str], option(N_("Where metrics go: tensorboard, wandb, swanlab, none, or a plugin's"), metavar="NAME")
    ] = msgspec.field(default_factory=list)
    seed: Annotated[int, option(N_("Seed of all that is random"), ge=0, le=2**31 - 1)] = 42


class Options(TuningOptions, kw_only=True):
    """What `plan` takes."""

    assume_device: Annotated[
        str,
        option(
            N_('Plan for hardware that is not here, as "NVIDIA A10:24GiB"; empty: this machine'),
            ask=True,
            metavar="NAME:MEMORY",
        ),
    ] = ""
    exact: Annotated[
        bool, option(N_("Count the peak in a dry run of the training step too, without weights or a GPU: seconds"))
    ] = False
    gpus: Annotated[
        int, option(N_("Show too what each of so many GPUs would hold under DDP, ZeRO and FSDP"), ge=1, le=4096)
    ] = 1
    history: Annotated[bool, option(N_("Show what was predicted of the runs here and what they took"))] = False


def run(options: Options, session: Session) -> dict[str, Any]:
    """Show the plan, and what else would have fitted; exit status 2 where it does not fit, on several GPUs neither."""
    from toolbox import device, planning
    from toolbox.commands import exact, history, known

    if options.history:
        return history.show(session)
    loaded = plugged.load(options.plugin, session, options.recipe)
    target = device.assume(options.assume_device) if options.assume_device else devices.best(session)
    distributed.refuse_others(options.gpus, target)
    model = known.facts(options.model, session)
    datasets, held_out = resolve_datasets(options, session)
    asked = wishes(options, session)
    made = planning.plan_finetune(model, datasets, target, asked, session.home, must_fit=False, eval_datasets=held_out)
    made.plugins = loaded
    others = planning.alternatives(made, asked, session.home)
    show(made, session)
    show_alternatives(others, session)
    room = {} if options.assume_device else searched.room(made, session)
    stored = made.estimate.disk_bytes <= room.get("disk_free_bytes", math.inf)
    counted = exact.count(made, session) if options.exact else {}
    refused = searched.show(made, planning.problem(made, asked, session.home), session)
    on_gpus = distributed.show(made, options.gpus, session) if options.gpus > 1 else []
    fits = any(item["fits"] for item in on_gpus) if on_gpus else made.estimate.fits
    return {
        **summary(made),
        **refused,
        **room,
        **counted,
        "on_gpus": on_gpus,
        "alternatives": msgspec.to_builtins(others),
        "exit_status": DONE if fits and stored else REFUSED,
    }


def wishes(options: TuningOptions, session: Session) -> "Wishes":
    """The options as planning takes them. Raises NotFoundError or InputError where the reward model is none."""
    from toolbox import plugins, targets
    from toolbox.wishes import Wishes

    return Wishes(
        stage=options.stage,
        method=options.method,
        quantization=options.quantization,
        recipe=options.recipe,
        prefer=options.prefer,
        chat_template=options.chat_template,
        max_length=options.max_length,
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        per_device_train_batch_size=options.per_device_train_batch_size,
        reward_funcs=options.reward,
        reward_model=str(targets.reward_model(options.reward_model, session.home)) if options.reward_model else "",
        callbacks=list(dict.fromkeys([*plugins.of_files("callback"), *options.callback])),
        settings=[*(["packing=true"] if options.packing else []), *plugged.trackers(options.tracker), *options.set],
        seed=options.seed,
        val_size=options.val_size,
        allow_4bit=options.allow_4bit,
        allow_shorter=options.allow_shorter,
    )


def resolve_datasets(
    options: TuningOptions, session: Session, fetch: bool = False
) -> "tuple[list[DatasetSpec], list[DatasetSpec]]":
    """(data sets to train on, those for the evaluation loss); `fetch`: what a hub has is downloaded, if agreed to."""
    from toolbox.commands.data import choosing

    trained, held_out = (
        choosing.resolve(names, options.columns, options.skip_broken, session, fetch)
        for names in (options.dataset, options.eval_dataset)
    )
    return trained, held_out


def summary(plan: "FinetunePlan") -> dict[str, Any]:
    """The `--json` object of a plan."""
    training, estimate = plan.training, plan.estimate
    return {
        "model": plan.model.id, "device": plan.device.name, "recipe": plan.recipe, "why": plan.why,
        "stage": plan.stage, "options": msgspec.to_builtins(plan.options),
        "method": plan.method, "dtype": plan.dtype, "quantization": plan.quantization,
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps, "max_length": training.max_length,
        "learning_rate": training.learning_rate, "num_train_epochs": training.num_train_epochs,
        "max_steps": training.max_steps, "report_to": training.report_to, "callbacks": plan.callbacks,
        "plugins": msgspec.to_builtins(plan.plugins, enc_hook=str),
        "LoraConfig": plan.LoraConfig, **plan.blocks, "fits": estimate.fits,
        "peak_bytes": estimate.peak_bytes, "parts_bytes": estimate.parts_bytes, "device_bytes": estimate.device_bytes,
        "gradient_checkpointing": training.gradient_checkpointing, "margin": estimate.margin,
        "time_s": estimate.time_s, "time_low_s": estimate.time_low_s, "time_high_s": estimate.time_high_s,
        "tokens_per_s": estimate.tokens_per_s, "energy_wh": estimate.energy_wh,
        "disk_bytes": estimate.disk_bytes, "disk_parts_bytes": estimate.disk_parts_bytes,
        "calibrated_by_runs": estimate.factors.runs,
    }  # fmt: skip


def show(plan: "FinetunePlan", session: Session) -> None:
    """The plan as two tables, and why."""
    from toolbox import memory, units

    training, estimate = plan.training, plan.estimate
    length = _("{steps} steps").format(steps=training.max_steps)
    if training.max_steps < 0:
        length = _("{epochs:g} epochs").format(epochs=training.num_train_epochs)
    rows = [
        (_("Model"), f"{plan.model.id} ({plan.model.parameters / 1e6:,.1f}M)"),
        (_("Data sets"), ", ".join(f"{spec.name} ({spec.rows})" for spec in plan.datasets) or "—"),
        (_("Held out"), _held_out(plan)),
        (_("Device"), f"{plan.device.name} ({units.size(plan.device.memory_total_bytes)})"),
        (_("Recipe"), plan.recipe),
        (_("Stage"), _stage(plan)),
        (_("Method"), " ".join(filter(None, [plan.method, _rank(plan)]))),
        (_("Precision"), plan.dtype if plan.quantization == "none" else f"{plan.dtype}, {plan.quantization}"),
        (_("Batch"), f"{training.per_device_train_batch_size} × {training.gradient_accumulation_steps}"),
        *(
            [(_("Packing"), _("rows together, up to {count} tokens").format(count=training.max_length))]
            if training.packing
            else []
        ),
        *([(_("Checkpointing"), _("activations are computed again"))] if training.gradient_checkpointing else []),
        (_("Longest row"), _("{count} tokens").format(count=training.max_length)),
        (_("Length"), length),
        (_("Learning rate"), f"{training.learning_rate:g}"),
        *([(_("Plugins"), ", ".join(file.path.name for file in plan.plugins))] if plan.plugins else []),
        *([(_("Callbacks"), ", ".join(plan.callbacks))] if plan.callbacks else []),
        *searched.costs(estimate, session.settings.price_per_hour),
    ]
    session.table(_("Plan"), ("", ""), rows)
    parts = [(_(memory.PARTS[name]), units.size(size)) for name, size in estimate.parts_bytes.items() if size]
    fits = _("fits") if estimate.fits else _("does not fit")
    peak = f"{units.size(estimate.peak_bytes)} / {units.size(estimate.device_bytes)} · {fits}"
    session.table(_("Predicted peak of memory"), ("", ""), [*parts, (_("Sum / free"), peak)])
    session.say(plan.why + "\n")


def show_alternatives(others: "list[Alternative]", session: Session) -> None:
    """What else would have fitted, and what would not."""
    from toolbox import units

    if not others:
        return
    rows = [
        (
            other.recipe,
            other.method,
            str(other.per_device_train_batch_size),
            units.size(other.peak_bytes),
            _("fits") if other.fits else _("does not fit"),
        )
        for other in others
    ]
    session.table(_("What else there is"), (_("Recipe"), _("Method"), _("Batch"), _("Peak"), ""), rows)


def _held_out(plan: "FinetunePlan") -> str:
    """What the evaluation loss is of."""
    named = ", ".join(f"{spec.name} ({spec.rows})" for spec in plan.eval_datasets)
    return named or _("{count} rows, by the seed").format(count=plan.eval_rows)


def _stage(plan: "FinetunePlan") -> str:
    """The stage, and where it takes options, all of them: `dpo (beta=0.1, …)`."""
    options = msgspec.structs.asdict(plan.options) if plan.options else {}
    told = ", ".join(f"{name}={value}" for name, value in options.items() if value not in ("", []))
    return f"{plan.stage} ({told})" if told else plan.stage


def _rank(plan: "FinetunePlan") -> str:
    from toolbox import methods

    settings = methods.settings(plan)
    return f"r={settings['r']}" if "r" in settings else ""


COMMANDS = (Command("plan", N_("Plan: will it fit, and how long will it take"), Options, run),)
