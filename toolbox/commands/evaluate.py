"""`evaluate`: what a model knows, what it learnt, which way it leans; a tuned one beside its base, in one job."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from toolbox.commands import Command, Session, backed, devices, differing, plugged, suites
from toolbox.i18n import N_, _
from toolbox.options import option

if TYPE_CHECKING:
    from toolbox.device import Device
    from toolbox.plan import EvaluatePlan, FinetunePlan
    from toolbox.targets import Target


class EvaluateOptions(msgspec.Struct, kw_only=True):
    """What `evaluate` takes: a model (and an adapter), or a run; and what to measure."""

    run: Annotated[
        str, option(N_("What a finetune or merge run made, beside the base model"), ask=True, choices="tuned")
    ] = ""
    model: Annotated[
        str, option(N_("Model: demo, a folder, or OWNER/NAME"), ask=True, choices="models", unless="run")
    ] = ""
    adapter: Annotated[
        str, option(N_("Adapter folder, measured beside its base model"), metavar="DIR", choices="adapters")
    ] = ""
    suite: Annotated[
        list[str],
        option(
            N_("Suites by name, files or folders (--list-suites); empty: those shipped"),
            ask=True,
            choices="suites",
        ),
    ] = msgspec.field(default_factory=list)
    metric: Annotated[list[str], option(N_("Metrics of plugins for questions, beside exact match"), metavar="NAME")] = (
        msgspec.field(default_factory=list)
    )
    plugin: Annotated[list[str], option(plugged.HELP, metavar="FILE.py")] = msgspec.field(default_factory=list)
    limit: Annotated[int, option(N_("Items of each suite, taken evenly; 0: all"), ge=0)] = 0
    samples: Annotated[
        int, option(N_("Programs drawn for each task of a suite of code, for pass@k; 1: the greedy one"), ge=1, le=200)
    ] = 1
    compare: Annotated[bool, option(N_("Measure the base model too"))] = True
    endpoint: Annotated[
        str, option(N_("Address of an OpenAI-compatible server, to measure a model there"), metavar="URL")
    ] = ""
    endpoint_model: Annotated[str, option(N_("The model's name there; none: its only one"), metavar="NAME")] = ""
    endpoint_key: Annotated[
        str,
        option(
            N_("The server's API key. YCDY_EVALUATE_ENDPOINT_KEY keeps it off process lists"),
            metavar="KEY",
            secret=True,
        ),
    ] = ""
    judge: Annotated[
        str, option(N_("Address of an OpenAI-compatible server whose model judges open questions"), metavar="URL")
    ] = ""
    judge_model: Annotated[str, option(N_("The judge's name there; none: its only one"), metavar="NAME")] = ""
    judge_key: Annotated[
        str,
        option(
            N_("The judge's API key. YCDY_EVALUATE_JUDGE_KEY keeps it off process lists"), metavar="KEY", secret=True
        ),
    ] = ""
    list_suites: Annotated[bool, option(N_("List the suites that there are, and measure nothing"))] = False
    cached: Annotated[bool, option(N_("Take answers that this very model gave before"))] = True
    backend: Annotated[
        Literal["", "lm-eval", "evalscope"],
        option(N_("Let lm-evaluation-harness or EvalScope measure; --suite then takes their tasks too")),
    ] = ""
    backend_args: Annotated[
        list[str], option(N_("Settings of the backend's own, as num_fewshot=5"), metavar="KEY=VALUE")
    ] = msgspec.field(default_factory=list)
    repair: Annotated[
        Literal["no", "dpo", "sft"],
        option(
            N_("Then make data against the gender bias, train so, and measure again on what was held out"), ask=True
        ),
    ] = "no"
    general: Annotated[
        list[str],
        option(N_("Data sets whose rows the repair learns too, so that nothing else is forgotten"), choices="datasets"),
    ] = msgspec.field(default_factory=list)
    recipe: Annotated[str, option(N_("Recipe of the repair's training, by name or file"), choices="recipes")] = ""
    seed: Annotated[int, option(N_("Seed of the repair"), ge=0, le=2**31 - 1)] = 42


def run(options: EvaluateOptions, session: Session) -> dict[str, Any]:
    """Measure; the `--json` object: `results[]{suite model metric value low high n}` and the run's id."""
    if options.list_suites:
        return suites.listed(session)
    if options.repair != "no":
        from toolbox.commands import repairing

        return repairing.run(options, session)
    return measure(options, session)


