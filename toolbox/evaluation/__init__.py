"""Evaluation of a model, or of a tuned one against its base, in one job and on the same items (`evaluate`)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from toolbox import files, loading, models, plugins, suites
from toolbox.config import find_home
from toolbox.errors import Interrupted
from toolbox.evaluation import cache, pairing, repaired
from toolbox.evaluation.masked import Masked
from toolbox.evaluation.measures import Finding, measure, metric_of
from toolbox.evaluation.statistics import holm
from toolbox.evaluation.subjects import Loaded, Subject
from toolbox.i18n import _
from toolbox.inference import Watch
from toolbox.models import ModelFacts
from toolbox.plan import EvaluatePlan
from toolbox.report import pictured
from toolbox.runs import Reporter, Run, Silent

Findings = dict[str, Finding]
"""A suite's findings by model: base, tuned."""


def run(plan: EvaluatePlan, run: Run | None = None, reporter: Reporter | None = None) -> dict[str, Any]:
    """Measure every suite of the plan; returns `results[]{suite model metric value low high n}`.

    `model` is base or tuned; `difference` is tuned minus base, paired, with its own interval.
    Of suites that a repair left, `repair` says what it did: `repaired.summary`.
    Items are saved in the run's evaluation/, charts in its plots/. Raises Interrupted, OutOfMemoryError, InputError.
    """
    reporter = reporter or Silent()
    chosen = [
        msgspec.structs.replace(suites.resolve(name, find_home()), metrics=plan.metrics, samples=plan.samples)
        for name in plan.suites
    ]
    found: dict[str, Findings] = {suite.name: {} for suite in chosen}
    models = 2 if plan.compare and (plan.adapter or plan.base) else 1
    items = [min(plan.limit or suite.items, suite.items) for suite in chosen]
    reporter.resumable()
    for turn, subject in enumerate(subjects(plan, run, chosen)):
        for place, suite in enumerate(chosen):
            reporter.phase(_("{suite} on the {model} model").format(suite=_short(suite), model=_(subject.name)))
            watch = _watch(reporter, turn * sum(items) + sum(items[:place]), items[place], models * sum(items))
            found[suite.name][subject.name] = measure(subject, suite, plan.limit, watch)
    if plan.judge and (opened := [suite for suite in chosen if suite.kind == "open_questions"]):
        reporter.resumed(0)
        _judge(plan, run, reporter, opened, found)
    results = adjusted([row for suite in chosen for row in _rows(suite, found[suite.name])])
    if run:
        for place, suite in enumerate(chosen, 1):
            _save(run, f"{place}-{_short(suite)}", suite, found[suite.name], results)
    summary = repaired.summary(chosen, found)
    if run:
        for name, svg in pictured.charts(run.path / "evaluation", bool(summary)).items():
            files.write_text(run.path / "plots" / f"{name}.svg", svg)
    return {"results": results, "repair": summary} if summary else {"results": results}


def _judge(plan: EvaluatePlan, run: Run | None, reporter: Reporter, opened: list[suites.Suite], found: Any) -> None:
    """Let the judge look at what all models said to open questions."""
    from toolbox.evaluation import endpoint, judging

    judge = endpoint.of("judge", plan.judge, plan.judge_model, run)
    for place, suite in enumerate(opened):
        reporter.phase(_("{suite}: asking the judge").format(suite=_short(suite)))
        watch = _watch(reporter, place, 1, len(opened))
        found[suite.name] = judging.judged(judge, found[suite.name], watch)


def subjects(plan: EvaluatePlan, run: Run | None = None, chosen: Sequence[suites.Suite] = ()) -> Iterator[Subject]:
    """Whom to ask, in turn: the model behind a server, or the models of this machine."""
    if plan.endpoint:
        from toolbox.evaluation import endpoint

        subject = endpoint.of("endpoint", plan.endpoint, plan.endpoint_model, run)
        endpoint.check(subject, chosen)
        yield subject
    elif models.is_masked(plan.model):
        device = loading.torch_device(plan.device.kind, plan.device.index)
        model = loading.masked_model(plan.model.path, device).eval()
        yield Masked("base", model, loading.tokenizer(plan.model.path, plan.adapter))
    else:
        yield from loaded(plan, run)


