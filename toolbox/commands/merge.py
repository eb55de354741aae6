"""`merge`: an adapter merged into its base model, proved equal to the two before it is delivered."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from toolbox.commands import Command, Session, devices, differing
from toolbox.i18n import N_, _
from toolbox.options import option

if TYPE_CHECKING:
    from toolbox.datasets import DatasetSpec
    from toolbox.models import ModelFacts
    from toolbox.plan import FinetunePlan, MergePlan, Mixture
    from toolbox.targets import Target

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes a parameter takes in the merged model, by its dtype."""


class MergeOptions(msgspec.Struct, kw_only=True):
    """What `merge` takes: a finetune run, or a model and an adapter, or several."""

    run: Annotated[str, option(N_("The finetune run whose adapter is merged"), ask=True, choices="adapted")] = ""
    model: Annotated[
        str, option(N_("Base model: demo, a folder, or OWNER/NAME; default: the adapter's own"), choices="models")
    ] = ""
    adapter: Annotated[
        list[str],
        option(
            N_("Adapter folder, instead of --run; of several a mixture is merged"),
            metavar="DIR", ask=True, choices="adapters", unless="run",
        ),
    ] = msgspec.field(default_factory=list)  # fmt: skip
    weights: Annotated[
        list[float], option(N_("How much of each adapter is in the mixture; default: equal shares"), metavar="SHARE")
    ] = msgspec.field(default_factory=list)
    combination: Annotated[
        Literal[
            "linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties", "dare_ties_svd",
            "magnitude_prune", "magnitude_prune_svd",
        ],
        option(N_("How adapters are mixed, by peft's names")),
    ] = "linear"  # fmt: skip
    density: Annotated[
        float, option(N_("Share of each adapter's numbers that ties, dare and magnitude_prune keep"), ge=0, le=1)
    ] = 0.0
    output: Annotated[
        str,
        option(N_("New folder for the merged model; empty: HOME/models/merged/RUN"), ask=True, metavar="DIR"),
    ] = ""
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        option(N_("Precision of the merged weights; auto: that of the training")),
    ] = "auto"
    onto: Annotated[
        Literal["dequantized", "original"],
        option(N_("What an adapter trained on 4 bits is merged onto: those, dequantised, or the 16 bits before them")),
    ] = "dequantized"
    seed: Annotated[int, option(N_("Decides what DARE draws"), ge=0)] = 42


def run(options: MergeOptions, session: Session) -> dict[str, Any]:
    """Merge, prove, deliver. The `--json` object: `output max_abs_diff passed` and the rest of the proof."""
    from toolbox import methods, runs

    plan = make_plan(options, session)
    _show_plan(plan, session)
    if session.dry_run:
        return {"plan": msgspec.to_builtins(plan, enc_hook=str)}
    job = runs.create(session.home.runs, f"merge-{Path(plan.model.id).name}", plan)
    job.start()
    session.follow(job)
    result = {"run": job.id, **job.result()}
    show_proof(result["proof"], session)
    show_bases(result.get("bases") or [], session)
    session.say(_("The merged model lies in {output}.").format(output=plan.output))
    if not methods.scores(plan.adapter):
        lines = [job.command(verb, "--run") for verb in ("chat", "evaluate", "export", "serve")]
        session.say(_("What next:") + "".join(f"\n  {line}" for line in lines))
    return result


def make_plan(options: MergeOptions, session: Session) -> "MergePlan":
    """Everything that is decided before the merge. Raises InputError for what can't be merged, or has no room."""
    from toolbox import files, pairing, targets
    from toolbox.errors import InputError
    from toolbox.plan import MergePlan

    first = options.adapter[0] if options.adapter else ""
    target = targets.resolve(options.model, first, options.run, session.home, with_adapter=True)
    if target.adapter is None:
        raise InputError(
            _("{name} has no adapter to merge.").format(name=target.name),
            _("Name a run of finetune with --method lora or qlora, or an adapter with --adapter."),
        )
    adapters = _adapters(options, target, session)
    differing.show(target.model.path, adapters, session)
    for adapter in adapters:
        if other := pairing.names_another(adapter, target.model):
            careful = _(
                "Careful: {adapter} says that its base is {other}, not {model}. That its shapes fit proves nothing."
            )
            session.say(careful.format(adapter=adapter, other=other, model=target.model.id))
    _refuse_quantised(target.model)
    origin = _origin(target.adapter)
    plan = MergePlan(
        entry="toolbox.merging:run",
        model=target.model,
        device=devices.best(session),
        seed=options.seed,
        adapter=target.adapter,
        mixture=_mixture(options, adapters),
        output=files.new_path(
            options.output, session.home.models / "merged" / (target.run or "-".join(map(_made_name, adapters)))
        ),
        dtype=_dtype(options.dtype, target.model, origin),
        quantization=origin.quantization if origin else "none",
        BitsAndBytesConfig=origin.BitsAndBytesConfig if origin else {},
        onto=options.onto,
        run=target.run,
        datasets=_rows(origin, session),
    )
    _look_for_room(plan)
    return plan


def _adapters(options: MergeOptions, target: "Target", session: Session) -> list[Path]:
    """The target's adapter, and the others that were named, each checked to fit the base."""
    from toolbox import methods, pairing, targets

    base = str(target.model.path)
    others = [targets.resolve(base, other, "", session.home, with_adapter=True) for other in options.adapter[1:]]
    found = [each.adapter for each in (target, *others) if each.adapter]
    for adapter in found:
        methods.refuse_unmergeable(adapter)
        pairing.refuse_foreign(adapter, target.model)
    return found


