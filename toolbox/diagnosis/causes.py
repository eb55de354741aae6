"""What a diagnosis says: a cause, how sure it is, what shows it, and what to do."""

from typing import Literal

import msgspec

Certainty = Literal["certain", "likely", "possible"]


class Cause(msgspec.Struct, kw_only=True, frozen=True):
    """Why a run failed, or is odd."""

    kind: str
    """For scripts, as `out_of_memory`."""
    message: str
    evidence: list[str]
    """Lines of the run's files, each with its place, or facts of the machine."""
    remedy: str
    command: str = ""
    """A line that can be copied as it stands; empty where there is none."""
    certainty: Certainty = "certain"