def measure(options: EvaluateOptions, session: Session, tell: bool = True) -> dict[str, Any]:
    """Plan, start, follow; `tell`: show the results too."""
    from toolbox import runs

    plan = make_plan(options, session)
    _show_plan(plan, session)
    if session.dry_run:
        return {"plan": msgspec.to_builtins(plan, enc_hook=str)}
    job = runs.create(session.home.runs, run_name(plan), plan)
    job.start(_keys(options))
    session.follow(job)
    result = {"run": job.id, **job.result()}
    if tell:
        show_results(result["results"], session)
        backed.show_stated(result.get("stated", []), session)
        session.say(_("Every answer lies in {path}.").format(path=job.path / "evaluation"))
    return result


def _keys(options: EvaluateOptions) -> dict[str, str]:
    """What the job finds in its environment, and no plan or log holds."""
    keys = {"YCDY_EVALUATE_ENDPOINT_KEY": options.endpoint_key, "YCDY_EVALUATE_JUDGE_KEY": options.judge_key}
    return {name: key for name, key in keys.items() if key}


def _only_model(role: str, address: str, name: str, key: str) -> str:
    """The model that is meant at a server: the one that was named, or its only one. Raises InputError, EngineError."""
    from toolbox import access, client
    from toolbox.errors import InputError

    if not address:
        return name
    server = access.server(address)
    if name:
        return name
    names = client.models(server, key)
    if len(names) != 1:
        raise InputError(
            _("The server has {count} models.").format(count=len(names)),
            _("Name one with --{role}-model: {names}").format(role=role, names=", ".join(names[:9])),
        )
    return names[0]


def _suites(options: EvaluateOptions, target: "Target", session: Session) -> list[str]:
    """The names of the suites. Raises InputError for one that is not, or that this model or nobody can do."""
    from toolbox import embedded, models
    from toolbox.errors import InputError
    from toolbox.sandbox import running
    from toolbox.suites import KINDS, refuse_unmasked

    if options.backend:
        return []
    usual = ["demo-qa"] if options.endpoint else list(embedded.SUITES)
    found = suites.chosen(options.suite or usual, session)
    if any(suite.kind in KINDS and KINDS[suite.kind].confined for suite in found):
        running.check()
    if models.is_masked(target.model):
        refuse_unmasked(found)
    if opened := next((suite for suite in found if suite.kind == "open_questions" and not options.judge), None):
        raise InputError(
            _("{suite} holds open questions, and nobody judges the answers.").format(suite=opened.name),
            _("Name a server whose model does: --judge URL; or give rows the column answers."),
        )
    return [suite.name for suite in found]


def _target(options: EvaluateOptions, session: Session) -> "Target":
    """What is to be measured. Raises InputError for what can't be, or contradicts itself."""
    from toolbox import models, targets
    from toolbox.errors import InputError

    if options.endpoint:
        if options.model or options.run or options.adapter:
            raise InputError(
                _("--endpoint already says whom to ask."), _("Leave out --model, --adapter and --run, or --endpoint.")
            )
        name = _only_model("endpoint", options.endpoint, options.endpoint_model, options.endpoint_key)
        return targets.Target(model=models.of_server(name))
    target = targets.resolve(options.model, options.adapter, options.run, session.home)
    differing.show(target.model.path, [target.adapter], session)
    if target.model.quantization == "gguf":
        raise InputError(
            _("{model} is GGUF, which is served and not evaluated.").format(model=target.model.id),
            _("Serve it, and name its address with --endpoint; its export's report has the perplexity of both."),
        )
    return target


def make_plan(options: EvaluateOptions, session: Session) -> "EvaluatePlan":
    """Everything that is decided before measuring. Raises InputError for a model or a suite that can't be used."""
    from toolbox import plugins
    from toolbox.plan import EvaluatePlan

    loaded = plugged.load(options.plugin, session)
    for name in options.metric:
        plugins.require("metric", name)
    target = _target(options, session)
    origin = _origin(target, session)
    best = devices.best(session)
    plan = EvaluatePlan(
        entry="toolbox.evaluation:run",
        model=target.model,
        device=best,
        adapter=target.adapter,
        run=target.run,
        endpoint=options.endpoint,
        endpoint_model=target.model.id if options.endpoint else "",
        judge=options.judge,
        judge_model=_only_model("judge", options.judge, options.judge_model, options.judge_key),
        suites=_suites(options, target, session),
        metrics=options.metric,
        plugins=loaded,
        limit=options.limit,
        samples=options.samples,
        compare=options.compare,
        cached=options.cached,
        base=_base(target, session),
        dtype=origin.dtype if origin else _dtype(best),
        quantization=origin.quantization if origin and target.adapter else "none",
        BitsAndBytesConfig=origin.BitsAndBytesConfig if origin and target.adapter else {},
    )
    if not options.backend:
        return plan
    words, arguments = options.suite, options.backend_args
    return msgspec.structs.replace(plan, **backed.changes(options.backend, words, arguments, plan, session))


