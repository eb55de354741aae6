"""EvalScope's half of an evaluation, in its own interpreter: `python on_evalscope.py WORK.json`.

Nothing of this package can be imported there; __init__.py writes WORK.json (its `Work`) and reads `work["said"]`.
"""

import difflib
import json
import os
import sys
from pathlib import Path
from typing import Any

import evalscope
from evalscope import TaskConfig, run_task
from evalscope.api.benchmark import BenchmarkMeta, DefaultDataAdapter
from evalscope.api.benchmark.adapters.agent_adapter import AgentAdapter
from evalscope.api.dataset import DataLoader, Sample
from evalscope.api.messages import ChatMessageSystem, ChatMessageUser
from evalscope.api.metric import Score
from evalscope.api.mixin import CodeExecutionSandboxMixin
from evalscope.api.registry import get_benchmark, get_metric, register_benchmark
from evalscope.benchmarks.general_qa_vqa_metrics import METRIC_SCORE_KEYS

QUESTIONS = "suite_questions"
ROWS = (".jsonl", ".csv", ".tsv", ".parquet")
SPLITS = ("_test", "_val", "_dev")
KEPT = 4000
"""Characters of an answer in the rows; EvalScope's own files have all of them."""


@register_benchmark(
    BenchmarkMeta(
        name=QUESTIONS, pretty_name="Questions", description="Questions with short answers", dataset_id=QUESTIONS,
        metric_list=["exact_match"], eval_split="test",
        prompt_template="{question}",
    )
)  # fmt: skip
class Questions(DefaultDataAdapter):
    """Questions with short answers, asked as they stand: EvalScope's own `exact_match`, of any accepted answer."""

    def load_from_disk(self, **kwargs: Any) -> Any:
        return super().load_from_disk(use_local_loader=True)

    def record_to_sample(self, record: dict[str, Any]) -> Sample:
        system = [ChatMessageSystem(content=record["system"])] if record.get("system") else []
        return Sample(input=[*system, ChatMessageUser(content=record["question"])], target=record["answers"])

    def match_score(self, original_prediction: str, filtered_prediction: str, reference: str, task_state: Any) -> Score:
        equal = get_metric("exact_match")()
        best = max(equal(filtered_prediction, answer) for answer in task_state.target_reference.values)
        found = Score(extracted_prediction=filtered_prediction, prediction=original_prediction)
        found.value["exact_match"], found.main_score_name = best, "exact_match"
        return found


def main(work: dict[str, Any]) -> None:
    """Measure every task of `work["tasks"]`, one after the other, by asking one server."""
    load = DataLoader.__init__
    # 1.14.1 lets a data set run code of its own, unless told otherwise.
    DataLoader.__init__ = lambda self, *words, **named: load(self, *words, **{**named, "trust_remote": False})
    plans = [plan(work, task, number) for number, task in enumerate(work["tasks"])]
    for task, config in zip(work["tasks"], plans, strict=True):
        refuse(task["task"], config)
    told = {}
    for number, (task, config) in enumerate(zip(work["tasks"], plans, strict=True)):
        print(f"@task {number}", flush=True)
        report = run_task(config).get(task["task"])
        told[task["name"]] = [figures(report, Path(config.work_dir), task)] if report else []
    with open(work["said"] + ".part", "w", encoding="utf-8") as file:
        json.dump({"version": evalscope.__version__, "tasks": told}, file)
    os.replace(work["said"] + ".part", work["said"])


