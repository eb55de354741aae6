"""The menu without a terminal: numbered lines out, lines in."""

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from conftest import Cli

from toolbox import cli
from toolbox.commands import VERBS, Command
from toolbox.commands.comparing import CompareOptions
from toolbox.commands.export import ExportOptions
from toolbox.config import Home
from toolbox.menu.prompts import Back, Entry, Lines, Quit
from toolbox.menu.questions import Questions, Texts, command_line, remembered
from toolbox.options import option

ODD = [";touch x", "$(touch x)", "two\nlines", "-leading", 'it\'s "quoted"', "模型", "a b"]


class Given(msgspec.Struct, kw_only=True):
    model: Annotated[str, option("Model", ask=True)]
    datasets: Annotated[list[str], option("Data", ask=True, positional=True)] = msgspec.field(default_factory=list)
    epochs: Annotated[float, option("Epochs", ask=True, ge=0)] = 3.0
    method: Annotated[Literal["auto", "lora", "qlora"], option("Method", ask=True)] = "auto"
    packing: Annotated[bool, option("Packing", ask=True)] = False
    api_key: Annotated[str, option("Key", ask=True, secret=True)] = ""
    seed: Annotated[int, option("Seed")] = 42


COMMAND = Command("try", "Try", Given, lambda options, session: {})


class Scripted:
    """A person who answers from a list, and remembers what was asked."""

    def __init__(self, *answers: str) -> None:
        self._answers = list(answers)
        self.offered: list[tuple[str, Sequence[Entry], int]] = []
        self.defaults: list[str] = []

    def choose(self, question: str, entries: Sequence[Entry], at: int, footer: str, free: bool = False) -> str:
        self.offered.append((question, entries, at))
        answer = self._answers.pop(0)
        return next((entry.value for entry in entries if entry.key == answer), answer)

    def text(self, question: str, default: str, secret: bool = False, paths: bool = False) -> str:
        self.defaults.append(default)
        return self._answers.pop(0)

    def pause(self) -> None: ...


def ask(home: Path, *answers: str, last: dict[str, str] | None = None) -> tuple[Texts, Scripted, list[str]]:
    person, said = Scripted(*answers), []
    texts = Questions(person, Home(home), said.append).ask(COMMAND, last or {})
    return texts, person, said


def test_empty_answers_are_defaults(tmp_path: Path) -> None:
    texts, _person, _said = ask(tmp_path, "demo", "", "", "1", "2", "")
    assert texts == {"model": "demo", "method": "auto", "packing": "no"}
    assert command_line(COMMAND, texts) == "bash yichuidingyin.sh try --model demo"


def test_last_answers_are_offered_and_taken(tmp_path: Path) -> None:
    last = {"model": "m", "epochs": "2", "method": "qlora", "datasets": "a,b"}
    texts, person, _said = ask(tmp_path, "", "", "", "3", "1", "", last=last)
    assert texts == {"model": "m", "datasets": ["a", "b"], "epochs": "2", "method": "qlora", "packing": "yes"}
    assert person.defaults[:3] == ["m", "a,b", "2"]
    assert person.offered[0][2] == 2


def test_a_wrong_answer_is_said_and_asked_again(tmp_path: Path) -> None:
    texts, _person, said = ask(tmp_path, "", "demo", "", "many", "-1", "5", "1", "2", "")
    assert texts["epochs"] == "5"
    assert len(said) == 3
    assert "--epochs can't be 'many'" in said[1]


@pytest.mark.parametrize(("typed", "leaves"), [("0", Back), ("q", Quit)])
def test_0_and_q_leave_a_question(tmp_path: Path, typed: str, leaves: type[Exception]) -> None:
    with pytest.raises(leaves):
        ask(tmp_path, typed)


def test_0_is_a_number_where_the_option_takes_it(tmp_path: Path) -> None:
    texts, _person, _said = ask(tmp_path, "demo", "", "0", "1", "2", "")
    assert texts["epochs"] == "0"


def test_a_secret_is_neither_remembered_nor_shown(tmp_path: Path) -> None:
    texts, _person, said = ask(tmp_path, "demo", "", "", "1", "2", "canary")
    assert texts["api_key"] == "canary"
    assert "canary" not in command_line(COMMAND, texts)
    assert "--api-key" in command_line(COMMAND, texts)
    assert "api_key" not in remembered(COMMAND, texts)
    assert not any("canary" in text for text in said)


