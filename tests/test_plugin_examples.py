"""Every example of docs/plugins.md, run as a person would; plugins in a job and in its checkpoints."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli
from plans import finetune_plan, write_jsonl
from test_plugins import _forgotten  # noqa: F401  (what a test loads is gone after it)
from test_training import Recorder, train

from toolbox import embedded, evaluation, methods, models, planning, plugins, runs
from toolbox.commands import finetune
from toolbox.config import Home
from toolbox.datasets import resolve
from toolbox.errors import InputError, Interrupted, NotFoundError
from toolbox.plan import EvaluatePlan
from toolbox.stages import Dpo, Sft
from toolbox.suites import kinds
from toolbox.ui import Terminal
from toolbox.wishes import Wishes

PAGE = Path(__file__).parent.parent / "docs" / "plugins.md"
EXAMPLES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL))


@pytest.fixture
def example(tmp_path: Path) -> Any:
    """Writes an example to a file of its name, and loads it."""

    def load(name: str) -> plugins.File:
        path = tmp_path / name
        path.write_text(EXAMPLES[name])
        return plugins.load(path)

    return load


def run_of(home: Path, files: list[plugins.File], *names: str, **changes: Any) -> runs.Run:
    made = finetune_plan(home, *names, **changes)
    made.plugins, made.callbacks = files, plugins.of_files("callback")
    return runs.create(home / "runs", "test", made)


def test_every_kind_has_an_example_that_is_a_file() -> None:
    shown = "".join(EXAMPLES.values())
    assert set(plugins.KINDS) - {"stage", "tracker", "dataset"} <= set(re.findall(r'register\("(\w+)"', shown))
    assert all(f"`{kind}`" in PAGE.read_text("utf-8") for kind in plugins.KINDS if kind != "stage")


def test_a_loss_an_optimizer_a_tuner_a_callback_and_data_train_and_resume_as_one(home: Path, example: Any) -> None:
    files = [example(f"{name}.py") for name in ("losses", "optimizers", "tuners", "callbacks", "data")]
    changes = {"method": "norms", "optim": "signum", "options": Sft(loss_type="focal"), "eval_rows": 2,
               "learning_rate": 1e-2, "gradient_accumulation_steps": 1, "eval_steps": 2, "max_steps": 5}  # fmt: skip
    straight, stopped = (run_of(home, files, "counting", **changes) for _ in range(2))
    whole = Recorder()
    result = train(straight, whole)
    with pytest.raises(Interrupted):
        train(stopped, Recorder(stop_after=3))
    resumed = train(stopped)
    for name in ("train_loss", "eval_loss", "eval", "steps"):
        assert resumed[name] == result[name], name
    assert result["eval"]["eval_best"] <= result["eval_loss_before"]
    assert whole.losses()[-1] < whole.losses()[0]
    assert "model" in result
    assert "norms" in {method.name for method in methods.every()}


def test_a_callback_ends_the_training_which_is_saved_and_stays_ended(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "stop.py"
    path.write_text(EXAMPLES["callbacks.py"].replace('metrics["eval_loss"] < self.best', "False"))
    run = run_of(home, [plugins.load(path)], eval_steps=1, max_steps=9)
    assert train(run)["steps"] == 1, "before the first step, and after it, the loss had not fallen"
    shutil.rmtree(run.adapter)
    again = train(run)
    assert (again["steps"], Path(again["adapter"]).is_dir()) == (1, True)


def test_a_loss_of_pairs_trains_dpo(home: Path, example: Any, tmp_path: Path) -> None:
    pairs = [{"prompt": f"Say {n}.", "chosen": f"{n}.", "rejected": "No."} for n in ("one", "two", "six", "ten")]
    data = str(write_jsonl(tmp_path / "pairs.jsonl", pairs))
    losses = {}
    files = [example("losses.py")]
    for loss_type in ("sigmoid", "cautious"):
        run = run_of(
            home, files, data, stage="dpo", options=Dpo(loss_type=loss_type, beta=1.0), eval_rows=0, max_steps=2
        )
        recorder = Recorder()
        train(run, recorder)
        losses[loss_type] = recorder.losses()
    assert losses["cautious"][0] == pytest.approx(losses["sigmoid"][0])
    assert losses["cautious"] != losses["sigmoid"]


def test_metrics_and_a_suite_measure_answers(home: Path, example: Any) -> None:
    files = [example("metrics.py"), example("suites.py")]
    facts = models.resolve("demo", Home(home))
    made = EvaluatePlan(
        entry="", model=facts, device=finetune_plan(home).device, suites=["demo-qa", "politeness"], limit=6,
        metrics=["contains", "length"], plugins=files,
    )  # fmt: skip
    rows = {(row["suite"], row["metric"]): row for row in evaluation.run(made)["results"]}
    assert rows["demo-qa", "contains"]["value"] >= rows["demo-qa", "exact_match"]["value"] > 0
    assert rows["demo-qa", "length"]["greater_is_better"] is False
    assert rows["demo-qa", "length"]["value"] > 3
    assert rows["politeness", "greets"]["n"] == 3
    assert kinds.metric(rows["demo-qa", "length"]).title == "length ↓"


@pytest.mark.slow
def test_a_family_makes_a_model_known(home: Path, example: Any, tmp_path: Path) -> None:
    folder = tmp_path / "ours"
    shutil.copytree(embedded.MODEL, folder)
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "ours", "auto_map": {"AutoConfig": "x.y"}, "architectures": ["OursForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="program code of its own"):
        models.resolve(str(folder), Home(home))
    file = example("families.py")
    facts = models.resolve(str(folder), Home(home))
    assert facts.chat_template
    made = planning.plan_finetune(facts, [resolve("demo-persona", Home(home))], finetune_plan(home).device,
                              Wishes(method="lora", settings=["max_steps=2"]), Home(home))  # fmt: skip
    assert made.LoraConfig["target_modules"] == ["q_proj", "v_proj"]
    made.plugins = [file]
    result = train(runs.create(home / "runs", "ours", made))
    assert result["train_loss"] < 5
    config = json.loads((Path(result["adapter"]) / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]


def test_a_reward_takes_columns(example: Any) -> None:
    example("rewards.py")
    assert plugins.find("reward", "right")(prompts=["?", "?"], completions=["42.", "no"], answer=["42", "7"]) == [1, 0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"optim": "adam"}, "no optimizer 'adam'"), ({"dpo.loss_type": "x"}, "no loss 'dpo.x'"),
     ({"report_to": "[x]"}, "no tracker 'x'")],
)  # fmt: skip
def test_a_name_that_nobody_has_is_refused_by_the_plan(home: Path, changes: dict[str, str], said: str) -> None:
    stage = "dpo" if "dpo.loss_type" in changes else "sft"
    wishes = Wishes(settings=[f"{key}={value}" for key, value in changes.items()], stage=stage)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match=said):
        planning.plan_finetune(models.resolve("demo", Home(home)), [], finetune_plan(home).device, wishes, Home(home))


def test_what_is_not_what_its_kind_has_to_be_is_named_with_its_line(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(
        "from toolbox.plugins import register\n"
        "register('loss', 'sft.mean')(lambda logits, targets: logits.mean())\n"
        "register('optimizer', 'none')(lambda named_parameters, plan: None)\n"
        "register('callback', 'text')(lambda plan: 'text')\n"
    )
    files = [plugins.load(path)]
    for line, reason, changes in (
        (2, r"it gives \[\]", {"options": Sft(loss_type="mean"), "callbacks": []}),
        (3, "it gives no torch.optim.Optimizer", {"optim": "none", "callbacks": []}),
        (4, "it gives no toolbox.plugins.Callback", {}),
    ):
        made = finetune_plan(home, eval_rows=0, max_steps=1, **changes)
        made.plugins = files
        made.callbacks = made.callbacks if "callbacks" in changes else ["text"]
        with pytest.raises(InputError, match=rf"wrong\.py is broken, line {line}: {reason}"):
            train(runs.create(home / "runs", "test", made))


def test_settings_and_a_recipe_that_is_named_bring_plugins_too(home: Path, tmp_path: Path) -> None:
    for name in ("optimizers.py", "tuners.py", "rewards.py"):
        (tmp_path / name).write_text(EXAMPLES[name])
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nsummary: norms\nmethod: norms\nplugins: [tuners.py, optimizers.py]\n"
        "training: {per_device_train_batch_size: 1, learning_rate: 1e-3, optim: signum}\n"
    )
    session = Terminal.open(str(home))
    session.settings.plugins = str(tmp_path / "rewards.py")
    options = finetune.Options(dataset=["demo-persona"], recipe=str(tmp_path / "mine.yaml"), tracker=["none"])
    made = finetune.make_plan(options, session)
    assert [file.path.name for file in made.plugins] == ["rewards.py", "tuners.py", "optimizers.py"]
    assert (made.method, made.training.optim, made.training.report_to) == ("norms", "signum", [])
    assert made.estimate.peak_bytes > 0


FLAKY = """
from toolbox.plugins import Callback, register

