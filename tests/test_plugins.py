"""Plugins: named like built-ins; a broken one is one sentence with its file, line and reason."""

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolbox import plugins
from toolbox.errors import InputError, NotFoundError


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """What a test loads is gone after it."""
    before, files, modules = dict(plugins._registered), dict(plugins._files), set(sys.modules)
    yield
    for known, old in ((plugins._registered, before), (plugins._files, files)):
        known.clear()
        known.update(old)  # type: ignore[call-overload]
    for name in set(sys.modules) - modules:
        if name.startswith("plugin_"):
            del sys.modules[name]
    plugins._entry_points.cache_clear()
    plugins._of_package.cache_clear()


def write(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text).lstrip())
    return path


REWARD = """
    from toolbox.plugins import register

    @register("reward", "short")
    def short(prompts, completions, **columns):
        return [1 / (1 + len(text)) for text in completions]
"""


def test_every_built_in_is_there() -> None:
    for kind, table in plugins.BUILT_IN.items():
        for name in table:
            assert plugins.find(kind, name) is not None, (kind, name)


def test_what_a_file_registers_is_found_by_its_name(tmp_path: Path) -> None:
    file = plugins.load(write(tmp_path, REWARD))
    assert plugins.find("reward", "short")(["?"], ["abc"]) == [0.25]
    assert plugins.added("reward") == plugins.of_files("reward") == ["short"]
    assert plugins.load(file.path) == file, "the second time nothing is run, so no name is taken"
    with pytest.raises(NotFoundError, match="no reward function 'shor'") as error:
        plugins.find("reward", "shor")
    assert "short" in error.value.remedy
    with pytest.raises(InputError, match="not the one that was planned with"):
        plugins.load(file.path, sha256="0" * 64)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("x = 1\ndef f(:\n", 2, "SyntaxError"),
        ("x = 1\n\nimport no_such_module\n", 3, "No module named 'no_such_module'"),
        ("def f():\n    return 1 / 0\n\nf()\n", 2, "ZeroDivisionError"),
        ("raise SystemExit(3)\n", 1, "SystemExit: 3"),
        ("from toolbox.plugins import register\nregister('stage', 'sft')(lambda plan: None)\n", 2, "is there already"),
        ("from toolbox.plugins import register\nregister('reward', 'r')(lambda texts: [])\n", 2, r"\(prompts, compl"),
        ("from toolbox.plugins import register\nregister('loss', 'mine')(lambda a, b: a)\n", 2, "dpo.NAME or sft.NAME"),
    ],
)
def test_a_broken_file_is_one_sentence_with_its_line(tmp_path: Path, text: str, line: int, reason: str) -> None:
    good = "from toolbox.plugins import register\nregister('reward', 'kept')(lambda prompts, completions, **c: [])\n"
    plugins.load(write(tmp_path, good, "good.py"))
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=reason) as error:
        plugins.load(path)
    assert f"{path} is broken, line {line}:" in error.value.message
    assert plugins.added("reward") == ["kept"]
    assert str(path) not in plugins._files


def test_a_name_is_taken_by_the_file_that_had_it_first(tmp_path: Path) -> None:
    first = plugins.load(write(tmp_path, REWARD))
    with pytest.raises(InputError, match=f"from {first.path}"):
        plugins.load(write(tmp_path, REWARD, "second.py"))


def test_what_goes_wrong_later_is_blamed_on_the_plugins_own_line(tmp_path: Path) -> None:
    path = write(tmp_path, REWARD.replace("1 / (1 + len(text))", "1 / len(text)"))
    plugins.load(path)
    with pytest.raises(ZeroDivisionError) as error:
        plugins.find("reward", "short")(["?"], [""])
    blamed = plugins.blame(error.value)
    assert blamed is not None
    assert f"{path} is broken, line 5: ZeroDivisionError" in blamed.message
    assert plugins.blame(ValueError("of somebody else")) is None


def test_an_installed_package_is_named_listed_and_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, REWARD.replace('@register("reward", "short")', ""), "packaged.py")
    information = tmp_path / "packaged-1.5.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: packaged\nVersion: 1.5\n")
    (information / "entry_points.txt").write_text(
        "[yichuidingyin.reward]\nbrief = packaged:short\ngone = packaged:gone\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins._entry_points.cache_clear()
    assert ("reward", "brief", "packaged 1.5") in plugins.packages()
    assert "packaged" not in sys.modules, "to be listed, nothing is imported"
    assert plugins.find("reward", "brief")(["?"], [""]) == [1.0]
    with pytest.raises(InputError, match=r"'gone' of the package packaged \(packaged:gone\) is broken: AttributeError"):
        plugins.find("reward", "gone")
