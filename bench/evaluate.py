"""What likelihoods and answers of suites take, beside lm-evaluation-harness: `python bench/evaluate.py [--help]`.

Sides, each in a process of its own, one after another, on the same rows and prompts:

- `ours`: as `evaluate` asks;
- `apart`: the same with every row by itself: nothing shared, and no row leaves its batch before the last is answered;
- `lm-eval`: lm-evaluation-harness 0.4.13, from the environment that `serve --install lm-eval-cpu` makes.

Cases are TruthfulQA's answers (`mc1`, `mc2` asked together), its questions as MMLU's form with five examples, and
GSM8K's answers in words. CPU seconds are those of loading the model and asking it, imports not counted; memory is the
largest resident of the process, imports counted. The model `small` is PEERS_HOME/assets/small: 82M random weights.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from toolbox import embedded, engines  # noqa: E402
from toolbox.config import find_home  # noqa: E402
from toolbox.evaluation import gsm8k  # noqa: E402
from toolbox.suites import rows, truthfulqa  # noqa: E402
from toolbox.suites.gsm8k import read  # noqa: E402

DATA = ROOT.parent / "shared" / "data" / "eval"
PEERS = Path(os.environ.get("PEERS_HOME") or Path(tempfile.gettempdir()) / "peers")
MODELS = {"demo": embedded.MODEL, "small": PEERS / "assets" / "small"}
NEW_TOKENS = 128
"""Random weights never end an answer."""
ABOUT = "The following are multiple choice questions (with answers) about truth.\n\n"
ITEMS = {"demo": {"truthfulqa": 50, "mmlu": 100, "gsm8k": 100}, "small": {"truthfulqa": 3, "mmlu": 8, "gsm8k": 4}}
OURS = """
import json, resource, sys, time
from pathlib import Path
from toolbox import inference, likelihoods, loading, suites
from toolbox.config import find_home
from toolbox.evaluation import gsm8k, measures
from toolbox.evaluation.subjects import Loaded
side, model, file, new_tokens = sys.argv[1:]
gsm8k.MAX_NEW_TOKENS = int(new_tokens)
if side == "apart":
    likelihoods.WORTH = 0.0
    inference._may_leave = lambda model, settings: False
begun = time.process_time()
path = Path(model)
subject = Loaded("base", loading.base_model(path, "float32", "cpu").eval(), loading.tokenizer(path))
found = measures.measure(subject, suites.resolve(file, find_home()), 0, inference.unwatched)
print(json.dumps({
    "cpu_s": time.process_time() - begun, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "figures": {name: one.estimate().value for name, one in found.metrics.items()},
}))
"""
THEIRS = """
import json, os, resource, sys, time
from pathlib import Path
import lm_eval
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer
model, folder, *names, shots = sys.argv[1:]
theirs = Path(lm_eval.__file__).parent / "tasks"
for file in Path(folder).glob("*.json"):
    task = json.loads(file.read_text())
    task["include"] = str(theirs / task["include"])
    (Path(folder) / f"{file.stem}.yaml").write_text(json.dumps(task))
begun = time.process_time()
found = lm_eval.simple_evaluate(
    model="hf", model_args={"pretrained": model, "dtype": "float32"}, tasks=names, device="cpu", batch_size=8,
    task_manager=TaskManager(include_path=folder, include_defaults=False), num_fewshot=int(shots) or None,
    apply_chat_template="gsm8k" in names and bool(AutoTokenizer.from_pretrained(model).chat_template),
    bootstrap_iters=0, log_samples=False,
)
print(json.dumps({
    "cpu_s": time.process_time() - begun, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "figures": {f"{task} {name}": value for task, one in found["results"].items() for name, value in one.items()
                if isinstance(value, float)},
}))
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cases", nargs="+", default=["truthfulqa", "mmlu", "gsm8k"])
    options.add_argument("--sides", nargs="+", default=["ours", "apart", "lm-eval"])
    options.add_argument("--models", nargs="+", default=["demo"], choices=list(MODELS))
    options.add_argument("--items", type=int, default=0, help="of each case; 0: as many as a few minutes allow")
    chosen = options.parse_args()
    for name in chosen.models:
        for case in chosen.cases:
            with tempfile.TemporaryDirectory() as folder:
                items = chosen.items or ITEMS[name][case]
                asked = CASES[case](Path(folder), items)
                for side in chosen.sides:
                    said = measured(side, MODELS[name], case, asked, Path(folder))
                    figures = " ".join(f"{key} {value:.4f}" for key, value in said["figures"].items())
                    print(
                        f"{name:6} {case:10} {side:8} {items:4} items {said['cpu_s']:7.1f} CPU s"
                        f" {items / said['cpu_s']:7.2f} items/CPU s {said['peak_mib']:6.0f} MiB  {figures}",
                        flush=True,
                    )