@register("callback", "flaky")
class Flaky(Callback):
    def on_step_end(self, step, metrics):
        if step == 2:
            raise KeyError("oops")
"""


@pytest.mark.slow
def test_from_the_command_line_to_a_copy_that_outlives_the_original(
    toolbox_cli: Cli, tmp_path: Path, home: Path
) -> None:
    """A callback that breaks at step 2 ends the run with its line; the copy is what is run again."""
    (tmp_path / "flaky.py").write_text(FLAKY)
    words = ("finetune", "--dataset", "demo-persona", "--set", "max_steps=3", "--plugin", "flaky.py", "--yes", "--json")
    answer = toolbox_cli(*words)
    assert answer.status == 2
    assert "flaky.py is broken, line 8: KeyError: 'oops'" in answer.json["error"]["message"]
    run = runs.every(home / "runs")[0]
    (tmp_path / "flaky.py").write_text("syntax error")
    again = toolbox_cli("runs", "reproduce", run.id, "--json")
    assert again.status == 2
    assert "line 8: KeyError" in again.json["error"]["message"]
    copied = home.parent / "elsewhere" / run.id
    shutil.copytree(run.path, copied)
    refused = toolbox_cli("runs", "reproduce", str(copied / "plan.yaml"), "--json")
    assert (refused.status, "brings plugins" in refused.json["error"]["message"]) == (2, True)
    broken = toolbox_cli(*words)
    assert (broken.status, "flaky.py is broken, line 1: SyntaxError" in broken.json["error"]["message"]) == (2, True)
