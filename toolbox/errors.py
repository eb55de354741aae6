"""Every error a person can meet: one sentence, a remedy, an exit status."""

import re
from typing import ClassVar

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses: done; failed while working; what was asked can't be done; interrupted."""


class ToolboxError(Exception):
    """Work that failed: a sentence, and a remedy that says what to do about it, both in the person's language."""

    kind: ClassVar[str] = "failed"
    exit_status: ClassVar[int] = FAILED

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return "\n".join(filter(None, [self.message, self.remedy]))

    def as_dict(self) -> dict[str, str]:
        """The `error` object of `--json` and of status.json."""
        return {"kind": self.kind, "message": self.message, "remedy": self.remedy}


class InputError(ToolboxError):
    """What was asked can't be done: a wrong option, a missing file, a broken row."""

    kind = "input"
    exit_status = REFUSED


class DataError(InputError):
    """A row that can't be used, or too few that can."""

    kind = "data"


class TemplateError(InputError):
    """A conversation for a model of which nobody knows how it takes one."""

    kind = "chat_template"


class TokenizerError(InputError):
    """A model without a tokenizer."""

    kind = "tokenizer"


class NotFoundError(InputError):
    """A model, data set, run, recipe or file that is not there."""

    kind = "not_found"


class DoesNotFitError(InputError):
    """The device's memory or the disk is too small; the message carries both figures."""

    kind = "does_not_fit"


class BusyError(InputError):
    """Somebody else holds it: a port, a run that is already running, a download under way."""

    kind = "busy"


class HubError(ToolboxError):
    """A model hub can't be reached, or what it sent is not what it announced."""

    kind = "hub"


class CorruptError(ToolboxError):
    """A file that is torn, or whose hash is wrong."""

    kind = "corrupt"


class OutOfMemoryError(ToolboxError):
    """The device ran out of memory while working."""

    kind = "out_of_memory"


class DiskError(ToolboxError):
    """The disk, or what this user may write to it, is full."""

    kind = "disk"


class LostGpuError(ToolboxError):
    """The GPU no longer answers: it fell off the bus, or has to be reset."""

    kind = "gpu_lost"


class DivergedError(ToolboxError):
    """The loss became NaN or infinite."""

    kind = "diverged"


class EngineError(ToolboxError):
    """A serving engine could not be started, or died."""

    kind = "engine"


class Interrupted(ToolboxError):
    """Stopped by a signal or by the person; what was done so far is saved."""

    kind = "interrupted"
    exit_status = INTERRUPTED


MAY_LACK_MEMORY = (MemoryError, RuntimeError, OSError, OutOfMemoryError)
"""The classes of errors that `lacks_memory` may say yes to; torch's own are RuntimeErrors."""
_LACKING = re.compile(r"out of memory|not enough memory|can(?:'|no)t allocate memory|alloc_failed|bad_alloc", re.I)
"""torch's words on a processor and Metal's, where they are plain RuntimeErrors; the system's, cuBLAS's, C++'s."""


def lacks_memory(error: BaseException) -> bool:
    """Whether an error means that the device, or the machine, had no memory left."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, MAY_LACK_MEMORY) and bool(_LACKING.search(str(error)))


def from_dict(error: dict[str, str]) -> ToolboxError:
    """The error that `as_dict` described, of its own class again, so that the exit status is its own."""
    families = [ToolboxError]
    for family in families:
        families += family.__subclasses__()
    kind = next((family for family in families if family.kind == error.get("kind")), ToolboxError)
    return kind(error.get("message", ""), error.get("remedy", ""))
