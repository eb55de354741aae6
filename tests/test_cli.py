"""The command line: words are told apart, what is wrong is one sentence with a remedy and exit status 2."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from conftest import Cli
from hypothesis import given
from hypothesis import strategies as st

from toolbox import cli
from toolbox.commands import VERBS
from toolbox.config import Home, Settings
from toolbox.errors import InputError
from toolbox.options import fields, option
from toolbox.ui import terminal, words
from toolbox.ui.terminal import Terminal
from toolbox.ui.text import cells, pad, wrap

ODD = [
    ";touch x",
    "$(touch x)",
    "`touch x`",
    "two\nlines",
    "-leading",
    'it\'s "quoted"',
    "模型",
    "a b",
    "../..",
    "%s{}",
]


class Sample(msgspec.Struct, kw_only=True):
    ids: Annotated[list[str], option("Ids", positional=True)] = msgspec.field(default_factory=list)
    model: Annotated[str, option("Model")] = ""
    dataset: Annotated[list[str], option("Data sets")] = msgspec.field(default_factory=list)
    max_length: Annotated[int, option("Length", ge=1)] = 8
    compare: Annotated[bool, option("Compare")] = True
    quick: Annotated[bool, option("Quick")] = False
    method: Annotated[Literal["auto", "lora"], option("Method")] = "auto"


FIELDS = fields(Sample)


@pytest.mark.parametrize(
    ("line", "typed"),
    [
        (["--model", "demo"], {"model": "demo"}),
        (["--model=demo"], {"model": "demo"}),
        (["--max_length", "4"], {"max_length": "4"}),
        (["--max-length=4"], {"max_length": "4"}),
        (["a", "--model", "m", "b"], {"ids": ["a", "b"], "model": "m"}),
        (["--dataset", "a", "b", "--model", "m"], {"dataset": ["a", "b"], "model": "m"}),
        (["--dataset", "a", "--dataset=b"], {"dataset": ["a", "b"]}),
        (["--quick"], {"quick": "yes"}),
        (["--quick", "no"], {"quick": "no"}),
        (["--quick", "a"], {"quick": "yes", "ids": ["a"]}),
        (["--no-compare"], {"compare": "no"}),
        (["--no_compare"], {"compare": "no"}),
        (["--max-length", "-1"], {"max_length": "-1"}),
        (["--model", "--x"], None),
        (["--model=--x"], {"model": "--x"}),
        (["--", "--model", "-x"], {"ids": ["--model", "-x"]}),
        (["--model="], {"model": ""}),
        (["-"], {"ids": ["-"]}),
        (["-x"], None),
        (["--modle", "x"], None),
        (["--model"], None),
    ],
)
def test_words(line: list[str], typed: dict[str, object] | None) -> None:
    if typed is None:
        with pytest.raises(InputError):
            words.split(line, FIELDS)
    else:
        assert words.split(line, FIELDS) == typed


@given(st.lists(st.text(max_size=8), max_size=6))
def test_any_words_are_split_or_refused(line: list[str]) -> None:
    with contextlib.suppress(InputError):
        assert set(words.split(line, FIELDS)) <= {field.name for field in FIELDS}


@given(st.text())
def test_any_value_reaches_its_option_untouched(value: str) -> None:
    assert words.split([f"--model={value}"], FIELDS) == {"model": value}
    assert words.split(["--", value], FIELDS) == {"ids": [value]}


def test_a_mistyped_option_names_the_near_one() -> None:
    with pytest.raises(InputError, match="no option --max-lenght") as refused:
        words.split(["--max-lenght", "4"], FIELDS)
    assert "--max-length" in refused.value.remedy


def test_common_options_stand_anywhere() -> None:
    for line in (
        ["--json", "--lang", "en", "runs", "list"],
        ["runs", "--json", "--lang=en", "list"],
        ["runs", "list", "--json", "--lang", "en"],
    ):
        command, _given, common = cli.understand(line)
        assert command.name == "runs list"
        assert (common.json, common.lang, common.yes) == (True, "en", False)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["finetun"], "Did you mean finetune?"),
        (["zzz"], "Verbs: download serve"),
        (["runs"], "Actions: list show"),
        (["runs", "lsit"], "Did you mean list?"),
        (["runs", "show"], "RUN is missing"),
        (["runs", "show", "a", "b"], "'b' is one word too many"),
        (["runs", "list", "--jsno"], "Did you mean --json"),
        (["--hoem", "x", "runs"], "Did you mean --home"),
        (["runs", "list", "--home"], "--home needs a value"),
        (["--lang", "fr", "runs", "list"], "It takes zh | en"),
        (["runs", "show", "nope"], "Runs: none yet"),
        (["config", "set", "source", "x"], "auto | modelscope | huggingface"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_a_remedy(toolbox_cli: Cli, line: list[str], said: str) -> None:
    answer = toolbox_cli(*line, "--json")
    assert answer.status == 2
    assert said in answer.err
    assert "Traceback" not in answer.err
    assert answer.err.splitlines()[0].startswith("✗ ")
    error = answer.json["error"]
    assert set(error) == {"kind", "message", "remedy"}
    assert error["message"]
    assert error["remedy"]


@pytest.mark.parametrize("line", [["finetun"], ["runs"], ["runs", "list", "--jsno"], ["runs", "list", "--home"]])
def test_in_chinese_nothing_of_the_sentences_is_english(toolbox_cli: Cli, line: list[str]) -> None:
    answer = toolbox_cli(*line, "--lang", "zh")
    assert answer.status == 2
    for sentence in answer.err.splitlines():
        assert any("\u4e00" <= character <= "\u9fff" for character in sentence), sentence


@pytest.mark.parametrize("value", ODD)
def test_odd_names_are_only_names(toolbox_cli: Cli, tmp_path: Path, value: str) -> None:
    answer = toolbox_cli("runs", "show", "--json", "--", value)
    assert answer.status == 2
    assert "Traceback" not in answer.err
    assert not (tmp_path / "x").exists()
    toolbox_cli("config", "set", "--", "tensorboard_dir", value).done()
    kept = toolbox_cli("config", "show", "--json").done().json["settings"]["tensorboard_dir"]
    assert kept == value.strip()


def test_a_name_that_is_not_utf8_is_refused(toolbox_environ: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "toolbox", "runs", "show", os.fsdecode("模型".encode("gbk"))],
        env=toolbox_environ, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert b"is not UTF-8" in done.stderr


def test_an_ascii_terminal_shows_something(toolbox_environ: dict[str, str]) -> None:
    environ = {**toolbox_environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "toolbox", "--lang", "zh", "nope"], env=environ, capture_output=True, check=False
    )
    assert done.returncode == 2
    assert b"nope" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_crash(toolbox_environ: dict[str, str]) -> None:
    command = f"{sys.executable} -P -m toolbox --help | head -1"
    done = subprocess.run(["bash", "-c", command], env=toolbox_environ, capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_help_names_every_verb_and_number(toolbox_cli: Cli) -> None:
    text = toolbox_cli("--help").done().out
    for verb in VERBS:
        assert f"{verb.number or '':>2}  {verb.name}" in text
    assert "--dry-run" in text


@pytest.mark.parametrize("language", ["zh", "en"])
def test_help_of_a_command_fits_and_aligns(toolbox_cli: Cli, language: str) -> None:
    assert "(one of , " not in (listing := toolbox_cli("cache", "list", "--help", "--lang", language).done().out)
    assert "model, dataset" in listing
    assert "可选 ," not in listing
    text = toolbox_cli("runs", "tail", "--help", "--lang", language).done().out
    assert "--log" in text
    assert "YCDY_RUNS_TAIL_OPTION" in text
    assert all(cells(line) <= 100 for line in text.splitlines())


def test_the_language_is_chosen_by_option_then_variable_then_setting_then_locale(toolbox_cli: Cli) -> None:
    english, chinese = "Usage:", "用法"
    assert english in toolbox_cli("--help").out
    assert chinese in toolbox_cli("--help", env={"LANG": "zh_CN.UTF-8"}).out
    toolbox_cli("config", "set", "lang", "zh").done()
    assert chinese in toolbox_cli("--help").out
    assert english in toolbox_cli("--help", env={"YCDY_LANG": "en"}).out
    assert chinese in toolbox_cli("--help", "--lang", "zh", env={"YCDY_LANG": "en"}).out


def test_torn_settings_are_said_and_the_defaults_hold(toolbox_cli: Cli, home: Path) -> None:
    toolbox_cli("config", "set", "source", "modelscope").done()
    (home / "settings.json").write_text('{"source": "model')
    answer = toolbox_cli("config", "show", "--json").done()
    assert answer.json["settings"]["source"] == "auto"
    assert "settings.json can't be read" in answer.err


def test_a_home_that_cannot_be_written_is_a_sentence(toolbox_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = toolbox_cli("config", "set", "lang", "zh", "--home", str(tmp_path / "file" / "home"))
    assert answer.status == 2
    assert "--home DIR" in answer.err


def test_what_nobody_foresaw_is_a_sentence_and_the_traceback_is_kept(toolbox_cli: Cli, home: Path) -> None:
    (home / "runs").parent.mkdir()
    (home / "runs").symlink_to(home / "runs")
    answer = toolbox_cli("runs", "report", "last", "--json")
    assert answer.status in (1, 2)
    assert "Traceback" not in answer.err


def test_config(toolbox_cli: Cli) -> None:
    shown = toolbox_cli("config", "set", "tensorboard-dir", "/tmp/logs", "--json").done().json
    assert shown["settings"]["tensorboard_dir"] == "/tmp/logs"
    toolbox_cli("config", "unset", "tensorboard_dir").done()
    assert toolbox_cli("config", "show", "--json").done().json["settings"]["tensorboard_dir"] == ""
    refused = toolbox_cli("config", "set", "nonsense", "1")
    assert refused.status == 2
    assert "tensorboard_dir" in refused.err
    dry = toolbox_cli("config", "set", "lang", "zh", "--dry-run", "--json").done()
    assert dry.json["settings"]["lang"] == "zh"
    assert toolbox_cli("config", "show", "--json").done().json["settings"]["lang"] == ""


@given(st.lists(st.sampled_from(["a", "two", "word", "显", "存，"]), max_size=30).map(" ".join), st.integers(4, 30))
def test_wrapped_text_fits_and_loses_nothing(text: str, width: int) -> None:
    lines = wrap(text, width)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(cells(line) <= width for line in lines)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_table_loses_no_character_however_narrow(
    home: Path, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "PIPE_WIDTH", width)
    columns = ("", "大小", "困惑度", "贪心解码的回答相同", "回答开头相同的词元")
    rows = [("导出后（transformers 5.23）", "2.0 MiB", "1.036", "6 / 6", "88 / 88")]
    Terminal(Home(home), Settings(), as_json=False, yes=True, dry_run=False).table("", columns, rows)
    shown = capsys.readouterr().out
    assert sorted("".join(shown.split()).replace("─", "")) == sorted("".join([*columns, *rows[0]]).replace(" ", ""))
    assert max(map(cells, shown.splitlines())) <= width


def test_columns_count_a_chinese_character_twice() -> None:
    assert cells("显存 GiB") == 8
    assert pad("显存", 6) == "显存  "
    assert wrap("一二三四，五六", 8) == ["一二三", "四，五六"]
    assert wrap("one two three", 7) == ["one two", "three"]
