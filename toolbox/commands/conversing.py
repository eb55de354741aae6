"""The conversation of `chat`: its turns, how answers are sampled, and the lines that begin with a slash."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec

from toolbox import options as described
from toolbox.commands import Session
from toolbox.commands.serve import TargetOptions
from toolbox.errors import InputError, Interrupted, ToolboxError
from toolbox.i18n import N_, _
from toolbox.options import option

FENCE = '"""'
"""Lines between two of these are one message."""


class ChatOptions(TargetOptions, kw_only=True):
    """What `chat` takes: a model (and adapters), or a run; and how answers are drawn, under OpenAI's names."""

    system: Annotated[str, option(N_("System prompt"), metavar="TEXT")] = ""
    temperature: Annotated[
        float | None, option(N_("Randomness of the answers; 0: none; default: the model's own"), ge=0, le=2)
    ] = None
    top_p: Annotated[
        float | None, option(N_("Draw from the likeliest tokens that have this probability together"), ge=0.001, le=1)
    ] = None
    max_tokens: Annotated[int, option(N_("Longest answer, in tokens"), ge=1)] = 1024
    seed: Annotated[int | None, option(N_("The same seed gives the same answer, where the engine heeds it"))] = None
    stop: Annotated[list[str], option(N_("Text at which an answer ends"), metavar="TEXT")] = msgspec.field(
        default_factory=list
    )
    presence_penalty: Annotated[
        float | None, option(N_("Against words that were said already, however often"), ge=-2, le=2)
    ] = None
    frequency_penalty: Annotated[
        float | None, option(N_("Against words that were said already, the more the oftener"), ge=-2, le=2)
    ] = None


DRAWN = tuple(
    name for name in ChatOptions.__struct_fields__ if name not in (*TargetOptions.__struct_fields__, "system")
)
"""The options that stand in each request."""


class Conversation:
    """The turns so far, and the server that answers them."""

    def __init__(self, server: dict[str, Any], options: ChatOptions, session: Session) -> None:
        self._server, self._session = server, session
        self.options = options
        self.model = str(server["model"])
        self.turns: list[dict[str, str]] = []

    @property
    def messages(self) -> list[dict[str, str]]:
        return [*([{"role": "system", "content": system}] if (system := self.options.system) else []), *self.turns]

    @property
    def models(self) -> list[str]:
        """The names that the server answers to: the model's, and those of its adapters."""
        from toolbox import client

        return client.models(self._server["url"], self._server["api_key"])

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

    def ask_again(self) -> None:
        """The last question once more; its answer so far comes back where that fails. Raises InputError."""
        if len(self.turns) < 2:
            raise InputError(_("There is no answer yet."), _("Ask something first."))
        before = self.turns
        self.turns = before[:-2]
        try:
            self.ask(before[-2]["content"])
        except ToolboxError:
            self.turns = before
            raise

    def _answer(self) -> Iterator[str]:
        """The answer in pieces; where the context is full, the oldest turns are left out until it is not."""
        from toolbox.client import ContextFullError, stream

        drawn = {name: value for name in DRAWN if (value := getattr(self.options, name)) not in (None, [])}
        asked = {"model": self.model, **drawn}
        while True:
            try:
                yield from stream(self._server["url"], self._server["api_key"], {"messages": self.messages, **asked})
                return
            except ContextFullError:
                if len(self.turns) < 3:
                    raise
                self.turns = self.turns[2:]
                self._session.say(_("The model's context is full: the oldest turn is left out."))


def talk(conversation: Conversation, session: Session) -> None:
    """Read and answer until `/quit`, the end of input, or Ctrl-C at the prompt; a failure is told and forgotten."""
    kept = session.home.path / "chats" / "history" if session.settings.chat_history else None
    while True:
        try:
            line = _message(session, kept)
        except KeyboardInterrupt:
            return
        if line is None:
            return
        try:
            if not _told(line, conversation, session):
                return
        except Interrupted:
            raise
        except ToolboxError as error:
            session.say(f"✗ {error.message}" + (f"\n  → {error.remedy}" if error.remedy else ""))


def _message(session: Session, kept: Path | None) -> str | None:
    """What is said next: a line, or all lines up to the closing fence; None at the end of input."""
    line = session.line("> ", kept)
    if line is None or not line.lstrip().startswith(FENCE):
        return line and line.strip()
    text = line.lstrip().removeprefix(FENCE)
    while not text.rstrip().endswith(FENCE):
        if (more := session.line("… ", kept)) is None:
            break
        text += f"\n{more}"
    return text.strip().removesuffix(FENCE).strip()


