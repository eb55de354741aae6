"""Who is measured in `bench/train.py`: each side's own command on the same rows, and what its steps took."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parent.parent
BATCH, LONGEST, RATE, SEED, LIMIT_S = 4, 512, 1e-4, 42, 900
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
POLL_S = 0.01
REFERENCE = "Computing what the model finds likely"


@dataclass(frozen=True)
class Case:
    """What all sides are given: a model's folder, the folder of its rows, and the arithmetic."""

    shape: str
    dtype: str
    """fp32 or bf16."""
    steps: int
    threads: int
    model: Path
    rows: Path
    out: Path
    peers: Path
    stage: str = "sft"

    @property
    def torch_dtype(self) -> str:
        return DTYPES[self.dtype]


@dataclass
class Measured:
    """One side's run. Times are seconds since the command was given; each list holds one value a step.

    `marks_s`: process CPU seconds, and `at_s` the wall clock, at points a step apart: where steps begin for peers,
    where they end for us, so that the difference of two is a whole step in both.
    """

    name: str
    losses: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    marks_s: list[float] = field(default_factory=list)
    to_first_step_s: float = 0.0
    reference_cpu_s: float = 0.0
    """From the beginning of the reference pass to the first step, where there is one."""
    peak_bytes: int = 0
    error: str = ""


def environment(case: Case, **more: str) -> dict[str, str]:
    """Offline, the same number of threads for all, and none that spins."""
    return {
        **os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false", "WANDB_DISABLED": "true", "NO_COLOR": "1", "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": str(case.threads), "MKL_NUM_THREADS": str(case.threads), **more,
    }  # fmt: skip


def llamafactory(case: Case) -> list[str]:
    settings = {
        "model_name_or_path": str(case.model), "stage": "sft", "do_train": True, "finetuning_type": "lora",
        "lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0, "lora_target": "all", "dataset": "rows",
        "dataset_dir": str(case.rows), "cutoff_len": LONGEST, "overwrite_cache": True,
        "preprocessing_num_workers": 1, "output_dir": str(case.out / "lf"), "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "per_device_train_batch_size": BATCH, "learning_rate": RATE,
        "max_steps": case.steps, "lr_scheduler_type": "linear", "warmup_steps": 0, "bf16": case.dtype == "bf16",
        "disable_gradient_checkpointing": True, "use_cpu": True, "disable_shuffling": True, "weight_decay": 0.0,
    }  # fmt: skip
    path = case.out / "lf.yaml"
    path.write_text(json.dumps(settings), "utf-8")
    return ["llamafactory-cli", "train", str(path)]


def swift(case: Case) -> list[str]:
    return [
        "swift", "sft", "--model", str(case.model), "--model_type", "qwen2", "--template", "qwen2_5",
        "--use_hf", "true", "--tuner_type", "lora",
        "--dataset", str(case.rows / "messages.jsonl"), "--split_dataset_ratio", "0", "--dataset_shuffle", "false",
        "--train_dataloader_shuffle", "false", "--torch_dtype", case.torch_dtype, "--target_modules", "all-linear",
        *common(case, "lora_rank"), "--weight_decay", "0", "--warmup_ratio", "0", "--lr_scheduler_type", "linear",
        "--max_grad_norm", "1", "--dataloader_num_workers", "0", "--output_dir", str(case.out / "swift"),
    ]  # fmt: skip


def trl(case: Case) -> list[str]:
    return [
        "trl", "sft", "--model_name_or_path", str(case.model), "--dataset_name", str(case.rows / "trl"),
        "--dtype", case.torch_dtype, "--bf16", str(case.dtype == "bf16").lower(), "--use_peft",
        "--lora_target_modules", "all-linear", "--train_sampling_strategy", "sequential",
        *common(case, "lora_r"), "--output_dir", str(case.out / "trl"),
    ]  # fmt: skip


def common(case: Case, rank: str) -> list[str]:
    """What ms-swift's and TRL's commands have in common."""
    return [
        "--max_length", str(LONGEST), "--per_device_train_batch_size", str(BATCH),
        "--gradient_accumulation_steps", "1", "--learning_rate", str(RATE), f"--{rank}", "8", "--lora_alpha", "16",
        "--lora_dropout", "0", "--max_steps", str(case.steps), "--logging_steps", "1", "--save_strategy", "no",
        "--gradient_checkpointing", "false", "--report_to", "none", "--use_cpu", "true",
    ]  # fmt: skip


PEERS = {"swift": ("ms-swift", swift), "lf": ("LLaMA-Factory", llamafactory), "trl": ("TRL", trl)}
"""Folder of each peer's environment under PEERS_HOME/venvs: its name, its command."""


def run_peer(folder: str, case: Case) -> Measured:
    """The peer's own command on the case's rows."""
    name, command = PEERS[folder]
    return watch(name, folder, command(case), case)


