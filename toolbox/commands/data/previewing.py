"""`data preview`: rows through the model's template, with what is learnt from marked by the very code that trains."""

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from toolbox.commands import Session
from toolbox.datasets import columns, resolve
from toolbox.errors import NotFoundError, ToolboxError, from_dict
from toolbox.i18n import _
from toolbox.runs import job_environ

if TYPE_CHECKING:
    from toolbox.commands.data import PreviewOptions

FIRST = 2
"""Rows that are shown where none were named."""
TIMEOUT_S = 300


def run(options: "PreviewOptions", session: Session) -> dict[str, Any]:
    """Encode the rows in a process of its own, since that takes torch, and show them."""
    from toolbox import models

    model = models.resolve(options.model, session.home)
    spec = resolve(options.dataset, session.home, columns.parse(options.columns), skip_broken=True)
    request = {"model": str(model.path), "dataset": spec, "rows": options.row or [], "first": FIRST}
    shown = _encoded({**request, "max_length": options.max_length})
    if missing := set(options.row) - {row["number"] for row in shown}:
        raise NotFoundError(
            _("{name} has no usable row {number}.").format(name=options.dataset, number=min(missing)),
            _("`data check` tells which rows can't be used, and why."),
        )
    for row in shown:
        _show(row, session)
    return {"dataset": options.dataset, "model": options.model, "kind": spec.kind, "rows": shown}


def _show(row: dict[str, Any], session: Session) -> None:
    for sequence in row["sequences"]:
        title = _("Row {number}").format(number=row["number"]) + (f", {sequence['name']}" if sequence["name"] else "")
        told = _("{tokens} tokens, {learnt} of them learnt").format(
            tokens=sequence["tokens"], learnt=sequence["learnt"]
        )
        session.say(f"── {title} · {told}")
        session.painted([(piece["style"], piece["text"]) for piece in sequence["pieces"]])
        if row["note"]:
            session.say(row["note"])


def _encoded(request: dict[str, Any]) -> list[dict[str, Any]]:
    """What toolbox/training/preview.py answers. Raises the error that it met."""
    done = None
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "toolbox.training.preview"],
            input=msgspec.json.encode(request, enc_hook=str), capture_output=True, env={**os.environ, **job_environ()},
            timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        answer = msgspec.json.decode(done.stdout.rpartition(b"\n")[2])
    except (subprocess.TimeoutExpired, msgspec.DecodeError) as error:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2] if done else str(error)
        raise ToolboxError(
            _("The rows could not be encoded: {reason}").format(reason=last),
            _("Check the installation: {command}").format(command="bash yichuidingyin.sh doctor"),
        ) from error
    if "error" in answer:
        raise from_dict(answer["error"])
    return list(answer["rows"])
