"""The sections of report.md in their order, each a function from a story to Markdown; an empty text is left out."""

from collections import Counter
from collections.abc import Callable
from itertools import groupby

from toolbox import again, units
from toolbox.facts import Facts
from toolbox.i18n import _
from toolbox.report import markdown, numbers, reproduction
from toolbox.report.curves import curves
from toolbox.report.evaluation import VERDICTS, Line, evaluations, judged, lines
from toolbox.report.markdown import code, plain
from toolbox.report.merged import exports, proofs
from toolbox.report.origins import data, hardware, sources
from toolbox.report.parameters import parameters
from toolbox.report.publishing import is_local
from toolbox.report.siblings import siblings
from toolbox.report.steps import drawn, repeated, steps
from toolbox.report.story import Story
from toolbox.report.training import training
from toolbox.report.words import STATES, VERBS
from toolbox.suites import kinds

NAMED = 4
"""Figures that the summary names, of those that got better and of those that got worse."""


def header(story: Story) -> str:
    """Title, the state of the run with its reason, and when."""
    own, status = story.own, story.own.status
    done = [_(VERBS.get(verb, verb)) or _("Run") for verb, _runs in groupby(facts.verb for facts in story.chain)]
    title = _("# {model}: {verbs}").format(model=plain(_model(story)), verbs=" → ".join(done))
    lines = [f"**{_(STATES.get(status.state, status.state))}**"]
    if status.error:
        told = (plain(status.error.get("message", "")), plain(status.error.get("remedy", "")))
        lines.append("> " + "\n>\n> → ".join(filter(None, told)))
    if status.state in ("interrupted", "lost", "failed") and status.resumable:
        lines.append(
            _("It can go on where it stopped: {command}").format(command=code(again.line("runs resume", own.run.id)))
        )
    if status.state in ("interrupted", "lost", "failed") and status.phase:
        lines.append(_("It was at: {phase}.").format(phase=plain(status.phase)))
    return "\n\n".join([title, *lines, _when(story)])


def _model(story: Story) -> str:
    """The model that the chain began with."""
    first = next((facts.model.get("id") for facts in story.chain if facts.model.get("id")), "")
    return str(first or story.own.status.model or story.run.id).rstrip("/").removeprefix("HOME/")


def _when(story: Story) -> str:
    status = story.own.status
    parts = [_("Run {run}").format(run=code(story.run.id))]
    if len(story.chain) > 1:
        parts.append(_("step {number} of {count}").format(number=story.named(story.own), count=len(story.chain)))
    if status.started_at:
        parts.append(_("started {moment}").format(moment=numbers.moment(status.started_at)))
        if status.finished and status.elapsed_s:
            parts.append(_("took {duration}").format(duration=units.duration(status.elapsed_s)))
    return " · ".join(parts)


def short(story: Story) -> str:
    """What came of it, a line a step."""
    told = []
    for facts in story.chain:
        said = SAID[facts.verb](facts) if facts.verb in SAID and facts.result else ""
        told += [_("- **{verb}**: {told}").format(verb=plain(_(VERBS[facts.verb])), told=said)] if said else []
    return markdown.section(_("In short"), "\n".join(told))


def _tuned(facts: Facts) -> str:
    """Losses, speed, and the peak of memory against what was predicted."""
    result = facts.result
    held_out, trained = facts.curve("eval_loss"), facts.curve("loss")
    parts = []
    if held_out:
        parts.append(_("loss on held-out rows {before} → {after}").format(
            before=f"{held_out[0][1]:.4g}", after=f"{held_out[-1][1]:.4g}"))  # fmt: skip
    elif trained:
        parts.append(_("loss {before} → {after}").format(before=f"{trained[0][1]:.4g}", after=f"{trained[-1][1]:.4g}"))
    if result.get("tokens_per_s"):
        parts.append(_("{speed} tokens per second").format(speed=f"{result['tokens_per_s']:,.0f}"))
    peak, predicted = result.get("peak_bytes"), (facts.plan.get("estimate") or {}).get("peak_bytes")
    if peak and predicted:
        parts.append(_("peak of memory {measured}, predicted {predicted}").format(
            measured=units.size(peak), predicted=units.size(predicted)))  # fmt: skip
    return " · ".join(parts)


