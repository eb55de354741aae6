"""What all tests share: a home folder of their own, the command line as a subprocess, quiet OpenMP threads."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pytest

# Set before torch is imported anywhere, here and in every child: spinning threads cost 20 times on shared cores.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

# Who starts the tests with `&` or nohup hands ignored signals down, and children would never hear the ones tests send.
# A handler is not inherited through exec, so children begin with the default; these here go on as they were.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"


class Answer(msgspec.Struct):
    """What a command line left: its exit status and both streams."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The `--json` object: the last line of standard output."""
        return msgspec.json.decode(self.out.rstrip().rpartition("\n")[2])

    def done(self) -> "Answer":
        """Itself, after a check that the command ended with 0."""
        assert self.status == 0, f"exit status {self.status}\n{self.out}\n{self.err}"
        return self


class Cli(Protocol):
    """`toolbox_cli("plan", "--json", input="", env={...})`: one command line in a process of its own."""

    def __call__(
        self, *words: str, input: str = "", env: dict[str, str] | None = None, timeout: float = 110
    ) -> Answer: ...


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the person who runs the tests reaches them: neither YCDY_*, nor the language, nor proxies."""
    for name in list(os.environ):
        if name.startswith("YCDY_") or name in ("LC_ALL", "LC_MESSAGES", "LANGUAGE") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LANG", "en_US.UTF-8")
    monkeypatch.setenv("YCDY_HOME", str(tmp_path / "home"))


@pytest.fixture(autouse=True)
def _english() -> Iterator[None]:
    """Each test starts in English, whatever language the one before chose."""
    from toolbox import i18n

    i18n.use("en")
    yield
    i18n.use("en")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The home folder of this test; `YCDY_HOME` names it already, here and in children."""
    return tmp_path / "home"


@pytest.fixture
def toolbox_environ(home: Path) -> dict[str, str]:
    """The environment that `toolbox_cli` runs in: for tests that start `python -P -m toolbox` themselves."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "COLUMNS": "100", "YCDY_HOME": str(home)}


@pytest.fixture
def toolbox_cli(toolbox_environ: dict[str, str], tmp_path: Path) -> Cli:
    """Runs `python -P -m toolbox WORD…` as a person's shell would, in an empty folder, without a terminal."""

    def call(*words: str, input: str = "", env: dict[str, str] | None = None, timeout: float = 110) -> Answer:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "toolbox", *words],
            cwd=tmp_path,
            env={**toolbox_environ, **(env or {})},
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """The path of a file of the real test data beside the repository; skips where it is absent."""

    def find(name: str) -> Path:
        path = SHARED_DATA / name
        if not path.exists():
            pytest.skip(f"{name} is not beside this repository")
        return path

    return find
