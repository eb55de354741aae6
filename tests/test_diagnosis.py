"""Diagnoses: real failures through real jobs, genuine texts of what can't be made to fail here, and healthy runs."""

import math
import random
import resource
import shutil
import signal
import statistics
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from conftest import Cli
from failures import FAILURES
from plans import finetune_plan, finetune_run, write_jsonl
from test_job import Started, start  # noqa: F401 - a fixture
from test_report import run_of

from toolbox import datasets, diagnosis, embedded, kernel, models, runs
from toolbox.commands import finetune
from toolbox.config import Home
from toolbox.diagnosis import Cause, Traces, curves
from toolbox.errors import ToolboxError
from toolbox.face.here import carry_out_here
from toolbox.facts import Facts
from toolbox.report import write_report
from toolbox.runs import Run

SHORT = {"gradient_accumulation_steps": 1, "eval_steps": 100, "save_steps": 100}
Start = Callable[[Run], Started]


def kinds(run: Run) -> list[str]:
    return [cause.kind for cause in diagnosis.diagnose(run)]


def only(run: Run) -> Cause:
    """The one cause that is found, which has evidence and a remedy."""
    causes = diagnosis.diagnose(run)
    assert len(causes) == 1, causes
    assert causes[0].evidence
    assert causes[0].remedy
    return causes[0]


def here(run: Run) -> Run:
    """The run after its plan was carried out in this process, whatever it came to."""
    with suppress(ToolboxError):
        carry_out_here(run, silent=True)
    return run


def failed(home: Path, log: str, **status: Any) -> Run:
    run = run_of(home, finetune_plan(home), "failed", **status)
    run.log_path.write_text(f"Loading\nTraceback (most recent call last):\n{log}\n")
    return run