def _merged(facts: Facts) -> str:
    result = facts.result
    if result.get("max_abs_diff") is None:
        return ""
    proven = _("proven equal to base + adapter") if result.get("passed") else _("the proof failed")
    return proven + " · " + _("logits differ by up to {difference}, allowed {tolerance}").format(
        difference=numbers.number(result["max_abs_diff"]), tolerance=numbers.number(result.get("tolerance"))
    )  # fmt: skip


def _evaluated(facts: Facts) -> str:
    """What got better and what worse beyond chance; of a model alone, how many figures there are."""
    found = lines(facts)
    verdicts = {key: verdict for key, line in found.items() if (verdict := judged(line))}
    if not verdicts:
        return _("figures: {count}, suites: {suites}").format(count=len(found), suites=len({s for s, _m in found}))
    told = []
    for name, count in Counter(verdicts.values()).items():
        moved = [_moved(found[key]) for key, verdict in verdicts.items() if verdict == name and name != "chance"]
        told.append(f"{_(VERDICTS[name])} {count}")
        told[-1] += _(" ({figures})").format(figures=", ".join(moved[:NAMED])) if moved else ""
    return _("of {count} figures: {told}").format(count=len(verdicts), told=" · ".join(told))


def _moved(line: Line) -> str:
    before, after = (numbers.number(line[model].get("value")) for model in ("base", "tuned"))
    return plain(f"{_(kinds.metric(line['base']).label)} {before} → {after}")


def _exported(facts: Facts) -> str:
    size = facts.result.get("bytes")
    return plain(f"{facts.plan.get('format')} {facts.plan.get('type')}") + (f" · {units.size(size)}" if size else "")


def _served(facts: Facts) -> str:
    """What clients asked for; an address that others could reach is not published."""
    result = facts.result
    url = str(result.get("url", ""))
    parts = [_("at {url}").format(url=code(url))] if is_local(url) else []
    counted = {
        "requests": _("requests"), "prompt_tokens": _("tokens read"), "completion_tokens": _("tokens written"),
        "restarts": _("restarts of the engine"),
    }  # fmt: skip
    for key, name in counted.items():
        parts += [f"{name}: {result[key]:,}"] if isinstance(result.get(key), int) else []
    return " · ".join(parts)


SAID: dict[str, Callable[[Facts], str]] = {
    "finetune": _tuned, "merge": _merged, "evaluate": _evaluated, "export": _exported, "serve": _served,
}  # fmt: skip
"""What each verb's result says in a line."""


def why(story: Story) -> str:
    """Why a run of the chain failed, or what is odd about it."""
    told = []
    for facts in story.chain:
        for cause in story.causes(facts.run):
            step = f"{story.named(facts)}. " if len(story.chain) > 1 else ""
            lines = [f"**{step}{plain(story.hide(cause.message))}**"]
            lines.append("\n".join(f"- {code(story.hide(line))}" for line in cause.evidence))
            lines += [f"→ {plain(story.hide(cause.remedy))}"] if cause.remedy else []
            lines += [markdown.block(story.hide(cause.command), "bash")] if cause.command else []
            told.append("\n\n".join(filter(None, lines)))
    return markdown.section(_("Diagnosis"), *told)


def limits(story: Story) -> str:
    """What these figures can't say."""
    told: dict[str, None] = {}
    for facts in story.chain:
        for line in _limits(facts):
            told[line] = None
    return markdown.section(_("Known limits"), "\n".join(f"- {line}" for line in told))


def _limits(facts: Facts) -> list[str]:
    told = []
    if facts.verb == "finetune":
        told.append(_("A falling loss shows that the data was learnt, not that the model got better: evaluate it."))
        if facts.plan.get("quantization") == "nf4":
            told.append(_("The adapter was trained on 4-bit weights, and is merged onto their dequantised values."))
        if not facts.plan.get("eval_rows") and not facts.plan.get("eval_datasets"):
            told.append(_("No rows were held out, so overfitting would not be seen."))
        told.append(_("One seed was trained with: another one gives other numbers."))
    if facts.verb == "evaluate":
        told.append(_("Small suites leave wide intervals: differences inside them are chance."))
    if facts.verb == "merge":
        told.append(_("The proof covers the rows it names; other texts were not compared."))
    if facts.verb == "export":
        told.append(_("Perplexity is of the rows that were measured with; on other texts it may have changed more."))
    return told


SECTIONS: tuple[Callable[[Story], str], ...] = (
    header, short, drawn, steps, repeated, reproduction.section, why, evaluations, training, siblings, curves, proofs,
    exports, data, parameters, hardware, limits, sources,
)  # fmt: skip
