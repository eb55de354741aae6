"""The machine-readable part of a report.md: what a chain of runs did, and every number it states (`runs reproduce`).

One collapsed block of JSON, so that it survives GitHub, editors and the clipboard; it holds no path of any machine.
"""

import hashlib
import html
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from toolbox.errors import HubError, InputError
from toolbox.facts import Facts
from toolbox.hub import names
from toolbox.i18n import _
from toolbox.report.tolerances import Machine, Value
from toolbox.report.tolerances import Name as Kind

SCHEMA = "yichuidingyin-record/1"
MOST_BYTES = 4 << 20
"""Of a report that is read; 1000 times what the tutorial's takes would still be read."""
BEGINS = re.compile(rf'^([ \t]*)(?:<pre><code[^>\n]*>)?\{{\n\s*"schema": "{SCHEMA.rpartition("/")[0]}/', re.MULTILINE)

Verb = Literal["finetune", "merge", "export", "evaluate", "serve"]
Source = Literal["embedded", "modelscope", "huggingface", "hub", "local", "step"]
"""Where something is from: shipped, on a hub that is named, on some hub, a person's own, or made by a step."""
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Number = Annotated[int, msgspec.Meta(ge=1, le=1000)]
"""Of a step, from 1."""


Id = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]*$", max_length=200)]
"""Of a run."""


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What all parts of a record have in common: what is not known is refused."""


class Made(Part, frozen=True, kw_only=True, tag_field="from", tag="step"):
    """What an earlier step made: `path` is "output", or lies inside its run ("adapter")."""

    step: Number
    path: str


class Folder(Part, frozen=True, kw_only=True, tag_field="from", tag="hash"):
    """A model or an adapter by its address and the SHA-256 of its files."""

    name: str
    """As a person names it: `demo`, OWNER/NAME; of a local folder only its own name."""
    source: Source
    revision: str = ""
    files: dict[str, Sha256]


class Data(Part, frozen=True, kw_only=True):
    """A data set or a suite by its address and SHA-256, or by the step that made it."""

    name: str
    sha256: Sha256
    source: Source = "local"
    id: str = ""
    """Of a hub: the repository."""
    revision: str = ""
    made: Made | None = None
    rows: int = 0
    columns: dict[str, str] = {}
    skip_broken: bool = False


class Repair(Part, frozen=True, kw_only=True):
    """What `data repair` made of an evaluation, in its folder repair/, for the steps after it."""

    stage: Literal["dpo", "sft"] = "dpo"
    seed: int = 42
    pairs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 8
    beta: float = 0.5
    general: list[str] = []
    """Names of data sets."""


class Step(Part, frozen=True, kw_only=True):
    """A run of the chain: its plan without places, what computed it, and what it said."""

    run: Id
    verb: Verb
    model: Folder | Made
    base: Folder | Made | None = None
    adapters: list[Folder | Made] = []
    judge: Folder | Made | None = None
    """The reward model."""
    datasets: list[Data] = []
    eval_datasets: list[Data] = []
    calibration: list[Data] = []
    suites: list[Data] = []
    repair: Repair | None = None
    after: int = 0
    """The step that the plan calls its run."""
    needs: list[str] = []
    """What it took that no report can bring: plugins, servers."""
    settings: dict[str, Any] = {}
    """All else of the plan."""
    machine: Machine = Machine()
    numbers: dict[Kind, dict[str, Value]] = {}


class Record(Part, frozen=True, kw_only=True):
    """What `runs reproduce` takes of a report."""

    schema: str
    text_sha256: str = ""
    """Of the report's text above the record; empty where nobody vouches for it."""
    steps: Annotated[list[Step], msgspec.Meta(min_length=1, max_length=100)]

    @property
    def id(self) -> str:
        """What tells this record from others."""
        return hashlib.sha256(msgspec.json.encode(self.steps)).hexdigest()


def block(chain: list[Facts], text: str = "") -> str:
    """The record of a chain, oldest run first, as the last part of a report whose text is `text`.

    Empty where no run of the chain has done anything that could be done again.
    """
    from toolbox.report.portable import steps

    found = steps(chain)
    return write(Record(schema=SCHEMA, steps=found), text) if found else ""


