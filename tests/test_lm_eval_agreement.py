"""lm-evaluation-harness finds what our suites find: the same items, its own prompts, the embedded model, item by item.

Needs its environment (`engines install lm-eval-cpu`, or a folder of environments named by YCDY_ENGINES).
"""

import json
import os
import random
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from plans import CPU, demo_facts, write_jsonl

from toolbox import embedded, engines
from toolbox.config import find_home
from toolbox.evaluation import gsm8k, run
from toolbox.plan import EvaluatePlan
from toolbox.runs import Run
from toolbox.suites import numbers, rows, truthfulqa
from toolbox.suites.gsm8k import read

PYTHON = next(filter(None, (engines.own_python(name, find_home()) for name in ("lm-eval-cpu", "lm-eval"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(PYTHON is None, reason="needs: engines install lm-eval-cpu"),
]
GRADER = """
import json, sys, yaml
from pathlib import Path
import lm_eval
from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.filters.extraction import RegexFilter

tasks = Path(lm_eval.__file__).parent / "tasks" / "gsm8k"
pairs, found = json.load(sys.stdin), {}
for name in ("gsm8k", "gsm8k-cot-zeroshot"):
    task = yaml.safe_load((tasks / f"{name}.yaml").read_text())
    (metric,) = task["metric_list"]
    wanted = {key: metric[key] for key in ("ignore_case", "ignore_punctuation", "regexes_to_ignore")}
    for each in task["filter_list"]:
        settings = {key: value for key, value in each["filter"][0].items() if key != "function"}
        taken = RegexFilter(**settings).apply([[said] for _gold, said in pairs], [])
        found[f"{name} {each['name']}"] = [
            bool(exact_match_hf_evaluate(predictions=[one[0]], references=[gold], **wanted)["exact_match"])
            for one, (gold, _said) in zip(taken, pairs)
        ]
print(json.dumps(found))
"""
"""Grades answers with the regular expressions and the metric that lm-eval's own GSM8K tasks name."""


def lm_eval(folder: Path, task: dict[str, Any], *words: str) -> list[dict[str, Any]]:
    """The samples of a task of lm-eval on the embedded model, in the order of its rows."""
    (folder / "task.yaml").write_bytes(msgspec.yaml.encode({"task": "ours", **task}))
    subprocess.run(
        [
            str(PYTHON), "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={embedded.MODEL},dtype=float32",
            "--tasks", "ours", "--include_path", str(folder), "--device", "cpu", "--batch_size", "8", "--log_samples",
            "--output_path", str(folder / "out"), *words,
        ],
        check=True, capture_output=True, text=True, cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf"),
             "OMP_WAIT_POLICY": "PASSIVE"},
    )  # fmt: skip
    (file,) = (folder / "out").rglob("samples_*.jsonl")
    samples = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return sorted(samples, key=lambda sample: sample["doc_id"])


def theirs(name: str) -> str:
    """A task file that lm-eval brings."""
    return str(next(PYTHON.parent.parent.glob(f"lib/python*/site-packages/lm_eval/tasks/{name}")))  # type: ignore[union-attr]


def data(**files: Path) -> dict[str, Any]:
    """Rows of local files in place of a hub's."""
    return {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {k: str(v) for k, v in files.items()}},
    }


def ours(tmp_path: Path, file: Path) -> list[dict[str, Any]]:
    job = Run(tmp_path / "run")
    plan = EvaluatePlan(
        entry="toolbox.evaluation:run", model=demo_facts(), device=CPU, limit=0, suites=[str(file)], compare=False
    )
    run(plan, job)
    (saved,) = (job.path / "evaluation").glob("*.json")
    return list(json.loads(saved.read_text("utf-8"))["rows"]["base"])


def likelihoods(sample: dict[str, Any]) -> list[float]:
    return [float(value) for ((value, _greedy),) in sample["resps"]]


@pytest.mark.parametrize("setting", ["mc1", "mc2"])
def test_truthfulqa(tmp_path: Path, shared_data: Any, setting: str) -> None:
    """Of 100 questions the likelihood of each answer is the same to 1e-3, and so is the score of each question."""
    asked = rows.spread(truthfulqa.read(shared_data("eval/truthfulqa_mc_task.json")), 100)
    columns = [
        {"question": row.question, **{f"mc{n}_targets": _targets(getattr(row, f"mc{n}")) for n in range(3)}}
        for row in asked
    ]
    file = write_jsonl(tmp_path / "truthfulqa.jsonl", columns)
    mine = ours(tmp_path, file)
    samples = lm_eval(tmp_path, {"include": theirs(f"truthfulqa/truthfulqa_{setting}.yaml"), **data(validation=file)})
    assert len(samples) == len(mine) == 100
    for row, own, sample in zip(asked, mine, samples, strict=True):
        listed = [own["log_likelihoods"][answer] for answer in getattr(row, setting)]
        assert listed == pytest.approx(likelihoods(sample), abs=1e-3)
        assert float(own[setting]) == pytest.approx(sample["acc"], abs=1e-4)


def _targets(answers: dict[str, bool]) -> dict[str, list[Any]]:
    return {"choices": list(answers), "labels": [int(true) for true in answers.values()]}


def _sums(seed: int, count: int) -> Iterable[dict[str, Any]]:
    """Questions with four options each."""
    draw = random.Random(seed)
    for _row in range(count):
        one, other, right = draw.randrange(9), draw.randrange(9), draw.randrange(4)
        options = [str(one + other + place - right) for place in range(4)]
        yield {"subject": "arithmetic", "question": f"What is {one} + {other}?", "choices": options, "answer": right}


def test_mmlu_with_five_examples(tmp_path: Path) -> None:
    test, dev = write_jsonl(tmp_path / "sums_test.jsonl", _sums(1, 100)), tmp_path / "sums_dev.jsonl"
    write_jsonl(dev, _sums(2, 6))
    mine = ours(tmp_path, test)
    about = "The following are multiple choice questions (with answers) about arithmetic.\n\n"
    task = {"include": theirs("mmlu/default/_default_template_yaml"), **data(test=test, dev=dev), "description": about}
    samples = lm_eval(tmp_path, task, "--num_fewshot", "5")
    for own, sample in zip(mine, samples, strict=True):
        assert own["log_likelihoods"] == pytest.approx(likelihoods(sample), abs=1e-3)
        assert own["right"] == bool(sample["acc"])


def test_options_that_are_answers_of_their_own(tmp_path: Path, shared_data: Any) -> None:
    """The answers of TruthfulQA in the form of ARC, whose task has acc and acc_norm."""
    asked = rows.spread(truthfulqa.read(shared_data("eval/truthfulqa_mc_task.json")), 100)
    columns = [
        {
            "question": row.question,
            "choices": {"text": list(row.mc1), "label": [str(number) for number in range(len(row.mc1))]},
            "answerKey": str(list(row.mc1.values()).index(True)),
        }
        for row in asked
        if all(row.mc1)  # lm-eval divides by the length of an option
    ]
    file = write_jsonl(tmp_path / "arc.jsonl", columns)
    mine = ours(tmp_path, file)
    task = {"include": theirs("arc/arc_easy.yaml"), **data(train=file, validation=file, test=file)}
    samples = lm_eval(tmp_path, task)
    for own, sample in zip(mine, samples, strict=True):
        assert own["log_likelihoods"] == pytest.approx(likelihoods(sample), abs=1e-3)
        assert (own["right"], own["right_norm"]) == (bool(sample["acc"]), bool(sample["acc_norm"]))


def _commonsense(form: str, questions: list[truthfulqa.Question]) -> Iterable[dict[str, Any]]:
    """TruthfulQA's answers in the columns of another suite; the right option moves on by one from row to row."""
    for place, row in enumerate(questions):
        (one, other), right = row.pair, place % 2
        ordered = [other, one] if right else [one, other]
        match form:
            case "hellaswag":
                yield {"activity_label": "Answering", "ctx_a": row.question, "ctx_b": "people [step] say",
                       "endings": [f"[title] {text}" for text in ordered], "label": str(right)}  # fmt: skip
            case "piqa":
                yield {"goal": row.question, "sol1": ordered[0], "sol2": ordered[1], "label": right}
            case "winogrande":
                yield {"sentence": f"{row.question} It is _ that people say, or not. ", "option1": ordered[0],
                       "option2": ordered[1], "answer": str(right + 1)}  # fmt: skip
            case "openbookqa":
                choices = {"text": ordered, "label": ["A", "B"]}
                yield {"question_stem": row.question, "choices": choices, "answerKey": "AB"[right]}
            case "boolq":
                yield {"passage": one, "question": row.question.rstrip("?"), "label": right}


@pytest.mark.parametrize(
    ("form", "task"),
    [
        ("hellaswag", "hellaswag/hellaswag.yaml"),
        ("piqa", "piqa/piqa.yaml"),
        ("winogrande", "winogrande/default.yaml"),
        ("openbookqa", "openbookqa/openbookqa.yaml"),
        ("boolq", "super_glue/boolq/default.yaml"),
    ],
)
def test_common_sense(tmp_path: Path, shared_data: Any, form: str, task: str) -> None:
    asked = rows.spread(truthfulqa.read(shared_data("eval/truthfulqa_mc_task.json")), 60)
    file = write_jsonl(tmp_path / f"{form}.jsonl", list(_commonsense(form, [row for row in asked if all(row.mc0)])))
    mine = ours(tmp_path, file)
    samples = lm_eval(tmp_path, {"include": theirs(task), **data(train=file, validation=file, test=file)})
    assert len(mine) == len(samples) > 50
    for own, sample in zip(mine, samples, strict=True):
        assert own["log_likelihoods"] == pytest.approx(likelihoods(sample), abs=1e-3)
        assert own["right"] == bool(sample["acc"])
        assert own["right_norm"] == bool(sample.get("acc_norm", own["right_norm"]))


def test_perplexity_of_text(tmp_path: Path, shared_data: Any) -> None:
    """Documents longer than the model can see, as lm-eval's wikitext task measures its pages."""
    solutions = [problem.answer for problem in read(shared_data("eval/gsm8k_test.jsonl"))]
    pages = [{"text": "\n".join(solutions[place : place + 8])} for place in range(0, 96, 8)]
    file = write_jsonl(tmp_path / "pages.jsonl", pages)
    mine = ours(tmp_path, file)
    task = {
        **data(test=file), "test_split": "test", "output_type": "loglikelihood_rolling", "doc_to_text": "",
        "doc_to_target": "{{text}}", "metric_list": [{"metric": "byte_perplexity"}],
    }  # fmt: skip
    samples = lm_eval(tmp_path, task)
    for own, sample in zip(mine, samples, strict=True):
        assert own["tokens"] > 512
        theirs_found, count = sample["byte_perplexity"]
        assert own["bytes"] == count
        assert own["log_likelihood"] == pytest.approx(theirs_found, rel=1e-5)


def test_gsm8k_is_answered_alike(tmp_path: Path, shared_data: Any) -> None:
    """The embedded model can't calculate: what is compared is each answer, to the letter."""
    chosen = rows.spread(read(shared_data("eval/gsm8k_test.jsonl")), 40)
    columns = [
        {"question": row.question, "answer": row.answer, "asked": gsm8k.asked(row)[0]["content"]} for row in chosen
    ]
    file = write_jsonl(tmp_path / "gsm8k.jsonl", columns)
    mine = ours(tmp_path, file)
    task = {
        "include": theirs("gsm8k/gsm8k.yaml"), **data(train=file, test=file), "doc_to_text": "{{asked}}",
        "num_fewshot": 0, "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": 256},
    }  # fmt: skip
    samples = lm_eval(tmp_path, task, "--apply_chat_template")
    by_filter = {
        name: [one for one in samples if one["filter"] == name] for name in ("strict-match", "flexible-extract")
    }
    for own, strict, flexible in zip(mine, by_filter["strict-match"], by_filter["flexible-extract"], strict=True):
        assert own["said"] == strict["resps"][0][0]
        assert own["right_strict"] == bool(strict["exact_match"])
        assert own["right_flexible"] == bool(flexible["exact_match"])


