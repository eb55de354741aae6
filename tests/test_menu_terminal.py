"""The menu in a real pseudo-terminal: numbers, arrows, 0, q, Ctrl-C, both languages."""

import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

UP, DOWN, ENTER, ESCAPE, CTRL_C, CTRL_D = "\x1b[A", "\x1b[B", "\r", "\x1b", "\x03", "\x04"
READY = "0 or q leaves"
Open = Callable[..., pexpect.spawn]


@pytest.fixture
def menu(toolbox_environ: dict[str, str], tmp_path: Path) -> Iterator[Open]:
    """Opens the menu and waits for its first screen."""
    opened: list[pexpect.spawn] = []

    def call(*words: str, ready: str = READY, columns: int = 100, **environ: str) -> pexpect.spawn:
        child = pexpect.spawn(
            sys.executable, ["-P", "-m", "toolbox", *words], cwd=tmp_path, encoding="utf-8", timeout=60,
            env={**toolbox_environ, "TERM": "xterm-256color", **environ}, dimensions=(40, columns),
        )  # fmt: skip
        opened.append(child)
        child.expect(ready)
        return child

    yield call
    for child in opened:
        child.close(force=True)


def left(child: pexpect.spawn) -> int:
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus


def chosen(child: pexpect.spawn, title: str) -> None:
    child.expect("› " + re.escape(title))


def test_a_two_digit_number_chooses_at_once(menu: Open) -> None:
    child = menu()
    child.send("10")
    chosen(child, "Runs: list")
    child.send("1")
    child.expect("There are no runs")
    child.expect("Press Enter")
    child.send(ENTER)
    child.expect(READY)
    child.send("q")
    assert left(child) == 0


def test_one_digit_waits_a_moment_for_a_second(menu: Open) -> None:
    child = menu()
    child.send("1")
    chosen(child, "Download")
    child.send(CTRL_C)
    child.expect(READY)
    child.send("1" + ENTER)
    chosen(child, "Download")


def test_arrows_choose_and_wrap_around(menu: Open) -> None:
    child = menu()
    child.send(UP + UP)
    child.expect("❯ 13")
    child.send(DOWN + DOWN + DOWN)
    child.expect("❯  2")
    child.send(UP + ENTER)
    chosen(child, "Download")


@pytest.mark.parametrize("back", ["0", ESCAPE, CTRL_C, CTRL_D], ids=["0", "escape", "ctrl-c", "ctrl-d"])
def test_every_way_back_from_a_list(menu: Open, back: str) -> None:
    child = menu()
    child.send("10")
    chosen(child, "Runs: list")
    child.send(back)
    child.expect(READY)
    child.send(back)
    assert left(child) == 0


def test_every_way_back_from_a_question(menu: Open) -> None:
    child = menu()
    for back in ("0", ESCAPE, CTRL_C, CTRL_D):
        child.send("1" + ENTER)
        child.expect("OWNER/NAME")
        child.send(back)
        child.expect(READY)


def test_q_leaves_from_anywhere(menu: Open) -> None:
    child = menu()
    child.send("10")
    chosen(child, "Runs: list")
    child.send("q")
    assert left(child) == 0
    child = menu()
    child.send("1" + ENTER)
    child.expect("OWNER/NAME")
    child.send("q" + ENTER)
    assert left(child) == 0


def test_l_switches_the_language_there_and_back(menu: Open) -> None:
    child = menu()
    child.send("l")
    child.expect("请选择")
    child.expect("0 或 q 退出")
    child.send("l")
    child.expect(READY)


def test_chinese_from_lang(menu: Open) -> None:
    child = menu(ready="0 或 q 退出", LANG="zh_CN.UTF-8")
    child.send("10")
    chosen(child, "任务")


def test_keys_that_mean_nothing_do_nothing(menu: Open) -> None:
    child = menu()
    child.send("zé中\x1b[15~19")
    child.send("11")
    chosen(child, "Check this machine")


def test_a_wrong_answer_is_asked_again_and_ctrl_c_still_goes_back(menu: Open) -> None:
    child = menu()
    child.send("1" + ENTER)
    child.expect("OWNER/NAME")
    child.send("2")
    child.expect("›")
    child.send(ENTER)
    child.expect("An answer is needed")
    child.expect("0 back")
    child.send(CTRL_C)
    child.expect(READY)


def test_odd_names_are_only_names(menu: Open, tmp_path: Path) -> None:
    child = menu()
    for number, name in enumerate([";touch x", "$(touch x)", "-leading", 'it\'s "quoted"', "模型"]):
        child.send("10")
        chosen(child, "Runs: list")
        child.send("2")
        child.expect("something else")
        child.send("2" if number else "1")  # the last answer stands first from the second time on
        child.expect("or last › ")
        child.send(name + ENTER)
        child.expect("There is no single run")
        child.expect("Press Enter")
        child.send(ENTER)
        child.expect(READY)
    assert not (tmp_path / "x").exists()


def test_a_narrow_terminal_shows_the_menu(menu: Open) -> None:
    child = menu(columns=30, COLUMNS="30")
    child.send("q")
    assert left(child) == 0


def test_a_lost_terminal_ends_the_menu(menu: Open) -> None:
    child = menu()
    child.kill(signal.SIGHUP)
    child.expect(pexpect.EOF)
    child.close()
    assert child.signalstatus == signal.SIGHUP


def test_a_path_is_typed_or_pasted_where_a_list_is_shown(menu: Open) -> None:
    child = menu()
    for path in ("/quite/new.jsonl", "\x1b[200~/quite/new.jsonl\x1b[201~"):
        child.send("3")
        child.expect("Base model")
        child.send("1")
        child.expect("Data sets")
        child.send(path)
        child.expect("/quite/new.jsonl")
        child.send(ENTER)
        child.expect("Stage of training")
        child.send(CTRL_C)
        child.expect(READY)


@pytest.mark.slow
def test_a_whole_finetune_by_keys(menu: Open, home: Path) -> None:
    child = menu()
    child.send("3")
    child.expect("Base model")
    child.send("1")
    child.expect("Data sets")
    child.send("1")
    child.expect("Stage of training")
    child.send(ENTER)
    child.expect("Method of tuning")
    child.send(DOWN + ENTER)
    child.expect("finetune --dataset demo-persona --method lora")
    child.expect("Start?")
    child.send(ENTER)
    child.expect("100/100", timeout=300)
    child.expect("Press Enter", timeout=60)
    child.send(ENTER)
    child.expect(READY)
    assert list(home.glob("runs/*/adapter/adapter_model.safetensors"))
