"""`evaluate --backend`: what it takes as a suite, what its script is given, what comes back; and both for real."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from plans import CPU, demo_facts, write_jsonl

from toolbox import backends, embedded, evaluation
from toolbox.backends import BACKENDS
from toolbox.commands.evaluate import EvaluateOptions, make_plan
from toolbox.config import Home, Settings, find_home
from toolbox.errors import HubError, InputError, Interrupted, NotFoundError, OutOfMemoryError, ToolboxError
from toolbox.evaluation.backends import asking, conversion, run
from toolbox.plan import EvaluatePlan
from toolbox.runs import Run, Silent
from toolbox.ui.terminal import Terminal

INSTALLED = find_home()
"""The home of whoever runs the tests: the environments are not made for a test."""
ASKED = [{"question": f"What is {n}?", "answers": [f"It is {n}.", str(n)]} for n in range(10)]
HEAD = "import json, os, signal, sys, time\nwork = json.load(open(sys.argv[1]))\n"
MEASURE = """
tuned = "peft" in work["model_args"]
rows = [json.loads(line) for line in open(work["tasks"][0]["task"].replace(".yaml", ".jsonl"))]
print("@task 0\\nRunning generate_until requests:  50%|##   | 2/4 [00:01<00:01]", flush=True)
right = [float(tuned or place == 0) for place in range(len(rows))]
mean = {"value": sum(right) / len(right), "stderr": 0.1, "values": right, "more_is_better": True}
known = {"value": 2.0 - tuned, "stderr": 0.5, "values": None, "more_is_better": False}
bare = {"value": 7.0, "stderr": None, "values": None, "more_is_better": None}
told = {"name": work["tasks"][0]["name"], "n": len(rows), "metrics": {"exact_match": mean, "ppl": known, "f1": bare},
        "rows": [{"task": "t", "row": n, "target": row["answers"], "said": "?"} for n, row in enumerate(rows)]}
open("ran", "a").write("x")
json.dump({"version": "1.2", "tasks": {told["name"]: [told]}}, open(work["said"], "w"))
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "asked.jsonl", ASKED)


def standin(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str, name: str = "lm-eval") -> None:
    path = folder / "script.py"
    path.write_text(HEAD + script)
    monkeypatch.setitem(asking.SCRIPTS, name, path)


def plan_of(*suites: object, **changes: Any) -> EvaluatePlan:
    fields: dict[str, Any] = {
        "entry": "toolbox.evaluation.backends:run", "model": demo_facts(), "device": CPU, "backend": "lm-eval",
        "python": Path(sys.executable), "suites": list(map(str, suites)),
    }  # fmt: skip
    return EvaluatePlan(**(fields | changes))


def test_a_suite_is_ours_or_a_file_or_the_backends_own(home: Path, suite: Path, tmp_path: Path) -> None:
    yaml = tmp_path / "mine.yaml"
    yaml.write_text("task: mine\n")
    words = ["demo-qa", str(suite), str(yaml), "arc_easy"]
    found = backends.tasks(BACKENDS["lm-eval"], words, Home(home))
    assert [(bool(task.suite), task.path, task.fetched) for task in found] == [
        (True, None, False), (True, None, False), (False, yaml, False), (False, None, True),
    ]  # fmt: skip
    assert [task.word for task in found] == words
    (own,) = backends.tasks(BACKENDS["evalscope"], [f"general_qa={tmp_path}"], Home(home))
    assert (own.task, own.path, own.word) == ("general_qa", tmp_path, f"general_qa={tmp_path}")


@pytest.mark.parametrize("word", ["", "demo-bias", "/nowhere/x.yaml", "/nowhere/rows.jsonl"])
def test_what_can_not_be_said_in_its_format_is_refused(home: Path, word: str) -> None:
    with pytest.raises(InputError) as caught:
        backends.tasks(BACKENDS["lm-eval"], [word] if word else [], Home(home))
    assert caught.value.remedy


def test_a_missing_environment_is_named_with_its_size_and_command(home: Path, suite: Path) -> None:
    session = Terminal(Home(home), Settings(), as_json=True, yes=False, dry_run=False)
    with pytest.raises(InputError, match="EvalScope") as caught:
        make_plan(EvaluateOptions(model="demo", backend="evalscope", suite=[str(suite)]), session)
    assert "1.0 GiB" in caught.value.remedy
    assert "engines install evalscope" in caught.value.remedy
    for wrong in ({"backend_args": ["confirm_run_unsafe_code=true"]}, {"metric": ["exact_match"]}):
        with pytest.raises(InputError) as refused:
            make_plan(EvaluateOptions(model="demo", backend="lm-eval", suite=["demo-qa"], **wrong), session)
        assert refused.value.remedy