def curved(home: Path, losses: list[float], held: list[float] = [], **changes: Any) -> Run:  # noqa: B006
    """A finished run with these losses; `held`: evaluation losses, before the first step and evenly after it."""
    run = run_of(home, finetune_plan(home, **changes), "done")
    rate = changes.get("learning_rate", 2e-4)
    lines: list[dict[str, Any]] = [
        {"step": step, "loss": loss, "learning_rate": rate, "grad_norm": 0.5} for step, loss in enumerate(losses, 1)
    ]
    every = max(1, len(losses) // max(1, len(held) - 1))
    lines += [{"step": number * every, "eval_loss": loss} for number, loss in enumerate(held)]
    (run.path / "metrics.jsonl").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    return run


# Texts


@pytest.mark.parametrize(("kind", "source", "text"), FAILURES, ids=[text[:40] for _, _, text in FAILURES])
def test_a_genuine_text_is_called_by_its_cause(kind: str, source: str, text: str, home: Path) -> None:
    run = failed(home, text, error={"kind": "failed", "message": "OSError: …", "remedy": ""})
    cause = only(run)
    assert cause.kind == kind
    assert any(line.startswith("log.txt:3: ") for line in cause.evidence) or "\n" in text
    assert cause.command or kind == "port"  # of a server only


def test_words_of_the_data_are_no_evidence(home: Path) -> None:
    """A row that was refused may say anything; the job prints it, and status.json tells that it is a row."""
    message = "Row 7 of x.jsonl can't be used, no answer: CUDA out of memory. No space left on device"
    run = failed(home, message, error={"kind": "data", "message": message, "remedy": "Mend that row."})
    assert only(run).kind == "bad_rows"


def test_what_an_earlier_start_said_is_no_evidence(home: Path) -> None:
    run = failed(home, "torch.OutOfMemoryError: CUDA out of memory.")
    status = run.status()
    status.log_from = run.log_path.stat().st_size
    run.write_status(status)
    with run.log_path.open("a") as log:
        log.write("Loading\nOSError: [Errno 28] No space left on device\n")
    cause = only(run)
    assert cause.kind == "disk_full"
    assert cause.evidence[0].startswith("log.txt:5: ")


def test_nothing_is_said_of_what_nobody_knows(home: Path, toolbox_cli: Cli) -> None:
    run = failed(home, "ZeroDivisionError: by zero", error={"kind": "failed", "message": "by zero", "remedy": ""})
    answer = toolbox_cli("runs", "diagnose", run.id, "--json").done()
    assert answer.json == {"run": run.id, "state": "failed", "causes": []}
    assert "No known cause" in answer.err
    assert str(run.log_path) in answer.err


def test_a_log_without_a_run_is_explained_too(home: Path, tmp_path: Path, toolbox_cli: Cli) -> None:
    log = tmp_path / "crash.txt"
    log.write_text("Traceback\nhttpx.ConnectError: [Errno -3] Temporary failure in name resolution\n")
    (cause,) = toolbox_cli("runs", "diagnose", str(log), "--json").done().json["causes"]
    assert set(cause) >= {"kind", "message", "evidence", "remedy", "command"}
    assert (cause["kind"], cause["evidence"]) == (
        "network",
        ["crash.txt:2: httpx.ConnectError: [Errno -3] Temporary failure in name resolution"],
    )


def test_keys_never_appear_in_the_evidence(home: Path) -> None:
    run = failed(home, "OSError: [Errno 28] No space left on device: hf_abcdefghijklmnopqrst")
    assert "hf_abc" not in str(diagnosis.diagnose(run))


# Ends without a word


def lost(home: Path, **found: Any) -> Traces:
    run = run_of(home, finetune_plan(home), "running", pid=4711)
    return Traces(home=home, facts=Facts.of(run), **found)


@pytest.mark.parametrize(
    ("found", "kind", "certainty"),
    [
        (
            {"kernel_lines": ("Memory cgroup out of memory: Killed process 4711 (python3) total-vm:11892kB",)},
            "killed_for_memory",
            "certain",
        ),
        ({"kernel_lines": ("Out of memory: Killed process 99 (other) total-vm:11892kB",)}, "killed", "likely"),
        ({"oom_kills": 1}, "killed_for_memory", "likely"),
        ({"restarted": True}, "restarted", "certain"),
        ({"kernel_lines": ("NVRM: Xid (PCI:0000:02:00): 79, GPU has fallen off the bus.",)}, "gpu_lost", "certain"),
        ({"kernel_lines": ("NVRM: Xid (PCI:0000:02:00): 31, pid=4711, MMU Fault",)}, "killed", "likely"),
        ({}, "killed", "likely"),
    ],
)
def test_who_killed_it_is_told_as_far_as_the_machine_tells(
    found: dict[str, Any], kind: str, certainty: str, home: Path
) -> None:
    cause = diagnosis.explain(lost(home, **found))[0]
    assert (cause.kind, cause.certainty) == (kind, certainty)
    assert ("per_device_train_batch_size=2" in cause.command) == (kind == "killed_for_memory")


def test_the_kernels_counter_and_log_are_read(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup/box"
    group.mkdir(parents=True)
    (group / "memory.events").write_text("low 0\nhigh 0\nmax 812\noom 3\noom_kill 2\n")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/box\n")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kmsg").write_text("6,1,5000000,-;early\n3,2,15000000,-;Out of memory: Killed process 7\n KEY=x\n")
    assert kernel.oom_kills(tmp_path) == 2
    assert kernel.log(10.0, tmp_path) == ["Out of memory: Killed process 7"]
    assert kernel.log(0.0, tmp_path / "none") == []


@pytest.mark.slow
def test_a_killed_a_forced_and_a_stopped_job_are_told_apart(home: Path, start: Start) -> None:  # noqa: F811
    long = {**SHORT, "max_steps": 4000, "save_steps": 1}
    ends: dict[str, Callable[[Run, Started], Any]] = {
        "killed": lambda run, job: job.send(signal.SIGKILL),
        "ended_by_hand": lambda run, job: run.stop(force=True),
        "interrupted": lambda run, job: run.stop(),
        "crashed": lambda run, job: job.send(signal.SIGSEGV),
    }
    for kind, end in ends.items():
        run = finetune_run(home, **long)
        job = start(run)
        job.until_steps(2)
        end(run, job)
        job.end()
        cause = only(run)
        assert (cause.kind, run.id in cause.command) == (kind, kind != "crashed"), cause


# Real failures


def test_a_running_median_is_that_of_each_window() -> None:
    generator = random.Random(0)
    values = [float(generator.randrange(20)) for _value in range(200)]
    for width in (1, 2, 7, 20, 200):
        plain = [statistics.median(values[at : at + width]) for at in range(len(values) - width + 1)]
        assert list(curves.running_median(values, width)) == plain


def test_a_rate_of_10_diverged_and_one_of_1e_12_had_no_effect(home: Path) -> None:
    high = here(finetune_run(home, learning_rate=10.0, max_steps=6, **SHORT))
    low = here(finetune_run(home, learning_rate=1e-12, max_steps=3, **SHORT))
    assert only(high).kind in ("diverged", "nan")
    assert "--learning-rate 1.0" in only(high).command
    assert only(low).kind == "no_effect"
    assert "--learning-rate" not in only(low).command
    odd, why, done = said_at_the_end(low)
    assert odd == only(low).message
    assert f"runs diagnose {low.id}" in why
    assert done.startswith("Done")


def said_at_the_end(run: Run) -> list[str]:
    said: list[str] = []
    finetune.say_next(run, SimpleNamespace(say=said.append))  # type: ignore[arg-type]
    return said


def test_a_healthy_run_has_no_cause(home: Path) -> None:
    """Of 3 steps at a common rate, of 8 at a good one whose steps see few rows each: from 0.001 to 4."""
    few = here(finetune_run(home, learning_rate=2e-4, max_steps=3, **SHORT))
    good = here(finetune_run(home, learning_rate=5e-3, max_steps=8, eval_rows=0, **SHORT))
    assert (kinds(few), kinds(good)) == ([], [])
    assert len(said_at_the_end(good)) == 1
    assert "Diagnosis" not in (good.path / "report.md").read_text()


def test_a_folder_without_a_tokenizer_is_named(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(embedded.MODEL, folder)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    run = here(finetune_run(home, model=models.read(folder, id="mine", source="folder"), max_steps=1))
    cause = only(run)
    assert cause.kind == "tokenizer"
    assert any("model.safetensors" in line for line in cause.evidence)
    assert "tokenizer.json" in cause.remedy


def test_broken_rows_are_named(home: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"instruction": f"Question {n}", "output": "x"} for n in range(9)])
    spec = datasets.resolve(str(path), Home(home))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:5], lines[5][:-4], *lines[6:]]))
    changed = msgspec.structs.replace(spec, sha256=datasets.resolve(str(path), Home(home), skip_broken=True).sha256)
    run = here(finetune_run(home, datasets=[changed], max_steps=1, eval_rows=0))
    assert only(run).kind == "bad_rows"
    assert str(path) in only(run).command


