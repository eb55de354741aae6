"""`models search|list|show|refresh|trust`: which models there are, which are here, which fit this machine by what."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from toolbox.commands import Command, Session
from toolbox.commands.trusting import TrustOptions, trust
from toolbox.errors import InputError
from toolbox.i18n import N_, _
from toolbox.options import option

if TYPE_CHECKING:
    from toolbox.device import Device
    from toolbox.fitting import Fit
    from toolbox.registry import Model

SHOWN = 40
"""Rows of a search that are shown where no other number is asked for: about a screen."""
DEVICE_HELP = N_('For hardware that is not here, as "NVIDIA A10:24GiB"; empty: this machine')


class SearchOptions(msgspec.Struct, kw_only=True):
    """What `models search` takes."""

    words: Annotated[
        list[str],
        option(N_("Parts of a name, a size as 7b, a family, a licence; none: all"), ask=True, positional=True,
               metavar="WORD"),
    ] = msgspec.field(default_factory=list)  # fmt: skip
    kind: Annotated[
        Literal["", "chat", "base", "code", "reasoning", "other", "vision", "ocr", "video", "audio", "omni"],
        option(N_("What the model is for"), ask=True, choices="kinds"),
    ] = ""
    size: Annotated[str, option(N_("Billions of parameters, as 7 or 1-8"), ask=True, metavar="FROM-TO")] = ""
    family: Annotated[str, option(N_("Family or architecture, as qwen3"), metavar="NAME")] = ""
    modality: Annotated[Literal["", "text", "vision", "video", "audio", "omni"], option(N_("What it reads"))] = ""
    licence: Annotated[str, option(N_("Licence, as apache-2.0 or mit"), metavar="NAME")] = ""
    fits: Annotated[bool, option(N_("Only what can be fine-tuned on this machine, with the method"), ask=True)] = False
    assume_device: Annotated[str, option(DEVICE_HELP, metavar="NAME:MEMORY")] = ""
    limit: Annotated[int, option(N_("Rows to show at most; --json gives all"), ge=1)] = SHOWN


class ListOptions(msgspec.Struct, kw_only=True):
    """What `models list` takes: nothing."""


class ShowOptions(msgspec.Struct, kw_only=True):
    """What `models show` takes."""

    name: Annotated[
        str, option(N_("Model: OWNER/NAME, or one that is here"), ask=True, positional=True, choices="catalogue",
                    metavar="NAME")
    ]  # fmt: skip
    assume_device: Annotated[str, option(DEVICE_HELP, ask=True, metavar="NAME:MEMORY")] = ""


class RefreshOptions(msgspec.Struct, kw_only=True):
    """What `models refresh` takes."""

    source: Annotated[
        str, option(N_("A table of models: a CSV file, or its http(s) address"), ask=True, positional=True,
                    metavar="SOURCE")
    ]  # fmt: skip


def search(options: SearchOptions, session: Session) -> dict[str, Any]:
    """The models asked for, each with what fits the device."""
    from toolbox import fitting, registry

    smallest, largest = _range(options.size)
    wanted = registry.Wanted(
        words=[part for word in options.words for part in word.split()], kind=options.kind, family=options.family,
        modality=options.modality, licence=options.licence, smallest=smallest, largest=largest,
        tunable=options.fits,
    )  # fmt: skip
    device = _device(options.assume_device)
    found = list(fitting.fits(registry.search(wanted, session.home), device, session.home))
    if options.fits:
        found = [(model, fit) for model, fit in found if fit.methods]
    session.table(
        _("{count} models; for {device}").format(count=len(found), device=device.name),
        (_("Model"), _("Size"), _("For"), _("Licence"), _("Fine-tuning")),
        [_row(model, fit) for model, fit in found[: options.limit]],
    )
    if options.fits and not found:
        session.say(_("None of them fits; without --fits all are shown."))
    if len(found) > options.limit:
        session.say(
            _("{count} more: narrow it down, or --limit {all}").format(count=len(found) - options.limit, all=len(found))
        )
    return {"count": len(found), "device": device.name, "models": [_told(model, fit) for model, fit in found]}


def listed(options: ListOptions, session: Session) -> dict[str, Any]:
    """The models on this machine."""
    from toolbox import fitting, models, units
    from toolbox.errors import ToolboxError

    device, rows, told = _device(""), [], []
    for name in models.known(session.home):
        try:
            facts = models.resolve(name, session.home, weights=False)
        except ToolboxError as error:
            rows.append((name, "", "", error.message))
            continue
        fit = fitting.of(facts, device, session.home)
        rows.append((name, billions(facts.parameters / 1e9), units.size(facts.weights_bytes), said(fit)))
        told.append({"name": name, "path": str(facts.path), "parameters": facts.parameters,
                     "weights_bytes": facts.weights_bytes, "methods": list(fit.methods)})  # fmt: skip
    columns = (_("Model"), _("Size"), _("Weights"), _("Fine-tuning"))
    session.table(_("On this machine; for {device}").format(device=device.name), columns, rows)
    session.say(_("What else there is: models search"))
    return {"device": device.name, "models": told}


def show(options: ShowOptions, session: Session) -> dict[str, Any]:
    """Everything that is known of a model, and by which methods it fits."""
    from toolbox import fitting, models, registry, units
    from toolbox.commands import known
    from toolbox.registry import shapes

    device = _device(options.assume_device)
    facts = known.facts(options.name, session)
    model = registry.find(options.name, session.home)
    fit = next(fitting.fits([model], device, session.home))[1] if model else fitting.of(facts, device, session.home)
    rows = [
        (_("Architecture"), " · ".join(filter(None, [facts.model_type, facts.architecture]))),
        (_("Parameters"), f"{facts.parameters:,}"),
        (_("A token meets"), f"{facts.network.active_parameters:,}"),
        (_("Layers, width, vocabulary"), f"{facts.num_hidden_layers} · {facts.hidden_size} · {facts.vocab_size}"),
        (_("Weights"), units.size(facts.weights_bytes)),
        (_("Longest row"), _("{count} tokens").format(count=facts.max_position_embeddings)),
        (_("On this machine"), str(facts.path) if options.name in models.known(session.home) else _("no")),
    ]
    if model:
        rows += [
            (_("Its id on Hugging Face, as listed"), model.huggingface or "—"),
            (_("Its id on ModelScope, as listed"), model.modelscope or "—"),
            (_("For"), _(registry.KINDS[registry.kind(model)])),
            (_("Licence"), model.licence or _("not known here; see its page")),
            (_("Shape from"), shapes.source(model) or _("its size: estimated")),
        ]
    rows += [(_("Fine-tuning on {device}").format(device=device.name), said(fit))]
    session.table(options.name, ("", ""), rows)
    return {
        **(_told(model, fit) if model else {"name": options.name, "methods": list(fit.methods)}),
        "parameters": facts.parameters, "active_parameters": facts.network.active_parameters,
        "weights_bytes": facts.weights_bytes, "device": device.name, "peak_bytes": fit.peak_bytes,
        "shape_source": shapes.source(model) if model else "config.json", "guessed": facts.guessed,
    }  # fmt: skip


def refresh(options: RefreshOptions, session: Session) -> dict[str, Any]:
    """Lay another table over the shipped one; what stands in it is checked row by row, and its hash is said."""
    from toolbox import registry
    from toolbox.registry import refreshing

    content = refreshing.fetch(options.source)
    known = {name.lower() for model in registry.shipped() for name in model.names}
    if session.dry_run:
        told = refreshing.check(options.source, content, known, session.home)
    else:
        told = refreshing.keep(options.source, content, known, session.home)
    session.say(_("{models} models, {new} of them new; SHA-256 {hash}.").format(
        models=told.models, new=told.new, hash=told.sha256))  # fmt: skip
    for line, reason in told.refused[:5]:
        session.say(_("Line {line} was left out: {reason}").format(line=line, reason=reason))
    if told.refused[5:]:
        session.say(_("{count} more lines were left out.").format(count=len(told.refused) - 5))
    return {
        "source": told.source, "sha256": told.sha256, "models": told.models, "new": told.new,
        "refused": len(told.refused), "path": str(told.path),
    }  # fmt: skip


def said(fit: "Fit") -> str:
    """What fits, in a few words: the methods, or why none."""
    from toolbox import units

    match fit.refused:
        case "quantised":
            return _("quantised already: to serve, not to tune")
        case "native":
            return _("needs code of its own: see models trust")
    if fit.methods:
        return " · ".join(NAMES[name] for name in fit.methods)
    return _("too large: {size} lacking").format(size=units.size(fit.too_large_bytes))


NAMES = {"full": "full", "lora": "LoRA", "qlora": "QLoRA"}


def billions(size: float) -> str:
    """A number of parameters, in billions, as people say it: 7B, 0.5B, 135M."""
    if size >= 100:
        return f"{size:.0f}B"
    return f"{size:.3g}B" if size >= 0.2 else f"{size * 1000:.3g}M"


def _row(model: "Model", fit: "Fit") -> Sequence[str]:
    from toolbox import registry

    size = billions(model.params_b) + (f"-A{billions(model.active_b)}" if model.active_b else "")
    return model.name, size, _(registry.KINDS[registry.kind(model)]), model.licence, said(fit)


def _told(model: "Model", fit: "Fit") -> dict[str, Any]:
    from toolbox import registry

    return {
        "name": model.name, "huggingface": model.huggingface, "modelscope": model.modelscope, "family": model.family,
        "model_type": model.model_type, "kind": registry.kind(model), "modality": model.modality,
        "params_b": model.params_b, "active_b": model.active_b, "licence": model.licence, "native": model.native,
        "quantised": model.quantised, "methods": list(fit.methods), "too_large_bytes": fit.too_large_bytes,
    }  # fmt: skip


def _device(assumed: str) -> "Device":
    from toolbox import device

    return device.assume(assumed) if assumed else device.probe().best


def _range(text: str) -> tuple[float, float]:
    """`7` or `1-8` in billions; a single size takes in what rounds to it. Raises InputError."""
    low, dash, high = text.lower().replace("b", "").partition("-")
    try:
        if not text:
            return 0.0, float("inf")
        if not dash:
            return float(low) * 0.9, float(low) * 1.1
        return float(low or 0), float(high) if high else float("inf")
    except ValueError as error:
        raise InputError(
            _("{size!r} is no size.").format(size=text), _("Give billions of parameters, as 7 or 1-8.")
        ) from error


COMMANDS = (
    Command("models search", N_("Which models there are: by name, size, licence, and what fits here"),
            SearchOptions, search),
    Command("models list", N_("The models on this machine"), ListOptions, listed),
    Command("models show", N_("Everything that is known of a model"), ShowOptions, show),
    Command("models refresh", N_("Bring the list up to date, from a file or an address"), RefreshOptions, refresh),
    Command("models trust", N_("Let a model's own program code run, once you have seen which"), TrustOptions, trust),
)  # fmt: skip