def run_name(plan: "EvaluatePlan") -> str:
    """`evaluate-sft-demo` for the run 20261121-1530-sft-demo: the new run has a date of its own."""
    from toolbox import runs

    made = runs.undated(plan.run) if plan.run else plan.model.id.rpartition("/")[2]
    return f"evaluate-{made}"


def _origin(target: "Target", session: Session) -> "FinetunePlan | None":
    """The plan that it was tuned by: an adapter is measured on weights as it was trained on them."""
    from toolbox import runs
    from toolbox.plan import FinetunePlan, load

    folder = target.adapter.parent if target.adapter else None
    path = runs.find(session.home.runs, target.run).plan_path if target.run else folder and folder / "plan.yaml"
    made = load(path) if path and path.is_file() else None
    return made if isinstance(made, FinetunePlan) else None


def _base(target: "Target", session: Session) -> Any:
    """What a merged or fully tuned model came from; an adapter brings its base with it."""
    from toolbox import runs
    from toolbox.plan import load

    if target.adapter or not target.run:
        return None
    return load(runs.find(session.home.runs, target.run).plan_path).model


def _dtype(device: "Device") -> Literal["float32", "bfloat16", "float16"]:
    if device.kind == "cpu":
        return "float32"
    return "bfloat16" if device.bf16 else "float16"


def _show_plan(plan: "EvaluatePlan", session: Session) -> None:
    compared = plan.base.id if plan.base else plan.model.id if plan.adapter else ""
    rows = [
        (_("Model"), plan.model.id),
        (_("Server"), plan.endpoint),
        (_("Judge"), " · ".join(filter(None, [plan.judge_model, plan.judge]))),
        (_("Adapter"), str(plan.adapter or "")),
        (_("Compared with"), compared if plan.compare else ""),
        (_("Suites"), ", ".join(plan.suites)),
        (_("Measured by"), plan.backend),
        (_("Items of each suite"), str(plan.limit) if plan.limit else _("all")),
        (_("Device"), f"{plan.device.name}, {plan.dtype}"),
    ]
    session.table(_("Plan"), (_("What"), _("Which")), [row for row in rows if row[1]])


def show_results(results: list[dict[str, Any]], session: Session) -> None:
    """A line a metric: base, tuned, and whether the difference can be more than chance; intervals below the figures."""
    from toolbox.suites import kinds

    lines: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in results:
        lines.setdefault((row["suite"], row["metric"]), {})[row["model"]] = row
    models = [model for model in ("base", "tuned") if any(model in line for line in lines.values())]
    compared = len(models) == 2
    titles = {"base": _("base"), "tuned": _("tuned")}
    session.table(
        _("Results, with intervals of 95 % and p of the paired tests (Holm)")
        if compared
        else _("Results, with intervals of 95 %"),
        (_("Suite"), _("Metric"), *(titles[model] for model in models), *([_("Difference")] if compared else [])),
        [
            (
                Path(suite).name,
                kinds.metric(next(iter(line.values()))).title,
                *(_figure(line.get(model)) for model in models),
                *([_verdict(line)] if compared else []),
            )
            for (suite, metric), line in lines.items()
        ],
    )


LEAST = 5e-5
"""A figure that is nearer to 0 is shown as 0: an end of an interval at 3e-32 tells nobody more."""


def _figure(row: dict[str, Any] | None, sign: str = "") -> str:
    """A value, and below it its interval."""
    if not row:
        return "–"
    return f"{_short(row['value'], sign, 3)}\n{_short(row['low'], sign)} … {_short(row['high'], sign)}"


def _short(value: float, sign: str, digits: int = 2) -> str:
    value = value if abs(value) >= LEAST else 0.0
    return f"{value:{sign},.0f}" if abs(value) >= 100 else f"{value:{sign}.{digits}g}"


def _verdict(line: dict[str, dict[str, Any]]) -> str:
    """The difference; it is better or worse only where its interval leaves zero out."""
    from toolbox.suites.metrics import verdict

    difference = line.get("difference")
    if difference is None:
        return "–"
    value, interval = _figure(difference, "+").split("\n")
    told = {"chance": _("within chance"), "better": _("better"), "worse": _("worse")}
    p = f"  p {_p(difference['p_holm'])}" if "p_holm" in difference else ""
    return f"{value} {told[verdict(line)]}\n{interval}{p}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"


COMMANDS = (
    Command("evaluate", N_("Evaluate: what it knows, what it learnt, which way it leans"), EvaluateOptions, run),
)
