"""The front in a pseudo-terminal, as a person has it."""

import sys

import pexpect


def in_terminal(environ: dict[str, str], *words: str, columns: int = 100) -> "pexpect.spawn[str]":
    """`python WORDS` in a pseudo-terminal."""
    return pexpect.spawn(
        sys.executable, ["-P", *words], env={**environ, "TERM": "xterm-256color"}, encoding="utf-8",
        dimensions=(30, columns), timeout=100,
    )  # fmt: skip


def ctrl_c_once(front: "pexpect.spawn[str]") -> None:
    """Ctrl-C, after which the run saves, stops and says so, and the front ends with 130."""
    front.sendintr()
    front.expect("once more to quit at once")
    front.expect("Stopped after")
    front.expect(pexpect.EOF)
    front.close()
    assert front.exitstatus == 130
