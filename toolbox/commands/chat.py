"""`chat`: a conversation in the terminal, through a server of its own or one that runs already."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import msgspec

from toolbox.commands import Command, Session
from toolbox.commands.conversing import ChatOptions, Conversation, talk
from toolbox.errors import INTERRUPTED
from toolbox.i18n import N_, _

if TYPE_CHECKING:
    from toolbox.plan import ServePlan
    from toolbox.runs import Run

END_S = 30.0
"""A server of our own is given this long to stop before it is ended."""


def run(options: ChatOptions, session: Session) -> dict[str, Any]:
    """Talk until `/quit`, the end of input, or Ctrl-C; returns the transcript."""
    from toolbox.commands.serve import ServeOptions, make_plan, show_plan

    chosen = ServeOptions(model=options.model, adapter=options.adapter, run=options.run, port=0)
    plan = make_plan(chosen, session)
    if session.dry_run:
        show_plan(plan, session)
        return {"plan": msgspec.to_builtins(plan, enc_hook=str)}
    with served(plan, session) as server:
        conversation = Conversation(server, options, session)
        session.say(_("Chatting with {model}. /help shows the commands.").format(model=conversation.model))
        if plan.adapters[1:]:
            session.say(_("/model shows who else answers here."))
        talk(conversation, session)
    return {"model": conversation.model, "messages": conversation.messages}


@contextmanager
def served(plan: "ServePlan", session: Session) -> Iterator[dict[str, Any]]:
    """A server of this model: one that runs already, else one of our own, which ends with us."""
    if found := _running(plan, session):
        yield found
        return
    from toolbox import runs

    job = runs.create(session.home.runs, f"chat-{runs.undated(plan.default_name)}", plan)
    with _raised((signal.SIGTERM, signal.SIGHUP)):
        try:
            job.start()
            session.follow(job)
            yield job.result()
        finally:
            _end(job)


def _running(plan: "ServePlan", session: Session) -> dict[str, Any] | None:
    from toolbox import runs
    from toolbox.plan import ServePlan, load

    for job in runs.every(session.home.runs):
        if job.status().state != "ready":
            continue
        other = load(job.plan_path)
        same = isinstance(other, ServePlan) and (other.model.path, other.adapters) == (plan.model.path, plan.adapters)
        if same and (server := job.result()):
            session.say(_("The server {run} has this model already.").format(run=job.id))
            return server
    return None


@contextmanager
def _raised(numbers: tuple[signal.Signals, ...]) -> Iterator[None]:
    """While inside, these signals unwind the stack, so that what was begun is ended."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise SystemExit(INTERRUPTED)  # no Exception: the prompt's event loop would swallow it

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(job: "Run") -> None:
    job.stop()
    deadline = time.monotonic() + END_S
    while job.alive():
        if time.monotonic() > deadline:
            job.stop(force=True)
        time.sleep(0.05)


COMMANDS = (Command("chat", N_("Chat with a model in the terminal"), ChatOptions, run),)
