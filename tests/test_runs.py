"""Runs: every state, every way to end one, from this terminal and from others."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest
from conftest import Cli
from plans import finetune_plan, finetune_run
from serving_help import plan as serve_plan
from terminals import ctrl_c_once, in_terminal

from toolbox import files, runs
from toolbox.commands import reproducing
from toolbox.errors import Interrupted, ToolboxError
from toolbox.runs import Run, Status
from toolbox.ui import Terminal, following

Make = Callable[..., Run]


def wait(until: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not until():
        assert time.monotonic() < end, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.05)


def ended(run: Run) -> None:
    wait(lambda: run.status().finished and not run.alive(), "the end")


def stepping(run: Run) -> Callable[[], bool]:
    return lambda: any(True for _line in run.metrics())


@pytest.fixture
def make(home: Path) -> Iterator[Make]:
    """Makes a run of `tests.jobs:WORK` that takes `steps`; whatever still runs at the end is killed."""
    made: list[Run] = []

    def call(work: str, steps: int = 5, start: bool = True) -> Run:
        run = finetune_run(home, entry=f"tests.jobs:{work}", max_steps=steps)
        made.append(run)
        if start:
            run.start()
        return run

    yield call
    for run in [*made, *runs.every(home / "runs")]:
        run.stop(force=True)


def test_a_run_goes_from_planned_over_running_to_done(make: Make, toolbox_cli: Cli) -> None:
    run = make("count", start=False)
    assert run.status().state == "planned"
    run.start()
    assert run.status().state == "running"
    answer = toolbox_cli("runs", "tail", run.id, "--json").done()
    assert answer.json["state"] == "done"
    assert answer.json["train_loss"] == 0.2
    assert "5/5 100%" in answer.err
    assert "loss 0.2000" in answer.err
    assert "memory 1.0 MiB" in answer.err


def test_list_says_the_agreed_keys_newest_first(make: Make, toolbox_cli: Cli) -> None:
    first, second = make("count", start=False), make("refuse")
    ended(second)
    listed = toolbox_cli("runs", "list", "--json").done().json["runs"]
    assert [row["id"] for row in listed] == [second.id, first.id]
    assert {"id", "state", "stage", "model", "started_at"} <= set(listed[0])
    assert (listed[0]["state"], listed[0]["stage"], listed[0]["model"]) == ("failed", "sft", "demo")
    assert listed[1]["started_at"] is None
    assert second.id in toolbox_cli("runs", "list").done().out


@pytest.mark.parametrize(
    ("work", "status", "kind", "said"),
    [("refuse", 2, "input", "Row 57 is broken."), ("crash", 1, "failed", "by zero")],
)
def test_a_failed_job_ends_with_its_own_status(
    make: Make, toolbox_cli: Cli, work: str, status: int, kind: str, said: str
) -> None:
    answer = toolbox_cli("runs", "tail", make(work).id, "--json")
    assert answer.status == status
    assert answer.json["error"]["kind"] == kind
    assert said in answer.err
    assert "Traceback" not in answer.err


def test_kill_9_is_lost_and_resumed_from_the_checkpoint(make: Make, toolbox_cli: Cli) -> None:
    run = make("count", steps=200)
    wait(stepping(run), "a step")
    early = toolbox_cli("runs", "resume", run.id)
    assert early.status == 2
    assert "it is running" in early.err
    files.write_json(run.checkpoints / "checkpoint-1" / "complete.json", {"step": 198})
    os.kill(run.status().pid, signal.SIGKILL)
    wait(lambda: run.status().state == "lost", "the loss")
    answer = toolbox_cli("runs", "tail", run.id)
    assert answer.status == 1
    assert "died without a word" in answer.err
    assert f"runs resume {run.id}" in answer.err
    resumed = toolbox_cli("runs", "resume", run.id, "--json").done().json
    assert (resumed["state"], resumed["from_step"]) == ("done", 198)


def test_an_evaluation_that_died_goes_on_without_a_checkpoint(make: Make) -> None:
    run = make("count", start=False)
    for verb, told in (("evaluate", f"runs resume {run.id}"), ("finetune", "log")):
        with pytest.raises(ToolboxError) as died:
            following.judged(run, Status(state="lost", verb=verb))
        assert told in died.value.remedy


def test_what_ended_before_a_checkpoint_is_not_resumed_but_can_be_done_again(make: Make, toolbox_cli: Cli) -> None:
    run = make("refuse")
    ended(run)
    answer = toolbox_cli("runs", "resume", run.id)
    assert answer.status == 2
    assert "before its first checkpoint" in answer.err
    assert f"runs reproduce {run.id}" in answer.err


def test_stop_waits_until_it_is_saved(make: Make, toolbox_cli: Cli) -> None:
    run = make("count", steps=2000)
    answer = toolbox_cli("runs", "stop", run.id, "--json").done()
    assert answer.json["state"] == "interrupted"
    assert not run.alive()
    assert toolbox_cli("runs", "tail", run.id).status == 130
    again = toolbox_cli("runs", "stop", run.id, "--json").done()
    assert "isn't running" in again.err


def test_stop_force_ends_what_does_not_listen(make: Make, toolbox_cli: Cli) -> None:
    run = make("deaf", steps=2000)
    wait(stepping(run), "a step")
    assert toolbox_cli("runs", "stop", "--force", run.id, "--json").done().json["state"] == "lost"


def test_a_terminated_job_saves_and_says_so(make: Make, toolbox_cli: Cli) -> None:
    """A spot instance is taken: SIGTERM to the job itself."""
    run = make("count", steps=2000)
    wait(stepping(run), "a step")
    os.kill(run.status().pid, signal.SIGTERM)
    wait(lambda: not run.alive(), "the end")
    assert run.status().state == "interrupted"
    assert run.has_checkpoint()


FOLLOWER = """
import sys
from toolbox import runs
from toolbox.ui.complaints import complain
from toolbox.ui.terminal import Terminal
session = Terminal.open(None)
try:
    session.follow(runs.find(session.home.runs, sys.argv[1]))