def write(record: Record, text: str = "") -> str:
    """A record as Markdown, to stand below `text`."""
    record = msgspec.structs.replace(record, text_sha256=_digest(text) if text else record.text_sha256)
    json = msgspec.json.format(msgspec.json.encode(record), indent=1).decode()
    summary = _("The record: what `runs reproduce` reads to do all of this again and to compare every number")
    summary = re.sub("`(.+?)`", r"<code>\1</code>", summary)
    return f"<details>\n<summary>{summary}</summary>\n\n```json\n{json}\n```\n\n</details>"


def _digest(text: str) -> str:
    """A text's hash, but for what editors and the clipboard change: ends of lines, space there, and empty lines."""
    lines = (line.strip() for line in text.splitlines())
    return hashlib.sha256("\n".join(filter(None, lines)).encode()).hexdigest()


class Found(msgspec.Struct, frozen=True):
    """A record, and what was seen of the report around it."""

    record: Record
    edited: bool
    """Whether the text above it has changed since the record was written; of a page of HTML nobody knows."""


def read(path: Path) -> Found:
    """The record in the report at `path` (`-`: standard input).

    It is data from anybody: nothing in it is followed, loaded or run here. Raises InputError naming the line.
    """
    try:
        with sys.stdin.buffer if str(path) == "-" else path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(_("{path} can't be read: {reason}.").format(path=path, reason=error.strerror)) from error
    if len(data) > MOST_BYTES:
        raise InputError(
            _("{path} is larger than {size} MiB, which no report is.").format(path=path, size=MOST_BYTES >> 20)
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _wrong(path, data[: error.start].count(b"\n") + 1, _("it is not UTF-8")) from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if is_page := text.lstrip()[:9].lower() == "<!doctype":
        text = html.unescape(text)
    found = _found(path, "\n".join(line.rstrip() for line in text.split("\n")) + "\n")
    return Found(found.record, edited=False) if is_page else found


def _found(path: Path, text: str) -> Found:
    begins = list(BEGINS.finditer(text))
    if len(begins) != 1:
        raise InputError(
            _("{path} holds {count} records, and it takes one.").format(path=path, count=len(begins)),
            _("Take a report.md as `runs report` writes it; runs of this machine are named by their id."),
        )
    indent = begins[0][1]
    start = text.index("{", begins[0].start())
    end = text.find(f"\n{indent}}}\n", start)
    json = text[start:] if end < 0 else text[start : end + len(indent) + 2]
    record = _decoded(path, json, text[:start].count("\n") + 1)
    above = text[:start].rpartition("<details>")[0] or text[:start]
    return Found(record, bool(record.text_sha256) and record.text_sha256 != _digest(above))


def _decoded(path: Path, json: str, line: int) -> Record:
    """The record in a text that begins at `line` of the report."""
    try:
        record = msgspec.json.decode(json, type=Record)
    except RecursionError as error:
        raise _wrong(path, line, _("it is nested too deeply")) from error
    except msgspec.ValidationError as error:
        raise _wrong(path, line + _lines_to(json, str(error)), str(error)) from error
    except (msgspec.DecodeError, UnicodeError) as error:
        byte = re.search(r"byte (\d+)", str(error))
        before = json.encode()[: int(byte[1])] if byte else b""
        raise _wrong(path, line + before.count(b"\n"), str(error)) from error
    if record.schema != SCHEMA:
        raise InputError(
            _("The record in {path} is of the version {schema}, and this toolbox reads {known}.").format(
                path=path, schema=record.schema, known=SCHEMA
            ),
            _("Update this toolbox, or take the one that the report names."),
        )
    for place, step in enumerate(record.steps, 1):
        try:
            _check(step, place)
        except InputError as error:
            raise _wrong(path, line + _lines_to(json, f"`$.steps[{place - 1}]`"), str(error)) from error
    return record


def _lines_to(json: str, told: str) -> int:
    """How many lines lie before what msgspec calls `$.steps[2].model.name`, about: each step begins with its run."""
    place = 0
    found = re.search(r"`(\$[^`]*)`$", told.strip())
    for index, name in re.findall(r"\[(\d+)\]|\.(\w+)", found[1]) if found else []:
        for _skipped in range(int(index) + 1 if index and not place else 0):
            place = max(place, json.find('"run":', place + 1))
        if name and name != "steps":
            place = max(place, json.find(f'"{name}":', place))
    return json[:place].count("\n")


def _check(step: Step, place: int) -> None:
    """Raises InputError where a step names what comes later, or a place outside of what it may name."""
    for made in all_made(step):
        if made.step >= place:
            raise InputError(_("it builds on step {number}, which is none before it").format(number=made.step))
        _inside(made.path)
    if not 0 <= step.after < place:
        raise InputError(_("it builds on step {number}, which is none before it").format(number=step.after))
    folders: list[Folder] = [
        part for part in (step.model, step.base, step.judge, *step.adapters) if isinstance(part, Folder)
    ]
    for folder in folders:
        _named(folder.name, folder.source)
        for name in folder.files:
            _inside(name)
    for data in _data(step):
        _named(data.name, data.source)
    for general in step.repair.general if step.repair else ():
        _named(general, "hub")
    if decided := sorted(ELSEWHERE & step.settings.keys()):
        raise InputError(_("it sets {name}, which no report may").format(name=decided[0]))
    _settings(step.settings)


def all_made(step: Step) -> list[Made]:
    """What a step reads of earlier ones."""
    parts = [step.model, step.base, step.judge, *step.adapters, *(data.made for data in _data(step))]
    return [part for part in parts if isinstance(part, Made)]


def _data(step: Step) -> list[Data]:
    return [*step.datasets, *step.eval_datasets, *step.calibration, *step.suites]


def _inside(path: str) -> None:
    try:
        names.safe(path)
    except HubError as error:
        raise InputError(_("it names {text!r}, a place that it may not").format(text=path)) from error


def _named(name: str, source: str) -> None:
    """Raises InputError where a name leads elsewhere: local ones are names alone, others OWNER/NAME at most."""
    parts = re.split(r"[/\\]", name)
    if not name or ".." in parts or name.startswith(("/", "\\", "~", ".")) or (source == "local" and len(parts) > 1):
        raise InputError(_("it names {text!r}, a place that it may not").format(text=name))


ELSEWHERE = frozenset({
    "verb", "entry", "device", "version", "estimate", "why", "engine_why", "output", "python", "tensorboard", "cached",
    "host", "port", "api_keys", "limits", "plugins", "model", "base", "adapter", "adapters", "run", "suites",
    "endpoint", "endpoint_model", "judge", "judge_model", "backend", "arguments", "fetches", "datasets",
    "eval_datasets", "calibration",
})  # fmt: skip
"""Fields of plans that a record says otherwise, or that each machine decides anew: never among a step's settings."""
REACHING = ("trust_remote_code", "auto_mapping", "megatron_config", "megatron_core", "tokenizer_name_or_path")
"""Settings of libraries by which code or files of the machine would be loaded."""
FREE_TEXT = ("chat_template", "prompt_tuning_init_text")
PLACE = re.compile(r"^[/\\~]|^[A-Za-z]:[/\\]|(^|[/\\])\.\.([/\\]|$)|^\w+://")


def refuse_place(text: str) -> None:
    """Raises InputError where a text names a place on a machine or in a network."""
    if PLACE.search(text):
        raise InputError(_("it names {text!r}, a place that it may not").format(text=text[:80]))


def _settings(value: Any, name: str = "") -> None:
    """Look at every text in settings, whose names are checked too."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in REACHING and inner:
                raise InputError(_("it sets {name}, which no report may").format(name=key))
            _settings(inner, key)
    elif isinstance(value, list):
        for inner in value:
            _settings(inner, name)
    elif isinstance(value, str) and name not in FREE_TEXT:
        refuse_place(value)


def _wrong(path: Path, line: int, reason: str) -> InputError:
    return InputError(
        _("{path}, line {line}: the record can't be used: {reason}.").format(path=path, line=line, reason=reason),
        _("Copy the whole report again; edit the text above the record, never the record."),
    )
