"""Rules: how a job ended: killed, by whom; crashed; interrupted; its port or its engine."""

import re

from toolbox import again
from toolbox.diagnosis.causes import Cause
from toolbox.diagnosis.memory import killed_for_it
from toolbox.diagnosis.traces import Traces
from toolbox.i18n import _

CRASHED = r"^Fatal Python error: (?!Aborted)|^Segmentation fault|^Bus error|terminate called after throwing|core dumped"
"""Python's faulthandler, the shell's and C++'s words."""
PORT = r"address already in use|Errno 98\b|Errno 48\b|EADDRINUSE"
"""asyncio (base_events.py), the system on Linux and macOS."""
KERNEL_CRASH = r"segfault at|general protection fault"


def port(traces: Traces) -> Cause | None:
    evidence = traces.said(PORT, ignore_case=True)
    if traces.verb == "serve":
        evidence = [*traces.ended_with("busy"), *evidence]
    if not evidence:
        return None
    plan = {**traces.facts.plan, "port": 0}
    return Cause(
        kind="port",
        message=_("Another program listens on that port already."),
        evidence=evidence,
        remedy=traces.error.get("remedy") or _("Take another port; 0 takes any free one."),
        command=_served(traces, plan),
    )


def _served(traces: Traces, plan: dict[str, object]) -> str:
    return traces.command(*again.words("serve", plan)) if traces.verb == "serve" else ""


def restarted(traces: Traces) -> Cause | None:
    if traces.status.state != "lost" or not traces.restarted:
        return None
    return Cause(
        kind="restarted",
        message=_("The machine was restarted or lost its power while the job ran."),
        evidence=[_("/proc/sys/kernel/random/boot_id is not the one that the job was started under.")],
        remedy=_go_on(traces)[0],
        command=_go_on(traces)[1],
    )


def by_hand(traces: Traces) -> Cause | None:
    evidence = traces.forced
    if traces.status.state != "lost" or not evidence:
        return None
    return Cause(
        kind="ended_by_hand",
        message=_("A person ended it at once, by a second Ctrl-C or runs stop --force; nothing is broken."),
        evidence=evidence,
        remedy=_go_on(traces)[0],
        command=_go_on(traces)[1],
    )


def crashed(traces: Traces) -> Cause | None:
    evidence = traces.said(CRASHED)
    if traces.status.pid and traces.status.state == "lost":
        evidence += [line for line in traces.of_kernel(KERNEL_CRASH) if re.search(rf"\b{traces.status.pid}\b", line)]
    if not evidence:
        return None
    return Cause(
        kind="crashed",
        message=_("A library's machine code crashed."),
        evidence=[*evidence, *traces.said(r'^  File "')[:1]],
        remedy=_("Check the installation; if it happens again at the same place, report it with log.txt."),
        command=traces.command("doctor"),
    )


def killed(traces: Traces) -> Cause | None:
    """Died without a word, and neither memory nor a restart nor a person of this toolbox explains it."""
    known = (killed_for_it, restarted, by_hand, crashed)
    if traces.status.state != "lost" or any(rule(traces) for rule in known):
        return None
    step = _("status.json: the last word was at step {step} of {steps}: {phase}")
    told = step.format(step=traces.status.step, steps=traces.status.steps, phase=traces.status.phase)
    return Cause(
        kind="killed",
        message=_(
            "The job was killed from outside (kill -9, a scheduler's limit, a container that was stopped): it wrote "
            "neither an error nor an end, and the kernel tells of no lack of memory."
        ),
        evidence=[told, *traces.last_words()[-1:]],
        certainty="likely",
        remedy=_go_on(traces)[0],
        command=_go_on(traces)[1],
    )


def interrupted(traces: Traces) -> Cause | None:
    if traces.status.state != "interrupted":
        return None
    return Cause(
        kind="interrupted",
        message=_("It was asked to stop (Ctrl-C, runs stop, or the system's SIGTERM) and saved; nothing is broken."),
        evidence=traces.ended_with("interrupted"),
        remedy=_go_on(traces)[0],
        command=_go_on(traces)[1],
    )


def engine(traces: Traces) -> Cause | None:
    """A serving engine died; where a surer rule knows why, that one is named first."""
    evidence = traces.ended_with("engine")
    if not evidence:
        return None
    return Cause(
        kind="engine",
        message=_("The serving engine died."),
        evidence=[*evidence, *traces.said(r"^\w*(?:Error|Exception)\b.*: |ERROR")],
        remedy=_("Read engine.log in the run's folder; the engine transformers needs the least."),
        command=_served(traces, {**traces.facts.plan, "engine": "transformers"}),
        certainty="possible",
    )


def refused(traces: Traces) -> Cause | None:
    """What the job said itself, where no rule knows more; what nobody foresaw is not called a cause."""
    kind = traces.error.get("kind", "failed")
    if kind == "failed" or not traces.error.get("message"):
        return None
    return Cause(
        kind=kind,
        message=traces.error["message"],
        evidence=traces.ended_with(kind),
        remedy=traces.error.get("remedy", ""),
    )


def _go_on(traces: Traces) -> tuple[str, str]:
    """Remedy and command for what is not broken: go on, or begin again."""
    if traces.status.verb == "evaluate":
        return _("What was answered is kept: go on with it."), traces.on_run("runs", "resume")
    if traces.status.resumable or traces.facts.run.has_checkpoint():
        return _("Go on from the last checkpoint."), traces.on_run("runs", "resume")
    return _("No checkpoint was written yet: start it again."), traces.on_run("runs", "reproduce")
