"""The words that ask for what a plan did: reports show them as a line, and a diagnosis changes one of them."""

import shlex
from collections.abc import Sequence
from typing import Any

import msgspec

from toolbox.limits import Limits
from toolbox.ports import LOOPBACK


def line(verb: str, *words: str) -> str:
    """A command line of this program."""
    return " ".join(["bash yichuidingyin.sh", verb, *map(shlex.quote, words)])


def _mixed(plan: dict[str, Any]) -> list[str]:
    """What a merge says of several adapters, and of a base in 4 bits."""
    said = ["--onto", str(plan["onto"])] if plan.get("onto", "dequantized") != "dequantized" else []
    mixture = plan.get("mixture")
    if not isinstance(mixture, dict):
        return said
    said += ["--weights", *(f"{share:g}" for share in mixture["weights"]), "--combination", mixture["combination"]]
    return said + (["--density", f"{mixture['density']:g}"] if mixture.get("density") else [])


def words(verb: str, plan: dict[str, Any], settings: Sequence[str] = ()) -> list[str]:
    """The verb and its options; what a plan (as plain data) does not say is decided anew. `settings`: more `--set`."""
    said = [verb, *_subject(verb, plan)]
    if verb == "finetune":
        said += _training(plan, settings)
    said += ["--suite", *map(str, plan["suites"])] if verb == "evaluate" and plan.get("suites") else []
    said += _backend(plan) if plan.get("backend") else []
    said += ["--format", str(plan.get("format")), "--type", str(plan.get("type"))] if verb == "export" else []
    said += _mixed(plan) if verb == "merge" else []
    said += ["--output", str(plan["output"])] if verb in ("merge", "export") and "output" in plan else []
    return said + _server(plan) if verb == "serve" else said


def _backend(plan: dict[str, Any]) -> list[str]:
    """What measures instead, and as it was told to."""
    settings = [
        f"{name}={msgspec.json.encode(value).decode()}" for name, value in (plan.get("arguments") or {}).items()
    ]
    return ["--backend", str(plan["backend"]), *(["--backend-args", *settings] if settings else [])]


def _server(plan: dict[str, Any]) -> list[str]:
    """Where it listens, and what it allows."""
    usual = msgspec.to_builtins(Limits())
    changed = [f"{name}={value}" for name, value in (plan.get("limits") or {}).items() if value != usual.get(name)]
    said = ["--engine", str(plan.get("engine")), "--port", str(plan.get("port"))]
    said += ["--host", str(plan["host"])] if plan.get("host", LOOPBACK) != LOOPBACK else []
    said += ["--api-keys", str(plan["api_keys"])] if plan.get("api_keys") else []
    said += ["--limit", *changed] if changed else []
    return [*said, "--log-contents"] if plan.get("log_contents") else said


def _subject(verb: str, plan: dict[str, Any]) -> list[str]:
    """The model and its adapter, or the run they come from."""
    if plan.get("run") and verb in ("merge", "export", "evaluate"):
        return ["--run", str(plan["run"])]
    model = plan.get("model")
    said = ["--model", str(model.get("id", "") if isinstance(model, dict) else "")]
    adapters = [f"{each['name']}={each['path']}" for each in plan.get("adapters") or []]
    adapters = [str(plan["adapter"])] if plan.get("adapter") else adapters
    mixture = plan.get("mixture")
    adapters = [str(path) for path in mixture["adapters"]] if isinstance(mixture, dict) else adapters
    return [*said, "--adapter", *adapters] if adapters else said


def _training(plan: dict[str, Any], settings: Sequence[str]) -> list[str]:
    training, options = plan.get("training") or {}, plan.get("options") or {}
    steps = training.get("max_steps", -1)
    settings = [*([f"max_steps={steps}"] if steps > 0 else []), *_options(options), *settings]
    evaluated = [str(spec.get("name")) for spec in plan.get("eval_datasets") or []]
    said = ["--dataset", *(str(spec.get("name")) for spec in plan.get("datasets") or [])]
    said += ["--stage", str(plan["stage"])] if plan.get("stage", "sft") != "sft" else []
    said += ["--method", str(plan.get("method", "auto"))]
    said += ["--max-length", str(training["max_length"])] if "max_length" in training else []
    said += _judges(options)
    said += ["--set", *settings] if settings else []
    said += ["--epochs", str(training["num_train_epochs"])] if steps < 0 and "num_train_epochs" in training else []
    said += ["--learning-rate", str(training["learning_rate"])] if "learning_rate" in training else []
    said += ["--eval-dataset", *evaluated] if evaluated else ["--val-size", str(plan.get("eval_rows", 0))]
    return [*said, "--packing"] if training.get("packing") else said


def _options(options: dict[str, Any]) -> list[str]:
    """The stage's own, as `--set` takes them."""
    return [
        f"{options['stage']}.{name}={value}"
        for name, value in options.items()
        if name not in ("stage", "reward_funcs", "reward_model") and value != []
    ]


def _judges(options: dict[str, Any]) -> list[str]:
    """What judges a model's own answers, at the stages that learn from them."""
    functions, model = options.get("reward_funcs"), options.get("reward_model")
    said = ["--reward", *map(str, functions)] if functions else []
    return [*said, "--reward-model", str(model)] if model else said