def _mixture(options: MergeOptions, adapters: list[Path]) -> "Mixture | None":
    """How several adapters become one. Raises InputError where shares don't match, or bits, or density is missing."""
    from toolbox.errors import InputError
    from toolbox.plan import Mixture

    shares = options.weights or [1 / len(adapters)] * len(adapters)
    if len(shares) != len(adapters):
        raise InputError(
            _("There are {adapters} adapters and {shares} weights.").format(adapters=len(adapters), shares=len(shares)),
            _("Give each adapter its own with --weights, in the same order."),
        )
    if len(adapters) == 1 and shares == [1]:
        return None
    trained_on = {origin.quantization for adapter in adapters if (origin := _origin(adapter))}
    if len(trained_on) > 1:
        raise InputError(
            _("These adapters were trained on different bits ({kinds}).").format(kinds=", ".join(sorted(trained_on))),
            _("Merge those of one kind first, or train them alike."),
        )
    prunes = options.combination.removesuffix("_svd") not in ("linear", "cat", "svd")
    if prunes and not options.density:
        raise InputError(
            _("{combination} keeps a part of each adapter, and nobody said which.").format(
                combination=options.combination
            ),
            _("Name a share with --density: TIES' authors keep 0.2, DARE's down to 0.1."),
        )
    density = options.density if prunes else None
    return Mixture(adapters=adapters, weights=shares, combination=options.combination, density=density)


def _refuse_quantised(model: "ModelFacts") -> None:
    """An adapter added to rounded weights is rounded away with them."""
    from toolbox.errors import InputError

    if model.quantization:
        raise InputError(
            _("{model} is stored in {quantization}, and nothing can be merged into that.").format(
                model=model.id, quantization=model.quantization
            ),
            _("Name the 16-bit model it was made from with --model."),
        )


def _origin(adapter: Path) -> "FinetunePlan | None":
    """The plan that the adapter was trained by, where it lies in its run."""
    from toolbox import plan

    path = adapter.parent / "plan.yaml"
    made = plan.load(path) if path.is_file() else None
    return made if isinstance(made, plan.FinetunePlan) else None


def _made_name(adapter: Path) -> str:
    """A name for what is merged from an adapter: its folder's, or the one above where that only says adapter."""
    return adapter.parent.name if adapter.name == "adapter" else adapter.name


def _dtype(
    chosen: str, model: "ModelFacts", origin: "FinetunePlan | None"
) -> Literal["float32", "bfloat16", "float16"]:
    wanted = origin.dtype if origin and chosen == "auto" else model.dtype if chosen == "auto" else chosen
    return wanted if wanted in BYTES else "float32"  # type: ignore[return-value]


def _rows(origin: "FinetunePlan | None", session: Session) -> "list[DatasetSpec]":
    """The data that the adapter learnt, as far as they still lie where they lay; else the embedded ones."""
    from toolbox import datasets, files

    known = origin.datasets if origin else []
    there = [spec for spec in known if spec.path.is_file() and files.sha256(spec.path) == spec.sha256]
    return there or [datasets.resolve("demo-persona", session.home)]


def _look_for_room(plan: "MergePlan") -> None:
    """Raises DoesNotFitError where the merged weights would not go onto the disk."""
    from toolbox import files, units
    from toolbox.errors import DoesNotFitError

    needed, free = plan.model.parameters * BYTES[plan.dtype], files.free_bytes(plan.output)
    if needed > free:
        raise DoesNotFitError(
            _("The merged model takes {needed}, and {path} has {free} left.").format(
                needed=units.size(needed), path=plan.output.parent, free=units.size(free)
            ),
            _("Free some space, or name a folder on another disk with --output."),
        )


def _show_plan(plan: "MergePlan", session: Session) -> None:
    from toolbox import units

    base = f"{plan.model.id} ({plan.quantization} → {plan.dtype})" if plan.dequantizes else plan.model.id
    mixed = plan.mixture
    shares = zip(mixed.weights, mixed.adapters, strict=True) if mixed else ()
    adapters = [f"{share:.3g} × {path}" for share, path in shares]
    rows = [
        (_("Base model"), base),
        *((_("Adapter"), adapter) for adapter in adapters or [str(plan.adapter)]),
        *([(_("Mixed by"), _mixed_by(mixed))] if mixed else []),
        (_("Output"), str(plan.output)),
        (_("Precision"), plan.dtype),
        (_("Size"), units.size(plan.model.parameters * BYTES[plan.dtype])),
        (_("Proved with"), ", ".join(spec.name for spec in plan.datasets)),
    ]
    session.table(_("Plan"), (_("What"), _("Which")), rows)


def _mixed_by(mixture: "Mixture") -> str:
    return mixture.combination + (f", density {mixture.density:g}" if mixture.density else "")


def show_proof(proof: list[dict[str, Any]], session: Session) -> None:
    """A line a check."""
    rows = [("✓" if check["passed"] else "✗", check["name"], check["detail"]) for check in proof]
    session.table(_("Proof"), ("", _("Check"), _("Detail")), rows)


def show_bases(bases: list[dict[str, Any]], session: Session) -> None:
    """What an adapter trained on 4 bits would be merged onto, and how far either is from the model as trained."""
    from toolbox.report import merged

    if bases:
        session.table(_("Onto which base"), merged.onto_header(), merged.onto_rows(bases))


COMMANDS = (Command("merge", N_("Merge an adapter into its base model, with proof"), MergeOptions, run),)
