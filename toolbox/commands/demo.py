"""`demo`: the whole way on the embedded model, unattended; it fails where a step did not do what it claims."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from toolbox.commands import Command, Session
from toolbox.i18n import N_, _

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = "cpu-tiny"
"""Made for a model of this size, whatever the hardware."""
QUESTIONS = ("你是谁？", "Who are you?")
"""What the served model is asked."""
NAMES = ("一锤定音", "Yichuidingyin")
"""What the tuned model calls itself, and the base never did."""
LEARNT, LOST = 0.75, 0.02
"""Least share of unseen questions answered as the new persona; most that the share of known answers may fall."""
SHOWN_FACTS = 2

TITLES = {"finetune": N_("Fine-tune"), "merge": N_("Merge"), "evaluate": N_("Evaluate"), "serve": N_("Serve")}
"""The steps, in their order."""

T = TypeVar("T")


class DemoOptions(msgspec.Struct, kw_only=True):
    """What `demo` takes: nothing."""


class Check(msgspec.Struct, frozen=True):
    """Something that the demo claims, and whether it is so."""

    name: str
    passed: bool
    detail: str


class Story(msgspec.Struct):
    """What each step said, by verb, and how long it took, in seconds."""

    finetune: dict[str, Any] = {}
    merge: dict[str, Any] = {}
    evaluate: dict[str, Any] = {}
    answers: dict[str, str] = {}
    """By question, what the served model answered."""
    refused: bool = False
    """Whether the server refused a request without its key."""
    took_s: dict[str, float] = {}

    def value(self, suite: str, metric: str, model: str) -> float:
        """A figure of the evaluation; NaN where it was not measured."""
        rows = [row for row in self.evaluate["results"] if (row["suite"], row["metric"]) == (suite, metric)]
        return next((row["value"] for row in rows if row["model"] == model), float("nan"))


def run(options: DemoOptions, session: Session) -> dict[str, Any]:
    """Device, finetune, merge, evaluate, serve and report, by the verbs themselves; then the screen of what came."""
    from toolbox import device
    from toolbox.errors import ToolboxError
    from toolbox.report import write_report
    from toolbox.runs import Run

    begun = time.monotonic()
    story = Story()
    best = device.probe().best
    session.say(
        _("One stroke sets the tone: the whole way on the embedded model, on {device}.").format(device=best.name)
    )
    with _unattended(session):
        if session.dry_run:
            return _finetune(session)
        story.finetune = _step(session, story, "finetune", lambda: _finetune(session))
        story.merge = _step(session, story, "merge", lambda: _merge(story, session))
        story.evaluate = _step(session, story, "evaluate", lambda: _evaluate(story, session))
        story.answers = _step(session, story, "serve", lambda: _serve(story, session))
    report = write_report(Run(session.home.runs / story.finetune["run"]))
    checks = _checks(story)
    elapsed_s = round(time.monotonic() - begun, 1)
    _show(story, checks, report, elapsed_s, session)
    if wrong := [check for check in checks if not check.passed]:
        raise ToolboxError(
            _("The demo did not do what it claims: {wrong}.").format(
                wrong="; ".join(f"{check.name} ({check.detail})" for check in wrong)
            ),
            _("The reports say what was measured: {report}").format(report=report),
        )
    return {
        "state": "done",
        "elapsed_s": elapsed_s,
        "device": msgspec.to_builtins(best),
        **{verb: getattr(story, verb) for verb in ("finetune", "merge", "evaluate")},
        "serve": {"answers": story.answers, "refused_without_key": story.refused},
        "took_s": story.took_s,
        "checks": [msgspec.structs.asdict(check) for check in checks],
        "report": str(report),
    }


@contextmanager
def _unattended(session: Session) -> Iterator[None]:
    """While inside, every question is answered with its default."""
    before, session.yes = session.yes, True
    try:
        yield
    finally:
        session.yes = before


def _step(session: Session, story: Story, verb: str, work: Callable[[], T]) -> T:
    begun = time.monotonic()
    session.say(f"\n━━ {len(story.took_s) + 1}/{len(TITLES)} {_(TITLES[verb])}")
    result = work()
    story.took_s[verb] = round(time.monotonic() - begun, 1)
    return result


def _finetune(session: Session) -> dict[str, Any]:
    from toolbox.commands.finetune import Options, run

    return run(Options(model="demo", dataset=["demo-persona"], recipe=RECIPE), session)


def _merge(story: Story, session: Session) -> dict[str, Any]:
    from toolbox.commands.merge import MergeOptions, run

    return run(MergeOptions(run=story.finetune["run"]), session)


def _evaluate(story: Story, session: Session) -> dict[str, Any]:
    from toolbox import embedded
    from toolbox.commands.evaluate import EvaluateOptions, run

    suites = ["demo-who", *embedded.SUITES]
    return run(EvaluateOptions(run=story.merge["run"], suite=suites), session)


def _serve(story: Story, session: Session) -> dict[str, str]:
    """Ask the merged model over HTTP, as a client would, and once without the key."""
    from toolbox.client import stream
    from toolbox.commands.chat import served
    from toolbox.commands.serve import ServeOptions, make_plan
    from toolbox.errors import InputError

    plan = make_plan(ServeOptions(run=story.merge["run"], port=0), session)
    with served(plan, session) as facts:
        url, key = facts["url"], facts["api_key"]
        answers = {}
        for question in QUESTIONS:
            body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 64}
            answers[question] = "".join(stream(url, key, body))
            session.say(f"> {question}\n  {answers[question]}")
        try:
            "".join(stream(url, "wrong", {"messages": [{"role": "user", "content": QUESTIONS[0]}], "max_tokens": 1}))
        except InputError:
            story.refused = True
    return answers


def _checks(story: Story) -> list[Check]:
    """Everything that was claimed, against what was measured."""
    before, after = (story.value("demo-who", "exact_match", model) for model in ("base", "tuned"))
    knew, knows = (story.value("demo-qa", "exact_match", model) for model in ("base", "tuned"))
    first, last = (story.value("demo-perplexity", "perplexity", model) for model in ("base", "tuned"))
    said = [answer for answer in story.answers.values() if any(name in answer for name in NAMES)]
    proof = _("largest difference of a logit {difference:.1e}, at most {tolerance:.1e}").format(**{
        "difference": story.merge["max_abs_diff"], "tolerance": story.merge["tolerance"],
    })  # fmt: skip
    return [
        Check(_("It learnt who it is"), after >= LEARNT > before, f"{before:.0%} → {after:.0%}"),
        Check(_("It kept what it knew"), knows >= knew - LOST, f"{knew:.1%} → {knows:.1%}"),
        Check(_("It foresees held-out answers better"), last < first, f"{first:.3g} → {last:.3g}"),
        Check(_("Merged equals base + adapter"), bool(story.merge["passed"]), proof),
        Check(
            _("Served, it says so too"),
            len(said) == len(QUESTIONS),
            _("{count} of {all} answers").format(count=len(said), all=len(QUESTIONS)),
        ),
        Check(_("No key, no answer"), story.refused, _("401 without the key")),
    ]


def _show(story: Story, checks: list[Check], report: "Path", elapsed_s: float, session: Session) -> None:
    """The last screen."""
    from toolbox import units
    from toolbox.config import command_line

    session.say("")
    session.table(
        _("What it says"),
        (_("Question"), _("Before"), _("After")),
        [*_said(story, "demo-who", len(QUESTIONS), session), *_said(story, "demo-qa", SHOWN_FACTS, session)],
    )
    session.table(
        _("What was claimed"), ("", _("Check"), _("Measured")), [(_mark(c.passed), c.name, c.detail) for c in checks]
    )
    bias = [story.value("demo-bias", "likelihood_bias", model) for model in ("base", "tuned")]
    rows = [
        (_("Gender bias by profession"), f"{bias[0]:.2f} → {bias[1]:.2f}"),
        (_("Training speed"), _("{speed:,.0f} tokens/s").format(speed=story.finetune.get("tokens_per_s", 0))),
        (_("Time"), " · ".join(f"{_(TITLES[verb])} {units.duration(took)}" for verb, took in story.took_s.items())),
        (_("Adapter"), str(story.finetune["adapter"])),
        (_("Merged model"), str(story.merge["output"])),
        (_("Report"), str(report)),
    ]
    session.table("", ("", ""), rows)
    home = session.home.path
    session.say(
        "\n".join([
            _("Yichuidingyin: all of it in {time}. What next:").format(time=units.duration(elapsed_s)),
            "  " + command_line(home, "chat", "--run", story.merge["run"]),
            "  " + command_line(home, "serve", "--run", story.merge["run"]),
            "  " + command_line(home, "finetune", "--model", "demo", "--dataset", _("your-data.jsonl")),
        ])
    )  # fmt: skip


def _mark(passed: bool) -> str:
    return "✓" if passed else "✗"


def _said(story: Story, suite: str, most: int, session: Session) -> list[tuple[str, str, str]]:
    """(question, what the base said, what the tuned model said) of the first items of a suite."""
    from toolbox import files

    folder = session.home.runs / story.evaluate["run"] / "evaluation"
    saved = next((files.read_json(path) for path in folder.glob(f"*-{suite}.json")), None) or {"rows": {}}
    before, after = (saved["rows"].get(model, [])[:most] for model in ("base", "tuned"))
    return [(one["question"], one["said"], other["said"]) for one, other in zip(before, after, strict=False)]


COMMANDS = (Command("demo", N_("Demo: the whole way on the embedded model"), DemoOptions, run),)
