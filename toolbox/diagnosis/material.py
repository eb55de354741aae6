"""Rules: what a job works with: disk, tokenizer, chat template, rows, weights, packages."""

import os
import re
from pathlib import Path

from toolbox import units
from toolbox.diagnosis.causes import Cause
from toolbox.diagnosis.traces import Traces
from toolbox.i18n import _, sentences

FULL = (
    r"No space left on device|Disk quota exceeded|\bos error (?:28|122|27)\b|File too large"
    r"|\[Errno (?:28|122|27)\]|PytorchStreamWriter failed writing file"
)
"""The system's words for ENOSPC, EDQUOT, EFBIG (glibc strerror), Rust's as safetensors passes them on, torch's."""
TOO_LARGE = r"File too large|\[Errno 27\]|os error 27"
TOKENIZER = (
    r"Can't load tokenizer for|Couldn't instantiate the backend tokenizer|Unable to load vocabulary from file"
    r"|Tokenizer class \S+ does not exist|does not appear to have a file named (?:tokenizer|vocab|merges|spiece)"
    r"|holds no tokenizer"
)
"""transformers (tokenization_utils_base.py, tokenization_utils_tokenizers.py, utils/hub.py, tokenization_auto.py)."""
TEMPLATE = r"tokenizer\.chat_template is not set|does not have a chat template|no chat template"
"""transformers (tokenization_utils_base.py), and what serving engines say."""
CORRUPT = (
    r"SafetensorError|HeaderTooLarge|MetadataIncompleteBuffer|InvalidHeaderDeserialization|incomplete metadata"
    r"|invalid load key|PytorchStreamReader failed|unexpected EOF, expected \d+ more bytes"
)
"""safetensors (tensor.rs), pickle, torch."""
NOTHING = r"Target modules .* not found in the base model|No modules were targeted for adaptation"
"""peft (tuners/tuners_utils.py, utils/other.py)."""
PACKAGE = (
    r"ModuleNotFoundError: No module named|requires the \S+ library but it was not found|ImportError: cannot import"
)


def disk_full(traces: Traces) -> Cause | None:
    evidence = [*traces.ended_with("disk"), *traces.said(FULL)]
    if not evidence:
        return None
    now = _("Now {free} are free there.").format(free=units.size(traces.free_bytes()))
    if not os.statvfs(traces.facts.run.path).f_favail:
        now = _("The disk has no inodes left: it holds too many files.")
    resumable = traces.status.resumable
    remedy = _("Free some space, or work in a folder on another disk (--home DIR).")
    if any(re.search(TOO_LARGE, line) for line in evidence):
        remedy = _("This shell limits how large a file may grow: see `ulimit -f`, and lift it.")
    return Cause(
        kind="disk_full",
        message=_("No more could be written to the disk."),
        evidence=[*evidence, now],
        remedy=sentences(remedy, _("Then go on from the last checkpoint.") if resumable else ""),
        command=traces.on_run("runs", "resume") if resumable else traces.command("cache", "clean"),
    )


def tokenizer(traces: Traces) -> Cause | None:
    evidence = [*traces.ended_with("tokenizer"), *traces.said(TOKENIZER)]
    if not evidence:
        return None
    path = Path(str(traces.facts.model.get("path") or ""))
    there = sorted(entry.name for entry in path.iterdir()) if str(path) != "." and path.is_dir() else []
    seen = [_("{path} holds: {files}").format(path=path, files=", ".join(there[:12]))] if there else []
    return Cause(
        kind="tokenizer",
        message=_("The model has no tokenizer, or one that can't be read."),
        evidence=[*evidence, *seen],
        remedy=_("Copy tokenizer.json and tokenizer_config.json from where the model came from, or fetch it again."),
        command=traces.command("download", str(traces.facts.model.get("id") or "OWNER/NAME")),
    )


def chat_template(traces: Traces) -> Cause | None:
    evidence = [*traces.ended_with("chat_template"), *traces.said(TEMPLATE)]
    if not evidence:
        return None
    command = traces.once_more()
    return Cause(
        kind="chat_template",
        message=_("The model has no chat template, so nobody knows how it takes a conversation."),
        evidence=evidence,
        remedy=_("Give it one with --chat-template (chatml, plain …), or take the model's -Instruct version."),
        command=f"{command} --chat-template chatml" if traces.verb == "finetune" else command,
    )


def rows(traces: Traces) -> Cause | None:
    evidence = traces.ended_with("data")
    if not evidence:
        return None
    names = [str(spec.get("name")) for spec in traces.facts.plan.get("datasets") or [] if isinstance(spec, dict)]
    return Cause(
        kind="bad_rows",
        message=_("Rows of the data can't be used."),
        evidence=evidence,
        remedy=traces.error.get("remedy", ""),
        command=traces.command("data", "check", *names),
    )


def corrupt(traces: Traces) -> Cause | None:
    evidence = [*traces.ended_with("corrupt"), *traces.said(CORRUPT)]
    if not evidence or traces.said(FULL):
        return None
    return Cause(
        kind="corrupt",
        message=_("A file is torn, or not what it should be."),
        evidence=evidence,
        remedy=_("Check the files of the model; what is torn is fetched again, the rest is kept."),
        command=traces.command("cache", "verify"),
    )


def adapter_on_nothing(traces: Traces) -> Cause | None:
    evidence = [*traces.said(NOTHING)]
    if not evidence:
        return None
    return Cause(
        kind="no_target",
        message=_("The adapter has nothing to sit on: the model has no modules of those names."),
        evidence=evidence,
        remedy=_("Let it take every linear layer, or name modules that the model has."),
        command=traces.once_more("LoraConfig.target_modules=all-linear"),
    )


def missing_package(traces: Traces) -> Cause | None:
    evidence = traces.said(PACKAGE)
    if not evidence:
        return None
    return Cause(
        kind="missing_package",
        message=_("A package is not installed, or does not go with the others."),
        evidence=evidence,
        remedy=_("Prepare the environment again; what a plugin needs beside it is installed by you."),
        command="bash yichuidingyin.sh --prepare",
        certainty="likely",
    )