def plan(work: dict[str, Any], task: dict[str, Any], number: int) -> TaskConfig:
    """What EvalScope is told. The server's key is in OPENAI_API_KEY."""
    arguments, folder = work["arguments"], Path(work["folder"], str(number))
    own = {"few_shot_num": arguments["few_shot_num"]} if "few_shot_num" in arguments else {}
    if task["path"]:
        own |= {"local_path": task["path"]} | subsets(task["task"], Path(task["path"]))
    if task["task"] == "general_qa":
        own["metric_list"] = ["Rouge", *(["BLEU"] if has_tokenizer_data() else [])]
    generation = {"temperature": arguments.get("temperature", 0.0)}
    if longest := arguments.get("max_tokens", task["max_tokens"]):
        generation["max_tokens"] = longest
    before = (folder / "configs" / "task_config.yaml").is_file()
    return TaskConfig(
        model=work["model"], api_url=work["url"], api_key=os.environ["OPENAI_API_KEY"], eval_type="openai_api",
        datasets=[task["task"]], dataset_args={task["task"]: own}, limit=task["limit"] or None, work_dir=str(folder),
        # Resumed, the model is at another port, which EvalScope takes for another model unless told to score anew.
        use_cache=str(folder) if before else None,
        rerun_review=before, no_timestamp=True, generation_config=generation,
        eval_batch_size=arguments.get("eval_batch_size", 8), dataset_dir=work["cache"],
        dataset_hub=arguments.get("dataset_hub", work["hub"]), collect_perf=False,
    )  # fmt: skip


def subsets(benchmark: str, path: Path) -> dict[str, Any]:
    """Of the benchmarks for one's own rows: what their files are called, less the split."""
    if benchmark not in ("general_qa", "general_mcq"):
        return {}
    stems = {file.stem for file in path.iterdir() if file.suffix in ROWS and not file.stem.endswith("_dev")}
    return {
        "subset_list": sorted(
            {next((stem.removesuffix(s) for s in SPLITS if stem.endswith(s)), stem) for stem in stems}
        )
    }


def has_tokenizer_data() -> bool:
    """BLEU needs NLTK's tokenizer data, and counts as 0 where that is not here."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return False
    return True


def refuse(name: str, config: TaskConfig) -> None:
    """End with a sentence for what EvalScope does not know, or would run generated code for without a sandbox."""
    index = Path(evalscope.__file__).parent / "benchmarks" / "_index.json"
    names = [*json.loads(index.read_text()), QUESTIONS]
    if name not in names:
        sys.exit(f"@no task {json.dumps([name, difflib.get_close_matches(name, names, n=3)])}")
    if isinstance(get_benchmark(name, config), CodeExecutionSandboxMixin | AgentAdapter):
        sys.exit(f"@runs code {json.dumps([name])}")


def figures(report: Any, folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """The report's figures, with each row's own where their mean is that figure."""
    rows = sorted(reviews(folder), key=lambda row: (row["task"], row["row"]))
    keys = list(dict.fromkeys(key for row in rows for key in row["scores"]))
    metrics = {}
    for number, metric in enumerate(report.metrics):
        # Both come in the order in which the benchmark scores; what is summed up otherwise has rows of another number.
        key = keys[number] if len(keys) == len(report.metrics) else metric.identity.name
        values = [row["scores"].get(key) for row in rows]
        if any(key in row["failed"] for row in rows):
            continue
        metrics[key] = {
            "value": metric.score, "stderr": None, "values": values if is_mean(values, metric.score) else None,
            "more_is_better": metric.semantics is None or metric.semantics.direction != "lower_is_better",
        }  # fmt: skip
    shown = [
        {name: value for name, value in row.items() if name not in ("scores", "failed")} | row["scores"] for row in rows
    ]
    return {"name": task["name"], "metrics": metrics, "n": len(rows), "rows": shown}


def reviews(folder: Path) -> list[dict[str, Any]]:
    """What was said to each row, and its scores; `failed`: those that could not be computed and count as 0."""
    found = []
    for path in sorted(folder.glob("reviews/*/*.jsonl")):
        for line in path.read_text("utf-8").splitlines():
            review = json.loads(line)
            score = review["sample_score"]["score"]
            errors = (score.get("metadata") or {}).get("metric_errors", {})
            found.append({
                "task": path.stem, "row": review["index"], "target": review["target"],
                "said": str(score["prediction"])[:KEPT],
                "scores": {name: float(value) for name, value in score["value"].items()},
                "failed": [key for name in errors for key in METRIC_SCORE_KEYS.get(name, [name])],
            })  # fmt: skip
    return found


def is_mean(values: list[Any], mean: float) -> bool:
    """EvalScope rounds what it reports to four digits."""
    numbers = all(isinstance(value, float) for value in values)
    return bool(values) and numbers and abs(sum(values) / len(values) - mean) < 1e-4


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        main(json.load(file))
