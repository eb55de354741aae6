"""What went wrong, as a person reads it: one sentence and a remedy, whatever was raised."""

import os
import sys
import traceback

from toolbox import files, plugins
from toolbox.config import Home
from toolbox.errors import Interrupted, ToolboxError
from toolbox.i18n import _
from toolbox.ui.terminal import plain, print_json


def complain(error: BaseException, home: Home, as_json: bool) -> int:
    """Say it on standard error, under `--json` also as the last line of standard output; returns the exit status."""
    known = foreseen(error, home)
    print(plain(f"✗ {_line(known.message)}"), file=sys.stderr)
    for line in filter(None, [known.remedy, *getattr(known, "__notes__", ())]):
        print(plain(f"  → {_line(line)}"), file=sys.stderr)
    sys.stderr.flush()
    if as_json:
        print_json({"error": known.as_dict()})
    return known.exit_status


def _line(sentence: str) -> str:
    """In one line, whatever is in the names it repeats."""
    return " ".join(sentence.splitlines())


def foreseen(error: BaseException, home: Home) -> ToolboxError:
    """`error` itself where it is one of ours; else the one that says it in a sentence."""
    if isinstance(error, ToolboxError):
        return error
    if isinstance(error, KeyboardInterrupt | EOFError):
        return Interrupted(_("Interrupted."))
    if broken := plugins.blame(error):
        return broken
    if isinstance(error, OSError) and error.strerror:
        where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        return ToolboxError(": ".join(filter(None, [where, error.strerror])) + ".", _told(error, home))
    return ToolboxError(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}", _told(error, home))


def _told(error: BaseException, home: Home) -> str:
    """Keep the traceback where it can be asked for; where even that fails, the sentence has to do."""
    path = home.path / "crash.txt"
    try:
        files.write_text(path, "".join(traceback.format_exception(error)))
    except OSError:
        return ""
    return _("The whole story is in {log}.").format(log=path)
