"""lm-evaluation-harness's half of an evaluation, in its own interpreter: `python on_lm_eval.py WORK.json`.

Nothing of this package can be imported there; __init__.py writes WORK.json (its `Work`) and reads `work["said"]`.
"""

import difflib
import json
import os
import sys
from typing import Any

import lm_eval
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import handle_non_serializable

RESAMPLES = 2000
"""For errors of figures that are no mean; the harness' own 100 000 take minutes."""
KEPT = 4000
"""Characters of a prompt or an answer in the rows; `samples.jsonl` has all of them."""


def main(work: dict[str, Any]) -> None:
    """Measure every task of `work["tasks"]`, one after the other, on one model."""
    manager = TaskManager()
    for task in work["tasks"]:
        refuse(task["task"], manager)
    model, told = make(work), {}
    for number, task in enumerate(work["tasks"]):
        print(f"@task {number}", flush=True)
        told[task["name"]] = figures(measure(work, task, model, manager), task, work["folder"], number)
    with open(work["said"] + ".part", "w", encoding="utf-8") as file:
        json.dump({"version": lm_eval.__version__, "tasks": told}, file)
    os.replace(work["said"] + ".part", work["said"])


def refuse(name: str, manager: TaskManager) -> None:
    """End with a sentence for a task that there is not, or that runs generated code; before a model is loaded."""
    if name not in manager.all_tasks and not os.path.exists(name):
        near = difflib.get_close_matches(name, manager.all_tasks, n=3)
        sys.exit(f"@no task {json.dumps([name, near])}")
    path = manager.task_index[name].yaml_path if name in manager.task_index else name
    if path and load_yaml(path, resolve_func=False).get("unsafe_code"):
        sys.exit(f"@runs code {json.dumps([name])}")


def make(work: dict[str, Any]) -> Any:
    """The model, loaded here or behind an address; the address' key is in OPENAI_API_KEY."""
    settings = dict(work["model_args"])
    extra = {"batch_size": work["arguments"].get("batch_size", work["batch_size"]), "device": work["device"]}
    if work["endpoint"]:
        return get_model("local-chat-completions").create_from_arg_obj(settings, {"batch_size": 1})
    if "max_length" in work["arguments"]:
        settings["max_length"] = work["arguments"]["max_length"]
    return get_model("hf").create_from_arg_obj({**settings, "trust_remote_code": False}, extra)


def measure(work: dict[str, Any], task: dict[str, Any], model: Any, manager: TaskManager) -> dict[str, Any]:
    """The harness's results; its own code runners stay locked, since they have no sandbox."""
    arguments = {name: value for name, value in work["arguments"].items() if name not in ("batch_size", "max_length")}
    arguments.setdefault("apply_chat_template", task["chat"] or work["endpoint"])
    return lm_eval.simple_evaluate(
        model=model, tasks=[task["task"]], task_manager=manager, limit=task["limit"] or None, log_samples=True,
        confirm_run_unsafe_code=False, bootstrap_iters=RESAMPLES, **arguments,
    )  # fmt: skip


def figures(results: dict[str, Any], task: dict[str, Any], folder: str, number: int) -> list[dict[str, Any]]:
    """A group has figures of its own, over all rows below it; of a tag, which has none, each task below it."""
    samples = results["samples"]
    with open(os.path.join(folder, f"{number}-samples.jsonl"), "w", encoding="utf-8") as file:
        for leaf, rows in samples.items():
            for row in rows:
                line = {"task": leaf, **row}
                file.write(json.dumps(line, default=handle_non_serializable, ensure_ascii=False) + "\n")
    kept = {name: value for name, value in results.items() if name != "samples"}
    with open(os.path.join(folder, f"{number}-results.json"), "w", encoding="utf-8") as file:
        json.dump(kept, file, default=handle_non_serializable, ensure_ascii=False, indent=1)
    asked = task["task"] if task["task"] in results.get("groups", {}) else ""
    if asked or len(samples) == 1:
        return [one(results, asked or next(iter(samples)), list(samples), task["name"])]
    return [one(results, leaf, [leaf], f"{task['name']}/{leaf}") for leaf in samples]


def one(results: dict[str, Any], source: str, leaves: list[str], name: str) -> dict[str, Any]:
    """The figures that `source` has in the results, with each row's own where their mean is that figure."""
    rows = [(leaf, row) for leaf in leaves for row in sorted(results["samples"][leaf], key=lambda row: row["doc_id"])]
    stated, metrics = results["results"][source], {}
    for key, value in stated.items():
        metric, _comma, kept = key.partition(",")
        if not kept or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        values = [row.get(metric) for _leaf, row in rows if row.get("filter") == kept]
        error = stated.get(f"{metric}_stderr,{kept}")
        metrics[metric if kept == "none" else key] = {
            "value": value, "stderr": error if isinstance(error, int | float) else None,
            "values": [float(each) for each in values] if is_mean(values, value) else None,
            "more_is_better": results["higher_is_better"].get(source, {}).get(metric),
        }  # fmt: skip
    return {"name": name, "metrics": metrics, "n": len({(leaf, row["doc_id"]) for leaf, row in rows}), "rows": [
        {"task": leaf, "row": row["doc_id"], "filter": row["filter"], "target": text(row["target"]),
         "said": text(row["filtered_resps"]), **{each: row[each] for each in row["metrics"] if plain(row.get(each))}}
        for leaf, row in rows
    ]}  # fmt: skip


def is_mean(values: list[Any], mean: float) -> bool:
    return bool(values) and all(map(plain, values)) and abs(sum(values) / len(values) - mean) < 1e-9


def plain(value: Any) -> bool:
    return isinstance(value, int | float)


def text(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False))[:KEPT]


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        main(json.load(file))