@pytest.mark.parametrize("value", ODD)
def test_the_shown_line_is_what_was_answered(value: str) -> None:
    texts: Texts = {"model": value, "datasets": [value, "b"], "epochs": "5"}
    words = shlex.split(command_line(COMMAND, texts))
    assert words[:2] == ["bash", "yichuidingyin.sh"]
    typed = cli.words.split(words[3:], cli.options.fields(Given))
    assert typed == texts


def test_choices_of_models_and_runs(tmp_path: Path) -> None:
    class Chosen(msgspec.Struct, kw_only=True):
        model: Annotated[str, option("Model", ask=True, choices="models")] = "demo"
        run: Annotated[str, option("Run", ask=True, choices="runs")] = ""

    (tmp_path / "models" / "Qwen" / "Tiny").mkdir(parents=True)
    (tmp_path / "models" / "Qwen" / "Tiny" / "config.json").write_text("{}")
    command = Command("try", "Try", Chosen, lambda options, session: {})
    person = Scripted("2", "1")
    texts = Questions(person, Home(tmp_path), print).ask(command, {})
    assert [entry.value for entry in person.offered[0][1]][:2] == ["demo", "Qwen/Tiny"]
    assert texts == {"model": "Qwen/Tiny"}
    person = Scripted("3", "~/own", "1")
    texts = Questions(person, Home(tmp_path), print).ask(command, {})
    assert texts == {"model": str(Path("~/own").expanduser())}


def test_the_types_offered_are_those_of_the_format(tmp_path: Path) -> None:
    command = Command("export", "Export", ExportOptions, lambda options, session: {})
    person = Scripted("demo", "bnb", "2", str(tmp_path / "new"))
    texts = Questions(person, Home(tmp_path), print).ask(command, {"type": "q4_0"})
    types = next(entries for question, entries, _at in person.offered if "q8_0" in question)
    assert [entry.value for entry in types] == ["", "int8"]
    assert texts["type"] == "int8"
    assert remembered(command, texts).keys() == texts.keys() - {"output"}


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def feed(text: str) -> None:
        import io

        monkeypatch.setattr("sys.stdin", io.StringIO(text))

    return feed


def test_lines_choose_by_number_by_value_or_freely(typed: Callable[[str], None]) -> None:
    said: list[str] = []
    lines, entries = Lines(said.append), [Entry("1", "One", "one"), Entry("10", "Ten", "ten")]
    typed("10\none\nx\n1\nanything\n\n")
    chosen: list[Any] = [lines.choose("?", entries, 0, "") for _ in range(3)]
    assert chosen == ["ten", "one", "one"]
    assert "'x' is none of these." in said
    assert lines.choose("?", entries, 0, "", free=True) == "anything"
    assert lines.choose("?", entries, 1, "") == "ten"
    with pytest.raises(Back):
        lines.choose("?", entries, 0, "")


def test_a_pipe_runs_a_verb_and_leaves(toolbox_cli: Cli) -> None:
    answer = toolbox_cli(input="10\n1\n0\n").done()
    assert "There are no runs" in answer.out
    assert "bash yichuidingyin.sh runs list" in answer.out
    assert answer.out.count("0 or q leaves") == 2
    assert answer.err == ""


@pytest.mark.slow
def test_the_self_check_through_a_pipe(toolbox_cli: Cli) -> None:
    answer = toolbox_cli(input="11\n0\n").done()
    assert "bash yichuidingyin.sh doctor" in answer.out
    assert "Traceback" not in answer.err


@pytest.mark.parametrize("lines", ["", "0\n", "q\n", "10\n0\n0\n", "10\nq\n", "10\n", "99\n0\n", "99"])
def test_every_way_out_ends_with_0(toolbox_cli: Cli, lines: str) -> None:
    answer = toolbox_cli(input=lines).done()
    assert answer.err == ""
    if "99" in lines:
        assert "'99' is none of these." in answer.out


def test_numbers_keep_their_meaning(toolbox_cli: Cli) -> None:
    shown = toolbox_cli(input="0\n").done().out
    for verb in VERBS:
        assert (f"{verb.number:>2}  {verb.summary}  ({verb.name})" in shown) == bool(verb.number)
    fixed = {1: "download", 2: "serve", 3: "finetune", 4: "merge", 5: "evaluate", 6: "chat", 7: "plan", 8: "export",
             9: "data", 10: "runs", 11: "doctor", 12: "demo", 13: "models"}  # fmt: skip
    assert all(fixed[verb.number] == verb.name for verb in VERBS if verb.number)