def loaded(plan: EvaluatePlan, run: Run | None = None) -> Iterator[Loaded]:
    """The models to measure, in turn, so that two never lie in memory; for its base an adapter is switched off.

    Both are asked through one tokenizer and chat template, the tuned one's, so that their tokens can be compared.
    Without `cached` a run remembers its own answers only, to be resumed by.
    """
    tokenizer = loading.tokenizer(plan.model.path, plan.adapter)
    folder = find_home().path / "cache" / "evaluation" if plan.cached or not run else run.path / "cache"

    def subject(name: str, model: Any, *weights: Path) -> Loaded:
        kept = cache.Cache(cache.of_model(folder, plan, weights) if run else None)
        return Loaded(name, model, tokenizer, kept)

    if plan.adapter:
        model = loading.with_adapter(_load(plan, plan.model), plan.adapter).eval()
        if plan.compare:
            with model.disable_adapter():  # type: ignore[operator]
                yield subject("base", model, plan.model.path)
        yield subject("tuned", model, plan.model.path, plan.adapter)
        return
    if plan.base and plan.compare:
        yield subject("base", _load(plan, plan.base), plan.base.path)
    yield subject("tuned" if plan.base else "base", _load(plan, plan.model), plan.model.path)


def _load(plan: EvaluatePlan, facts: ModelFacts) -> Any:
    device = loading.torch_device(plan.device.kind, plan.device.index)
    quantization = plan.BitsAndBytesConfig if plan.quantization != "none" else None
    return loading.base_model(facts.path, plan.dtype, device, quantization).eval()


def _watch(reporter: Reporter, before: int, items: int, all_items: int) -> Watch:
    """Reports items of all suites on all models, and stops between batches when asked to."""

    def watch(done: int, total: int) -> None:
        if reporter.stopping:
            raise Interrupted(
                _("Interrupted before everything was measured."), _("What was answered is kept: runs resume")
            )
        reporter.progress(before + items * done // total, all_items)

    return watch


def _rows(suite: suites.Suite, findings: Findings) -> Iterator[dict[str, Any]]:
    """The result rows of one suite: each model's, then what the tuning changed."""
    for model, finding in findings.items():
        for metric, measured in finding.metrics.items():
            yield _row(suite, model, metric, measured.estimate())
    if "base" in findings and "tuned" in findings:
        before, after = findings["base"].metrics, findings["tuned"].metrics
        for metric in (name for name in before if name in after):
            yield _row(suite, "difference", metric, after[metric].difference(before[metric]))


def adjusted(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With `p_holm` beside each p: of many metrics some always seem to have moved."""
    differences = [row for row in results if "p" in row]
    for row, p in zip(differences, holm([row["p"] for row in differences]), strict=True):
        row["p_holm"] = p
    return results


def _row(suite: suites.Suite, model: str, metric: str, estimate: msgspec.Struct) -> dict[str, Any]:
    ideal = metric_of(metric, suite).told
    row = {"suite": suite.name, "model": model, "metric": metric, "ideal": ideal, **msgspec.structs.asdict(estimate)}
    own = plugins.find("metric", metric) if metric in suite.metrics else None
    return row if getattr(own, "greater_is_better", True) else {**row, "greater_is_better": False}


def _short(suite: suites.Suite) -> str:
    """A suite's name without the folder that a person's file lies in."""
    return Path(suite.name).stem


def _save(run: Run, name: str, suite: suites.Suite, findings: Findings, results: Sequence[dict[str, Any]]) -> None:
    """Everything that the figures were made from."""
    files.write_json(
        run.path / "evaluation" / f"{name}.json",
        {
            "suite": suite.name,
            "kind": suite.kind,
            "sha256": suite.sha256,
            "results": [row for row in results if row["suite"] == suite.name],
            "categories": {model: finding.categories for model, finding in findings.items()},
            "rows": {model: finding.rows for model, finding in findings.items()},
            "units": {model: pairing.units(finding.metrics) for model, finding in findings.items()},
        },
    )