def graded(pairs: list[tuple[str, str]]) -> dict[str, list[bool]]:
    done = subprocess.run(
        [str(PYTHON), "-c", GRADER], input=json.dumps(pairs), check=True, capture_output=True, text=True
    )
    return dict(json.loads(done.stdout))


def test_answers_are_graded_alike(shared_data: Any) -> None:
    """All 1319 solutions, ended rightly and wrongly, behind either mark or behind none."""
    pairs: list[tuple[str, str]] = []
    for place, problem in enumerate(read(shared_data("eval/gsm8k_test.jsonl"))):
        way, gold = problem.answer.split("#### ")
        wrong = str(numbers.final(gold) + 1)  # type: ignore[operator]
        endings = (f"#### {gold}", f"#### {wrong}", f"The answer is {gold}.", f"The answer is {wrong}.")
        pairs.append((f"#### {gold}", way + endings[place % 4]))
    theirs_found = graded(pairs)
    right = [numbers.final(gold) for gold, _said in pairs]
    stated = [numbers.stated(said) == gold for (_gold, said), gold in zip(pairs, right, strict=True)]
    final = [numbers.final(said) == gold for (_gold, said), gold in zip(pairs, right, strict=True)]
    either = [
        a or b
        for a, b in zip(
            theirs_found["gsm8k strict-match"], theirs_found["gsm8k-cot-zeroshot strict-match"], strict=True
        )
    ]
    assert stated == either
    assert final == theirs_found["gsm8k flexible-extract"]
    assert 0.4 < sum(final) / len(final) < 0.6
