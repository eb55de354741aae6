"""The lock files: complete, hashed, of one mind, and of no machine in particular."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT

LOCKS = sorted((ROOT / "locks").glob("*.txt"))
PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*])?==(\S+)(.*)$", re.MULTILINE)


def pins(name: str) -> dict[str, str]:
    return {match[1].lower(): match[2] for match in PIN.finditer((ROOT / "locks" / f"{name}.txt").read_text())}


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_every_package_has_a_hash_and_nothing_names_a_place(path: Path) -> None:
    text = path.read_text()
    blocks = re.split(r"\n(?=\S)", text.partition("make locks\n")[2].rstrip())
    assert len(blocks) > 20
    assert all(PIN.match(block) and "--hash=sha256:" in block for block in blocks)
    assert not re.search(r"://|^--|^-[a-z]|/opt|/home|/root|@ file", text, re.MULTILINE)


def test_the_locks_agree_where_they_share_an_environment() -> None:
    cpu, cuda, dev = pins("cpu"), pins("cuda"), pins("dev")
    assert cpu["torch"] == cuda["torch"] + "+cpu"
    for other in (cuda, pins("macos"), dev):
        assert not {n: (v, cpu[n]) for n, v in other.items() if n in cpu and n != "torch" and v != cpu[n]}
    assert "torch" not in dev
    assert not [name for name in cpu if name.startswith("nvidia-cu") or name == "triton"]


def test_the_locks_hold_all_that_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {"cpu": project["project"]["dependencies"], **project["dependency-groups"]}
    for lock, requirements in wanted.items():
        held = pins(lock)
        for requirement in (text for text in requirements if isinstance(text, str)):
            name, _, version = requirement.partition("==")
            name = re.split(r"[\[<>=]", name)[0].lower().replace("_", "-")
            assert name in held, f"{lock}.txt lacks {name}: make locks"
            assert not version or held[name].removesuffix("+cpu") == version