except Exception as error:
    sys.exit(complain(error, session.home, False))
"""


def test_ctrl_c_once_saves_and_ends_with_130(make: Make, toolbox_environ: dict[str, str]) -> None:
    run = make("count", steps=2000)
    front = in_terminal(toolbox_environ, "-c", FOLLOWER, run.id)
    front.expect(r"/2000")
    ctrl_c_once(front)
    assert run.status().state == "interrupted"
    assert run.has_checkpoint()


def test_ctrl_c_at_once_reaches_a_job_that_is_still_starting(make: Make, toolbox_environ: dict[str, str]) -> None:
    run = make("count", steps=2000, start=False)
    front = in_terminal(toolbox_environ, "-m", "toolbox", "runs", "reproduce", run.id)
    front.expect("job goes on")
    front.sendintr()
    front.expect("Stopped after")
    front.expect(pexpect.EOF)
    front.close()
    assert front.exitstatus == 130


def test_ctrl_c_twice_quits_at_once_and_tears_nothing(make: Make, toolbox_environ: dict[str, str]) -> None:
    run = make("deaf", steps=2000)
    front = in_terminal(toolbox_environ, "-c", FOLLOWER, run.id)
    front.expect(r"/2000")
    front.sendintr()
    front.expect("once more to quit at once")
    front.sendintr()
    front.expect("was ended at once")
    front.expect(pexpect.EOF)
    front.close()
    assert front.exitstatus == 130
    assert not run.alive()
    assert run.status().error is None
    assert all("step" in line for line in run.metrics())


def test_no_ctrl_c_is_lost_between_two_lines_of_ours(make: Make) -> None:
    """One while the first is being answered, and one after the last look, as at a server that has just become ready."""
    run, told = make("deaf", steps=2000), []

    def say(text: str) -> None:
        told.append(text)
        signal.raise_signal(signal.SIGINT)

    with following.Asking(run, say) as asking:
        signal.raise_signal(signal.SIGINT)
        while not told:
            asking.pass_on()
    assert asking.forced
    ended(run)
    assert len(told) == 1


def test_a_lost_terminal_leaves_the_job_alone(make: Make, toolbox_environ: dict[str, str]) -> None:
    run = make("count", steps=60)
    front = in_terminal(toolbox_environ, "-c", FOLLOWER, run.id)
    front.expect(r"/60")
    front.kill(signal.SIGHUP)
    front.expect(pexpect.EOF)
    front.close()
    assert run.alive()
    ended(run)
    assert run.status().state == "done"


def test_ctrl_c_in_tail_ends_only_the_following(make: Make, toolbox_environ: dict[str, str]) -> None:
    run = make("count", steps=2000)
    for extra in ([], ["--log"]):
        front = in_terminal(toolbox_environ, "-m", "toolbox", "runs", "tail", run.id, *extra)
        front.expect("Counting")
        front.sendintr()
        front.expect("goes on")
        front.expect(pexpect.EOF)
        front.close()
        assert front.exitstatus == 0
    assert run.alive()


def test_a_narrow_terminal_is_no_trouble(make: Make, toolbox_environ: dict[str, str]) -> None:
    front = in_terminal({**toolbox_environ, "COLUMNS": "24"}, "-c", FOLLOWER, make("count").id, columns=24)
    front.expect(pexpect.EOF)
    front.close()
    assert front.exitstatus == 0


def test_a_reader_of_the_log_that_stops_reading_stalls_nothing(make: Make, toolbox_environ: dict[str, str]) -> None:
    run = make("count", steps=20)
    reader = subprocess.Popen(
        [sys.executable, "-P", "-m", "toolbox", "runs", "tail", "--log", run.id],
        env=toolbox_environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert reader.stdout
    reader.stdout.close()
    ended(run)
    assert run.status().state == "done"
    _out, error = reader.communicate(timeout=60)
    assert b"Traceback" not in error


def test_a_torn_status_is_not_taken_for_a_running_job(make: Make, toolbox_cli: Cli) -> None:
    run = make("count")
    ended(run)
    (run.path / "status.json").write_text('{"state": "run')
    assert run.status().state == "lost"
    shown = toolbox_cli("runs", "show", run.id, "--json").done()
    assert "status.json can't be read" in shown.err
    assert toolbox_cli("runs", "tail", run.id).status == 1


def test_a_run_that_never_started_is_not_waited_for(make: Make, toolbox_cli: Cli) -> None:
    run = make("count", start=False)
    answer = toolbox_cli("runs", "tail", run.id)
    assert answer.status == 2
    assert "was never started" in answer.err
    assert toolbox_cli("runs", "stop", run.id).status == 0


def test_reproduce_compares_the_numbers(make: Make, toolbox_cli: Cli) -> None:
    run = make("count")
    ended(run)
    answer = toolbox_cli("runs", "reproduce", str(run.plan_path), "--json").done()
    assert answer.json["run"] != run.id
    held = {row["name"]: row for row in answer.json["held"]}
    assert held["train_loss"] == {"step": 1, "name": "train_loss", "kind": "loss", "stated": 0.2, "now": 0.2}
    assert answer.json["differed"] == []
    assert "✓ holds" in answer.err
    assert toolbox_cli("runs", "reproduce", run.id, "--dry-run", "--json").done().json["verified"]
    assert len(runs.every(run.path.parent)) == 2


def test_reproduce_refuses_changed_data(home: Path, tmp_path: Path, toolbox_cli: Cli) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"instruction": "a", "output": "b"}\n' * 20)
    run = runs.create(home / "runs", "test", finetune_plan(home, str(data), entry="tests.jobs:count"))
    data.write_text('{"instruction": "a", "output": "c"}\n' * 20)
    answer = toolbox_cli("runs", "reproduce", run.id)
    assert answer.status == 2
    assert "has changed since the plan was made" in answer.err


def test_reproduce_lets_no_plan_choose_which_program_runs(make: Make, tmp_path: Path, toolbox_cli: Cli) -> None:
    run = make("count", start=False)
    elsewhere = tmp_path / "from somebody else" / "plan.yaml"
    elsewhere.parent.mkdir()
    shutil.copy(run.plan_path, elsewhere)
    answer = toolbox_cli("runs", "reproduce", str(elsewhere))
    assert answer.status == 2
    assert "'tests.jobs:count', which is no work of this toolbox" in answer.err
    session = Terminal.open(str(run.path.parent.parent))
    trusted = reproducing.trusted(serve_plan(tmp_path / "evil"), Run(elsewhere.parent), session)
    assert trusted.python == Path(sys.executable)


def test_reproduce_refuses_a_torn_plan(make: Make, toolbox_cli: Cli) -> None:
    run = make("count", start=False)
    run.plan_path.write_text("verb: finetune\nsurprise: 1\n")
    answer = toolbox_cli("runs", "reproduce", run.id)
    assert answer.status == 2
    assert "can't be read" in answer.err


@pytest.mark.parametrize(
    ("action", "name"),
    [("show", "$(touch x)"), ("tail", "../.."), ("stop", ""), ("resume", "-f"), ("reproduce", ";touch x"),
     ("report", "模型"), ("remove", "../..")],
)  # fmt: skip
def test_no_such_run(make: Make, toolbox_cli: Cli, tmp_path: Path, action: str, name: str) -> None:
    make("count", start=False)
    answer = toolbox_cli("runs", action, "--yes", "--", name)
    assert answer.status == 2
    assert "Traceback" not in answer.err
    assert not (tmp_path / "x").exists()


def test_report_is_written_again(make: Make, toolbox_cli: Cli) -> None:
    run = make("refuse")
    ended(run)
    (run.path / "report.md").unlink(missing_ok=True)
    path = Path(toolbox_cli("runs", "report", "last", "--json").done().json["report"])
    assert "Row 57 is broken." in path.read_text(encoding="utf-8")


def test_remove_asks_and_spares_what_runs(make: Make, toolbox_cli: Cli) -> None:
    run = make("count", steps=2000)
    assert toolbox_cli("runs", "remove", run.id, "--json").done().json["removed"] == []
    busy = toolbox_cli("runs", "remove", run.id, "--yes")
    assert busy.status == 2
    assert run.path.is_dir()
    toolbox_cli("runs", "stop", "--force", run.id).done()
    assert toolbox_cli("runs", "remove", run.id, "--yes", "--json").done().json["removed"] == [run.id]
    assert not run.path.exists()


def test_a_run_is_found_by_id_beginning_path_and_last(make: Make) -> None:
    run = make("count", start=False)
    folder = run.path.parent
    for name in (run.id, run.id[:9], str(run.path), "last"):
        assert runs.find(folder, name).path == run.path


def test_a_moved_home_keeps_its_runs(make: Make, toolbox_cli: Cli, home: Path) -> None:
    run = make("count")
    ended(run)
    moved = home.with_name("模型 home")
    shutil.move(home, moved)
    listed = toolbox_cli("runs", "list", "--json", "--home", str(moved)).done().json["runs"]
    assert [row["id"] for row in listed] == [run.id]


def test_a_second_start_is_refused(make: Make) -> None:
    run = make("count", steps=2000)
    with pytest.raises(runs.BusyError):
        run.start()


def test_status_survives_its_own_spelling(make: Make) -> None:
    run = make("count", start=False)
    run.write_status(Status(state="done", verb="finetune", phase="结束", eta_s=None))
    assert run.status().phase == "结束"


def test_last_is_the_newest_that_can_be_meant(make: Make, toolbox_cli: Cli) -> None:
    living = make("deaf", steps=10000)
    make("count", start=False)
    assert runs.find(living.path.parent, "last").id != living.id
    assert living.id in toolbox_cli("runs", "stop", "last", "--force").done().out
    ended(living)


def test_lines_to_copy_name_the_home_folder_where_it_is_not_found_by_itself(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make("count", start=False)
    monkeypatch.setenv("YCDY_HOME", str(run.path.parents[1]))
    monkeypatch.setenv("YCDY_CALLED", "/opt/my tools/yichuidingyin.sh")
    assert run.command("chat", "--run") == f"bash '/opt/my tools/yichuidingyin.sh' chat --run {run.id}"
    monkeypatch.setenv("YCDY_HOME", "/elsewhere")
    assert run.command("runs", "tail").endswith(f"{run.id} --home {run.path.parents[1]}")


def test_an_interrupted_run_that_left_nothing_says_how_to_start_it_again(home: Path) -> None:
    run = finetune_run(home)
    status = Status(verb="merge", state="interrupted", error={"kind": "interrupted", "message": "Interrupted."})
    with pytest.raises(Interrupted) as caught:
        following.judged(run, status, forced=False)
    assert run.command("runs", "reproduce") in caught.value.remedy