def test_a_failure_is_said_and_the_menu_goes_on(toolbox_cli: Cli) -> None:
    answer = toolbox_cli(input="10\n2\nnope\n10\n1\n0\n").done()
    assert "There is no single run 'nope'" in answer.err
    assert "There are no runs" in answer.out


def test_the_language_is_switched_and_kept(toolbox_cli: Cli) -> None:
    answer = toolbox_cli(input="l\n0\n").done()
    assert "请选择" in answer.out
    assert "请选择" in toolbox_cli(input="").done().out


def test_answers_come_back_as_defaults(toolbox_cli: Cli, home: Path) -> None:
    toolbox_cli(input="10\n2\nnope\n0\n").done()
    assert (home / "answers.json").stat().st_mode & 0o777 == 0o600
    answer = toolbox_cli(input="10\n2\n\n0\n").done()
    assert "There is no single run 'nope'" in answer.err


@pytest.mark.parametrize("torn", ["{", "[]", '{"runs show": 3}', '{"runs show": {"run": 3}}'])
def test_torn_answers_are_forgotten(toolbox_cli: Cli, home: Path, torn: str) -> None:
    home.mkdir()
    (home / "answers.json").write_text(torn)
    answer = toolbox_cli(input="10\n2\nnope\n0\n").done()
    assert "answers.json can't be read" in answer.out + answer.err
    assert "There is no single run 'nope'" in answer.err


def test_odd_answers_are_only_names(toolbox_cli: Cli, tmp_path: Path) -> None:
    odd = [value for value in ODD if "\n" not in value]
    answer = toolbox_cli(input="".join(f"10\n2\n{value}\n" for value in odd) + "0\n").done()
    assert answer.err.count("There is no single run") == len(odd)
    assert "Traceback" not in answer.err
    assert not (tmp_path / "x").exists()


def test_a_broken_driver_is_a_reason_and_the_menu_opens(toolbox_cli: Cli, tmp_path: Path) -> None:
    broken = tmp_path / "libs"
    broken.mkdir()
    (broken / "libnvidia-ml.so.1").write_bytes(b"not a library")
    answer = toolbox_cli(input="0\n", env={"LD_LIBRARY_PATH": str(broken)}).done()
    assert "What shall be done?" in answer.out
    assert "Traceback" not in answer.err


def test_a_model_is_asked_for_only_where_no_run_was_named(tmp_path: Path) -> None:
    class Chosen(msgspec.Struct, kw_only=True):
        model: Annotated[str, option("Model", ask=True, choices="models", unless="run")] = ""
        run: Annotated[str, option("Run", ask=True, choices="tuned")] = ""

    command = Command("try", "Try", Chosen, lambda options, session: {})
    run = tmp_path / "runs" / "20260101-0000-sft"
    run.mkdir(parents=True)
    (run / "plan.yaml").write_text("")
    (run / "result.json").write_text('{"adapter": "x"}')
    assert Questions(Scripted("1"), Home(tmp_path), print).ask(command, {}) == {"run": run.name}
    assert Questions(Scripted("2", "1"), Home(tmp_path), print).ask(command, {}) == {"model": "demo"}


def test_only_data_for_training_are_offered(tmp_path: Path) -> None:
    class Chosen(msgspec.Struct, kw_only=True):
        dataset: Annotated[list[str], option("Data", ask=True, choices="datasets")]

    person = Scripted("1")
    command = Command("try", "Try", Chosen, lambda options, session: {})
    assert Questions(person, Home(tmp_path), print).ask(command, {}) == {"dataset": ["demo-persona"]}
    assert [entry.value for entry in person.offered[0][1] if not entry.quiet] == ["demo-persona"]


def test_a_home_that_cannot_be_made_still_has_a_menu(toolbox_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = toolbox_cli("--home", str(tmp_path / "file" / "home"), input="l\n7\n\n\n\n\n\n0\n").done()
    assert "请选择" in answer.out
    assert "cpu-tiny" in answer.out


def test_a_comparison_offers_the_newest_run_beside_each_of_its_verb(tmp_path: Path) -> None:
    for age, (name, verb) in enumerate([("new", "finetune"), ("merged", "merge"), ("old", "finetune")]):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        (run / "plan.yaml").write_text("")
        (run / "status.json").write_bytes(msgspec.json.encode({"verb": verb, "state": "done"}))
        os.utime(run / "plan.yaml", (1e9 - age, 1e9 - age))
    command = Command("runs compare", "Compare", CompareOptions, lambda options, session: {})
    assert Questions(Scripted("1"), Home(tmp_path), print).ask(command, {}) == {"runs": ["new", "old"]}