def watch(name: str, folder: str, words: list[str], case: Case) -> Measured:
    """A command of the environment `folder`, measured from within by hook/sitecustomize.py."""
    steps, log = case.out / f"{name}.steps.jsonl", case.out / f"{name}.log"
    programs = case.peers / "venvs" / folder / "bin"
    environ = environment(
        case, PATH=f"{programs}:{os.environ['PATH']}", PYTHONPATH=str(ROOT / "bench" / "hook"),
        BENCH_STEPS=str(steps), BENCH_ADAPTER=str(case.out / "adapter.safetensors"),
        HF_HOME=str(case.peers / "hf"), MODELSCOPE_CACHE=str(case.peers / "ms"),
    )  # fmt: skip
    begun = time.time()
    with log.open("wb") as file:
        child = subprocess.Popen(
            [str(programs / words[0]), *words[1:]], env=environ, cwd=case.out, stdin=subprocess.DEVNULL,
            stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    guard = threading.Timer(LIMIT_S, os.killpg, (child.pid, signal.SIGKILL))
    guard.start()
    _, status, usage = os.wait4(child.pid, 0)
    guard.cancel()
    found = Measured(name, peak_bytes=usage.ru_maxrss * 1024)
    lines = [json.loads(line) for line in steps.read_text().splitlines()] if steps.exists() else []
    if status or len(lines) < case.steps:
        found.error = f"exit status {os.waitstatus_to_exitcode(status)} after {len(lines)} steps, see {log}"
        return found
    found.losses = [line["loss"] for line in lines]
    found.tokens = [line["tokens"] for line in lines[:-1]]
    found.at_s, found.marks_s = [line["at"] - begun for line in lines], [line["cpu_s"] for line in lines]
    found.to_first_step_s = found.at_s[0]
    return found


def run_ours(case: Case) -> Measured:
    """`bash yichuidingyin.sh finetune`, its job watched from outside: CPU seconds and peak from /proc, the rest from
    the run's metrics.jsonl."""
    home, begun, found = case.out / "home", time.time(), Measured("this toolbox")
    with (case.out / "ours.log").open("wb") as log:
        child = subprocess.Popen(ours(case, home), env=environment(case, YCDY_LANG="en"), stdout=log, stderr=log)
    lines: list[dict[str, Any]] = []
    while child.poll() is None and time.time() - begun < LIMIT_S:
        time.sleep(POLL_S)
        run = next((home / "runs").glob("*/status.json"), None)
        pid = _pid(run) if run else 0
        if not run or not pid or not (seen := _usage(pid)):
            continue
        found.peak_bytes = max(found.peak_bytes, seen[1])
        metrics = _lines(run.parent / "metrics.jsonl")
        told = (run.parent / "log.txt").read_text("utf-8")
        if REFERENCE not in told:
            found.reference_cpu_s = -seen[0]
        if not found.to_first_step_s and "\nTraining\n" in told:
            found.to_first_step_s = time.time() - begun
            found.reference_cpu_s += seen[0]
        if len(metrics) > len(lines):
            lines = metrics
            found.at_s.append(time.time() - begun)
            found.marks_s.append(seen[0])
    if child.poll() is None:
        child.terminate()
    if child.wait() or len(lines) < case.steps or len(found.at_s) < case.steps:
        found.error = f"exit status {child.returncode} after {len(lines)} steps, see {case.out / 'ours.log'}"
        return found
    found.losses = [line["loss"] for line in lines]
    return found


def ours(case: Case, home: Path) -> list[str]:
    recipe = {
        "name": "bench", "summary": "LoRA as all sides are given it", "method": "lora", "dtype": case.torch_dtype,
        "stage": case.stage,
        "training": {
            "per_device_train_batch_size": BATCH, "max_length": LONGEST, "learning_rate": RATE,
            "max_steps": case.steps, "lr_scheduler_type": "linear", "warmup_ratio": 0.0, "save_steps": 1000,
            "eval_steps": 1000, "eval_on_start": False,
        },
        "LoraConfig": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"},
    }  # fmt: skip
    path = case.out / "recipe.yaml"
    path.write_bytes(msgspec.yaml.encode(recipe))
    return [
        "bash", str(ROOT / "yichuidingyin.sh"), "finetune", "--home", str(home), "--model", str(case.model),
        "--dataset", str(case.rows / "ours.jsonl"), "--stage", case.stage, "--recipe", str(path), "--seed", str(SEED),
        "--yes", "--json",
    ]  # fmt: skip


def _pid(status: Path) -> int:
    try:
        return int(json.loads(status.read_bytes())["pid"])
    except (OSError, ValueError, KeyError):
        return 0


def _lines(metrics: Path) -> list[dict[str, Any]]:
    """The steps that ended; an evaluation is none."""
    try:
        texts = metrics.read_text().splitlines()
    except OSError:
        return []
    return [line for line in map(json.loads, texts) if "loss" in line]


def _usage(pid: int) -> tuple[float, int] | None:
    """(CPU seconds, peak resident bytes) of a process so far; None where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), peak * 1024


def run_reference(case: Case) -> tuple[list[float], str]:
    """(the plain loop's losses, what it said where it failed); it leaves the adapter that all sides begin with."""
    words = ["train_reference.py", case.model, case.rows / "messages.jsonl", case.torch_dtype, case.steps, case.out]
    done = subprocess.run(
        [sys.executable, "-P", *(str(word) for word in (ROOT / "bench" / words[0], *words[1:]))],
        env=environment(case), capture_output=True, text=True,
    )  # fmt: skip
    return [json.loads(line)["loss"] for line in done.stdout.splitlines()], done.stderr[-2000:]


def rates(found: Measured, warm: int) -> tuple[float, float]:
    """(tokens a CPU second, tokens a second) without the first `warm` steps and the last."""
    tokens = sum(found.tokens[warm:-1])
    first, last = warm, len(found.tokens[:-1])
    return tokens / (found.marks_s[last] - found.marks_s[first]), tokens / (found.at_s[last] - found.at_s[first])