def _told(line: str, conversation: Conversation, session: Session) -> bool:
    """Do what was said; False ends the conversation."""
    word, _space, rest = line.partition(" ")
    if word in ("/quit", "/exit"):
        return False
    if word in COMMANDS:
        COMMANDS[word].run(conversation, rest.strip(), session)
    elif word.startswith("/") and "\n" not in line:
        raise InputError(_("There is no command {command}.").format(command=word), _("/help shows them."))
    elif line:
        conversation.ask(line)
    return True


def _reset(conversation: Conversation, rest: str, session: Session) -> None:
    conversation.turns.clear()
    session.say(_("Begun anew."))


def _system(conversation: Conversation, rest: str, session: Session) -> None:
    conversation.options = msgspec.structs.replace(conversation.options, system=rest)
    session.say(_("System prompt: {text}").format(text=rest or _("none")))


def _set(conversation: Conversation, rest: str, session: Session) -> None:
    """Change how answers are drawn, checked as the option of that name is; none: show all."""
    fields = {field.name: field for field in described.fields(ChatOptions) if field.name in DRAWN}
    name, _space, value = rest.replace("=", " ", 1).partition(" ")
    name = name.lstrip("-").replace("-", "_")
    if not name:
        now = [_shown(getattr(conversation.options, each)) for each in fields]
        rows = [(field.name, shown, _(field.help)) for field, shown in zip(fields.values(), now, strict=True)]
        session.table("", (_("Setting"), _("Value"), _("What it is")), rows)
        return
    if name not in fields:
        raise InputError(
            _("There is no setting {key!r}.").format(key=name), _("Settings: {names}.").format(names=", ".join(fields))
        )
    field = fields[name]
    parsed = field.parse(value, called=name) if value.strip() else field.default
    chosen = [parsed] if field.many and value.strip() else parsed
    conversation.options = msgspec.structs.replace(conversation.options, **{name: chosen})
    session.say(f"{name} = {_shown(chosen)}")


def _shown(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else _("the model's own") if value is None else str(value)


def _model(conversation: Conversation, rest: str, session: Session) -> None:
    """Choose which of the server's models answers from now on; none: show them."""
    known = conversation.models
    if rest and rest not in known:
        raise InputError(_("There is no model {name!r} on this server.").format(name=rest), ", ".join(known))
    conversation.model = rest or conversation.model
    session.say("\n".join(("* " if name == conversation.model else "  ") + name for name in known))


def _history(conversation: Conversation, rest: str, session: Session) -> None:
    for message in conversation.messages:
        session.say(f"{message['role']}: {message['content']}")


def _again(conversation: Conversation, rest: str, session: Session) -> None:
    conversation.ask_again()


def _save(conversation: Conversation, rest: str, session: Session) -> None:
    """The conversation as one row of `messages`, as `finetune --dataset` reads them."""
    from toolbox import files

    default = session.home.path / "chats" / f"{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
    path = Path(rest).expanduser().absolute() if rest else files.free_path(default)
    if path.exists():
        raise InputError(_("{path} is there already.").format(path=path), _("Name another file."))
    try:
        files.write_bytes(path, msgspec.json.encode({"messages": conversation.messages}) + b"\n")
    except OSError as error:
        raise InputError(
            _("{path} can't be written: {reason}.").format(path=path, reason=error.strerror), _("Name another file.")
        ) from error
    session.say(_("Saved in {path}.").format(path=path))


def _help(conversation: Conversation, rest: str, session: Session) -> None:
    usages = {f"{word} {slash.takes}": _(slash.help) for word, slash in COMMANDS.items()} | {"/quit": _("leave")}
    width = max(map(len, usages))
    session.say("\n".join(f"{usage:<{width}}  {help}" for usage, help in usages.items()))
    session.say(_("Alt-Enter begins another line; so do lines between {fence} and {fence}.").format(fence=FENCE))


class Slash(msgspec.Struct, frozen=True):
    """A line that begins with a slash."""

    takes: str
    help: str
    run: Callable[[Conversation, str, Session], None]


COMMANDS = {
    "/system": Slash("TEXT", N_("system prompt; none: without"), _system),
    "/set": Slash("NAME VALUE", N_("how answers are drawn, as temperature 0.7; none: show it"), _set),
    "/model": Slash("NAME", N_("who answers: the model or one of its adapters; none: show them"), _model),
    "/regenerate": Slash("", N_("answer the last question anew"), _again),
    "/history": Slash("", N_("show the conversation"), _history),
    "/reset": Slash("", N_("begin anew"), _reset),
    "/save": Slash("FILE", N_("keep as a data set row; none: in the home folder"), _save),
    "/help": Slash("", N_("this"), _help),
}