def test_base_and_tuned_are_compared_row_by_row_where_there_are_rows(
    monkeypatch: pytest.MonkeyPatch, home: Path, suite: Path, tmp_path: Path
) -> None:
    standin(monkeypatch, tmp_path, MEASURE)
    made, told = Run(home / "runs" / "one"), Steps()
    plan = plan_of(suite, adapter=tmp_path, limit=4, fetches=True)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    result = run(plan, made, told)
    rows = {(row["model"], row["metric"]): row for row in result["results"]}
    assert rows["base", "exact_match"]["value"] == 0.25
    assert rows["base", "exact_match"]["low"] == pytest.approx(0.0456, abs=1e-3)  # Wilson's, of 1 of 4
    assert rows["difference", "exact_match"]["value"] == 0.75
    assert rows["difference", "ppl"]["low"] == pytest.approx(-1 - 1.96 * 0.7071, abs=1e-3)
    assert (rows["tuned", "ppl"]["ideal"], rows["tuned", "exact_match"]["ideal"]) == ("low", "high")
    assert [row["metric"] for row in result["stated"]] == ["f1", "f1"]
    assert (50, 200) in told.seen
    assert (150, 200) in told.seen
    folder = made.path / "evaluation" / "lm-eval"
    asked = [json.loads(line)["question"] for line in (folder / "suites" / "asked.jsonl").read_text().splitlines()]
    assert asked == [ASKED[place]["question"] for place in (0, 2, 5, 7)]  # evenly, as our own measure takes them
    work = json.loads((folder / "tuned" / "work.json").read_text())
    assert work["model_args"]["peft"] == str(tmp_path)
    assert "hf_secret" not in (folder / "tuned" / "work.json").read_text()
    saved = json.loads((made.path / "evaluation" / "1-asked.json").read_text())
    assert len(saved["rows"]["tuned"]) == 4
    run(plan, made)
    assert (folder / "base" / "ran").read_text() == "x"  # resumed, it asks nothing twice


class Steps(Silent):
    """Remembers what was told."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def progress(self, step: int, steps: int, **metrics: float) -> None:
        self.seen.append((step, steps))


class Stopping(Silent):
    stopping = True


@pytest.mark.parametrize(
    ("script", "kind", "said"),
    [
        ('sys.exit("@no task " + json.dumps(["arc_esy", ["arc_easy"]]))', NotFoundError, "arc_easy"),
        ('sys.exit("@runs code " + json.dumps(["humaneval"]))', InputError, "humaneval"),
        ("os.kill(os.getpid(), signal.SIGKILL)", OutOfMemoryError, "memory"),
        ('raise ValueError("no such column")', ToolboxError, "no such column"),
        ('raise NotImplementedError("Loglikelihood is not supported for chat")', InputError, "likelihoods"),
        ("""raise OSError("Couldn't reach 'allenai/ai2_arc' on the Hub")""", HubError, "ai2_arc"),
    ],
)
def test_why_it_failed_is_said_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, home: Path, tmp_path: Path, script: str, kind: type, said: str
) -> None:
    standin(monkeypatch, tmp_path, script)
    with pytest.raises(kind) as caught:
        run(plan_of("arc_esy"), Run(home / "runs" / "one"))
    assert type(caught.value) is kind
    assert said in f"{caught.value}"


def test_a_stop_is_heeded_while_it_is_silent(monkeypatch: pytest.MonkeyPatch, home: Path, tmp_path: Path) -> None:
    standin(monkeypatch, tmp_path, "time.sleep(600)")
    with pytest.raises(Interrupted):
        run(plan_of("arc_easy"), Run(home / "runs" / "one"), Stopping())


def test_our_questions_as_a_task_of_the_harness(home: Path, suite: Path, tmp_path: Path) -> None:
    (task,) = backends.tasks(BACKENDS["lm-eval"], [str(suite)], Home(home))
    assert task.suite
    path = conversion.for_lm_eval(task.suite, 0, tmp_path / "made")
    made = msgspec.yaml.decode(path.read_bytes())
    assert Path(made["dataset_kwargs"]["data_files"]["test"]).read_bytes().count(b"\n") == len(ASKED)
    assert made["generation_kwargs"]["max_gen_toks"] == 64
    assert "description" not in made  # there is no system prompt


def _embedded() -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in embedded.SUITES["demo-qa"][1].read_bytes().splitlines()]


def _mixed(folder: Path) -> Path:
    """The embedded questions, some with answers that are wrong, several, or right but for their case."""
    rows = _embedded()
    for place, row in enumerate(rows):
        (right,) = row["answers"]
        row["answers"] = ["No."] if place % 3 == 0 else ["No.", right] if place % 5 == 0 else [right.upper()]
    return write_jsonl(folder / "mixed.jsonl", rows)


def _choices(folder: Path) -> Path:
    """Each embedded question with its answer and three others'."""
    rows, made = _embedded(), []
    for place, row in enumerate(rows):
        options = [rows[(place + step) % len(rows)]["answers"][0] for step in (0, 7, 31, 55)]
        options[0], options[place % 4] = options[place % 4], options[0]
        made.append({"question": row["question"], "choices": options, "answer": place % 4})
    return write_jsonl(folder / "choices.jsonl", made)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "make"), [("lm-eval", _mixed), ("lm-eval", _choices), ("evalscope", _mixed)])
def test_a_backend_gives_our_own_score_on_every_item(
    home: Path, tmp_path: Path, name: str, make: Callable[[Path], Path]
) -> None:
    python = BACKENDS[name].python(False, INSTALLED)
    if python is None:
        pytest.skip(f"needs: engines install {BACKENDS[name].environment(False)}")
    path = make(tmp_path)
    plan = plan_of(path, backend=name, python=python, limit=60)
    theirs, ours = Run(home / "runs" / "theirs"), Run(home / "runs" / "ours")
    found = run(plan, theirs)["results"]
    own = evaluation.run(plan_of(path, backend="", entry="toolbox.evaluation:run", limit=60), ours)["results"]
    assert {row["metric"]: row["value"] for row in found} == {row["metric"]: row["value"] for row in own}
    assert 0.3 < own[0]["value"] < 0.99
    metric = own[0]["metric"]
    assert [row[metric] == 1 for row in _saved(theirs)] == [row["right"] for row in _saved(ours)]


def _saved(run: Run) -> list[dict[str, Any]]:
    (path,) = (run.path / "evaluation").glob("1-*.json")
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]["base"]
    return rows