@pytest.mark.slow
@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        ("import torch; torch.empty(1 << 46)", "out_of_host_memory"),
        (
            "import torch; raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')",
            "out_of_memory",
        ),
    ],
)
def test_an_allocation_too_large_is_out_of_memory(
    raised: str, kind: str, home: Path, tmp_path: Path, toolbox_cli: Cli
) -> None:
    plugin = tmp_path / "greedy.py"
    plugin.write_text(
        "from toolbox import plugins\n\n\n@plugins.register('callback', 'greedy')\nclass Greedy(plugins.Callback):\n"
        f"    def on_step_end(self, step, metrics):\n        {raised}\n"
    )
    words = ["--model", "demo", "--dataset", "demo-persona", "--plugin", str(plugin), "--callback", "greedy"]
    answer = toolbox_cli("finetune", *words, "--set", "max_steps=2", "--yes")
    assert answer.status == 1
    run = runs.every(home / "runs")[0]
    assert f"runs diagnose {run.id}" in answer.err
    assert only(run).kind == kind
    assert "--allow-shorter" in only(run).command


@pytest.mark.slow
def test_a_file_that_may_not_grow_is_a_full_disk(home: Path, start: Start) -> None:  # noqa: F811
    run = finetune_run(home, max_steps=3, **SHORT)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300 << 10, hard))
    try:
        job = start(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert job.end() == 1
    cause = only(run)
    assert cause.kind == "disk_full"
    assert "ulimit" in cause.remedy


# Curves


def noisy(levels: list[float], spread: float, seed: int = 1) -> list[float]:
    chance = random.Random(seed)
    return [level * math.exp(chance.gauss(0, spread)) for level in levels]


HEALTHY: dict[str, tuple[list[float], list[float]]] = {
    "falling": (noisy([2 * 0.98**n + 0.5 for n in range(200)], 0.1), [2.4, 1.5, 0.9, 0.6]),
    "noisy": (noisy([1.5] * 300, 0.5), []),
    "noisy and flat, moved a little": (noisy([1.5] * 300, 0.2), [1.50, 1.49]),
    "three steps": ([2.1, 2.6, 1.9], []),
    "three steps, evaluated": ([2.1, 2.6, 1.9], [2.2, 2.199]),
    "one step": ([2.1], []),
    "no step": ([], []),
    "spikes": (noisy([2 * 0.99**n + (9 if n % 40 == 39 else 0) for n in range(200)], 0.1), []),
    "overfitting": (noisy([2 * 0.97**n + 0.01 for n in range(200)], 0.1), [2.0, 1.5, 2.2, 3.5]),
    "a rise within the noise": (noisy([1.0 + n / 600 for n in range(200)], 0.3), []),
}


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_healthy_curves_have_no_cause(name: str, stage: str, home: Path) -> None:
    losses, held = HEALTHY[name]
    assert kinds(curved(home, losses, held, stage=stage)) == []


def test_healthy_noise_of_many_seeds_has_no_cause(home: Path) -> None:
    for seed in range(40):
        steps, spread = 10 + 13 * seed, 0.05 + 0.02 * seed
        run = curved(home, noisy([1.2] * steps, spread, seed), [1.2, 1.19])
        assert kinds(run) == [], (seed, steps, spread)


@pytest.mark.parametrize(
    ("losses", "held", "kind"),
    [
        (noisy([1.0] * 20 + [4.0] * 30, 0.2), [], "diverged"),
        (noisy([2 * 0.95**n for n in range(60)] + [1.5] * 40, 0.1), [], "diverged"),
        ([2.0, 11.0, 9.0], [], "diverged"),
        ([2.0, 3.5], [2.0, 3.6], "diverged"),
        (noisy([1.5] * 60, 1e-4), [], "no_effect"),
        (noisy([1.5] * 60, 0.3), [1.5, 1.5, 1.50001], "no_effect"),
    ],
)
def test_sick_curves_are_told(losses: list[float], held: list[float], kind: str, home: Path) -> None:
    assert kinds(curved(home, losses, held)) == [kind]


def test_no_gradient_is_told(home: Path) -> None:
    run = curved(home, [1.5] * 40)
    path = run.path / "metrics.jsonl"
    path.write_text(path.read_text().replace('"grad_norm":0.5', '"grad_norm":0.0'))
    assert kinds(run) == ["no_gradient"]


# Where it is shown


def test_the_report_ends_with_the_diagnosis_in_the_persons_language(home: Path) -> None:
    run = failed(home, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
    text = write_report(run).read_text("utf-8")
    assert "## Diagnosis" in text
    assert "--allow-4bit" in text


def test_the_menu_offers_it() -> None:
    from toolbox.commands.runs import COMMANDS

    assert "runs diagnose" in [command.name for command in COMMANDS]
