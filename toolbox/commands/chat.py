"""`chat`: a conversation in the terminal, through a server of its own or one that runs already."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from toolbox.commands import Command, Session
from toolbox.commands.serve import TargetOptions
from toolbox.errors import INTERRUPTED, Interrupted, ToolboxError
from toolbox.i18n import N_, _
from toolbox.options import option

if TYPE_CHECKING:
    from toolbox.plan import ServePlan
    from toolbox.runs import Run

END_S = 30.0
"""A server of our own is given this long to stop before it is ended."""


class ChatOptions(TargetOptions, kw_only=True):
    """What `chat` takes: a model (and an adapter), or a run; and how the answers are sampled."""

    system: Annotated[str, option(N_("System prompt"), metavar="TEXT")] = ""
    temperature: Annotated[
        float | None, option(N_("Randomness of the answers; 0: none; default: the model's own"), ge=0, le=2)
    ] = None
    max_tokens: Annotated[int, option(N_("Longest answer, in tokens"), ge=1)] = 1024


class Conversation:
    """The turns so far, and the server that answers them."""

    def __init__(self, server: dict[str, Any], options: ChatOptions, session: Session) -> None:
        self._server, self._options, self._session = server, options, session
        self.system = options.system
        self.turns: list[dict[str, str]] = []

    @property
    def messages(self) -> list[dict[str, str]]:
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    def ask(self, text: str) -> None:
        """One question and its streamed answer. Ctrl-C keeps what was said so far; a failure forgets the question."""
        self.turns.append({"role": "user", "content": text})
        pieces: list[str] = []
        try:
            for piece in self._answer():
                pieces.append(piece)
                self._session.write(piece)
        except KeyboardInterrupt:
            self._session.write(_(" … (stopped)"))
        except ToolboxError:
            self.turns.pop()
            raise
        self._session.write("\n")
        self.turns.append({"role": "assistant", "content": "".join(pieces)})

    def _answer(self) -> Iterator[str]:
        """The answer in pieces; where the context is full, the oldest turns are left out until it is not."""
        from toolbox.client import ContextFullError, stream

        asked = {"max_tokens": self._options.max_tokens, "temperature": self._options.temperature}
        while True:
            try:
                yield from stream(self._server["url"], self._server["api_key"], {"messages": self.messages, **asked})
                return
            except ContextFullError:
                if len(self.turns) < 3:
                    raise
                self.turns = self.turns[2:]
                self._session.say(_("The model's context is full: the oldest turn is left out."))


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
        session.say(_("Chatting with {model}. /help shows the commands.").format(model=plan.default_name))
        _talk(conversation, session)
    return {"model": plan.default_name, "messages": conversation.messages}


def _talk(conversation: Conversation, session: Session) -> None:
    while True:
        try:
            line = session.read("> ")
        except KeyboardInterrupt:
            return
        if line is None:
            return
        try:
            if not _told(line.strip(), conversation, session):
                return
        except Interrupted:
            raise
        except ToolboxError as error:
            session.say(f"✗ {error.message}" + (f"\n  → {error.remedy}" if error.remedy else ""))


def _told(line: str, conversation: Conversation, session: Session) -> bool:
    """Do what one line asks for; False ends the conversation."""
    command, _space, rest = line.partition(" ")
    match command:
        case "":
            pass
        case "/quit" | "/exit":
            return False
        case "/reset":
            conversation.turns.clear()
            session.say(_("Begun anew."))
        case "/system":
            conversation.system = rest.strip()
            session.say(_("System prompt: {text}").format(text=rest.strip() or _("none")))
        case "/save":
            session.say(_("Saved in {path}.").format(path=_save(conversation, rest.strip(), session)))
        case "/help":
            session.say(
                _(
                    "/reset        begin anew\n/system TEXT  system prompt\n"
                    "/save [FILE]  keep as a data set row\n/quit         leave"
                )
            )
        case _ if command.startswith("/"):
            session.say(_("There is no command {command}. /help shows them.").format(command=command))
        case _:
            conversation.ask(line)
    return True


def _save(conversation: Conversation, name: str, session: Session) -> Path:
    """The conversation as one row of `messages`, as `finetune --dataset` reads them."""
    from toolbox import files
    from toolbox.errors import InputError

    default = session.home.path / "chats" / f"{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
    path = Path(name).expanduser().absolute() if name else default
    if path.exists():
        raise InputError(_("{path} is there already.").format(path=path), _("Name another file."))
    try:
        files.write_bytes(path, msgspec.json.encode({"messages": conversation.messages}) + b"\n")
    except OSError as error:
        raise InputError(
            _("{path} can't be written: {reason}.").format(path=path, reason=error.strerror), _("Name another file.")
        ) from error
    return path


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