def measured(side: str, model: Path, case: str, file: Path, folder: Path) -> dict[str, Any]:
    """`cpu_s`, `peak_mib` and `figures` of one side."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1",
           "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}  # fmt: skip
    if side == "lm-eval":
        python = next(filter(None, (engines.own_python(one, find_home()) for one in ("lm-eval-cpu", "lm-eval"))), None)
        names = ["mc1", "mc2"] if case == "truthfulqa" else [case]
        command = [str(python), "-c", THEIRS, str(model), str(folder), *names, "5" if case == "mmlu" else "0"]
    else:
        command = [sys.executable, "-c", OURS, side, str(model), str(file), str(NEW_TOKENS)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True, env=env)
    return dict(json.loads(done.stdout.strip().rpartition("\n")[2]))


def _truthfulqa(folder: Path, items: int) -> Path:
    asked = rows.spread(truthfulqa.read(DATA / "truthfulqa_mc_task.json"), items)
    file = _write(folder / "truthfulqa.jsonl", (
        {"question": row.question, **{f"mc{n}_targets": _targets(getattr(row, f"mc{n}")) for n in range(3)}}
        for row in asked
    ))  # fmt: skip
    for name in ("mc1", "mc2"):
        _task(folder, name, f"truthfulqa/truthfulqa_{name}.yaml", validation=file)
    return file


def _targets(answers: dict[str, bool]) -> dict[str, list[Any]]:
    return {"choices": list(answers), "labels": [int(true) for true in answers.values()]}


def _mmlu(folder: Path, items: int) -> Path:
    """Four answers of TruthfulQA as A to D; the five shortest questions are the examples."""
    asked = [row for row in truthfulqa.read(DATA / "truthfulqa_mc_task.json") if len(row.mc1) >= 4]
    asked.sort(key=lambda row: len(row.question) + sum(len(answer) for answer in list(row.mc1)[:4]))
    test = _write(folder / "truth_test.jsonl", map(_lettered, rows.spread(asked[5:], items), range(items)))
    dev = _write(folder / "truth_dev.jsonl", map(_lettered, asked[:5], range(5)))
    _task(folder, "mmlu", "mmlu/default/_default_template_yaml", description=ABOUT, test=test, dev=dev)
    return test


def _lettered(row: truthfulqa.Question, number: int) -> dict[str, Any]:
    options = list(row.mc1)[:4]
    right = options.pop(list(row.mc1.values()).index(True))
    options.insert(number % 4, right)
    return {"subject": "truth", "question": row.question, "choices": options, "answer": number % 4}


def _gsm8k(folder: Path, items: int) -> Path:
    asked = rows.spread(read(DATA / "gsm8k_test.jsonl"), items)
    file = _write(folder / "gsm8k.jsonl", (
        {"question": row.question, "answer": row.answer, "asked": gsm8k.asked(row)[0]["content"]} for row in asked
    ))  # fmt: skip
    _task(
        folder, "gsm8k", "gsm8k/gsm8k.yaml", train=file, test=file, doc_to_text="{{asked}}", num_fewshot=0,
        generation_kwargs={"until": [], "do_sample": False, "max_gen_toks": NEW_TOKENS},
    )  # fmt: skip
    return file


CASES = {"truthfulqa": _truthfulqa, "mmlu": _mmlu, "gsm8k": _gsm8k}


def _write(path: Path, made: Iterator[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in made))
    return path


def _task(folder: Path, name: str, include: str, **settings: Any) -> None:
    """One of lm-eval's own tasks on rows that lie here."""
    files = {split: str(settings.pop(split)) for split in ("train", "validation", "test", "dev") if split in settings}
    told = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    (folder / f"{name}.json").write_text(json.dumps({"include": include, "task": name, **told, **settings}))


if __name__ == "__main__":
    main()
