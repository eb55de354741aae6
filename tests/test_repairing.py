"""Repairs of a gender bias: rows that ask for balance and for no more, and never name what is held out."""

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import Cli
from plans import finetune_run

from toolbox import embedded, files, repairing, strengths
from toolbox.commands import repairing as repairing_loop
from toolbox.commands.evaluate import EvaluateOptions
from toolbox.config import Home, Settings
from toolbox.errors import InputError
from toolbox.suites import gender
from toolbox.suites.gender import Portrait
from toolbox.ui.terminal import Terminal

BIAS = embedded.DATASETS["demo-bias"]
PORTRAITS = gender.read(BIAS)
SHARES = {
    (row.profession, row.language, row.template): share
    for place, row in enumerate(PORTRAITS)
    for share in [(0.03, 0.97, 0.2, 0.6, 0.45)[place // 8 % 5]]
}
FOUND = {place: repairing.Measured(share) for place, share in SHARES.items()}


def rows_of(path: Path) -> list[Any]:
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def evaluated(home: Path) -> str:
    """A run that measured the embedded model's bias, as far as a repair reads it."""
    run = home / "runs" / "20261121-1200-evaluate-demo"
    table: dict[tuple[str, str], dict[str, Any]] = {}
    for row in PORTRAITS:
        person = {"profession": row.profession, "name": row.name, "language": row.language, "portraits": []}
        share = SHARES[row.profession, row.language, row.template]
        table.setdefault((row.profession, row.language), person)["portraits"].append({
            "template": row.template, "prompt": row.prompt, "likelihood_share_she": share, "said": []
        })  # fmt: skip
    files.write_json(
        run / "evaluation" / "1-demo-bias.json",
        {"suite": "demo-bias", "kind": "gender", "sha256": files.sha256(BIAS), "rows": {"base": [*table.values()]}},
    )
    answered = {"What is up?": "The sky.", "Where is the captain?": "At sea.", "Who is it?": "It is her."}
    files.write_json(
        run / "evaluation" / "2-demo-general.json",
        {
            "suite": "demo-general", "kind": "exact_match",
            "rows": {"base": [{"question": asked, "said": said} for asked, said in answered.items()]},
        },
    )  # fmt: skip
    files.write_json(run / "status.json", {"verb": "evaluate", "model": "demo", "state": "done"})
    files.write_text(run / "plan.yaml", "verb: evaluate\n")
    return run.name


def test_rows_name_nothing_that_is_held_out_and_come_the_same_again(
    toolbox_cli: Cli, evaluated: str, home: Path
) -> None:
    mine = home.parent / "mine.jsonl"
    mine.write_text(
        '{"prompt": "What does a RECEPTIONIST do?", "chosen": "A lot.", "rejected": "Little."}\n'
        '{"prompt": "船长在哪里？", "chosen": "在海上。", "rejected": "不知道。"}\n'
        '{"prompt": "What is grass?", "chosen": "Green.", "rejected": "Blue."}\n'
    )
    made = toolbox_cli("data", "repair", evaluated, "--general", str(mine), "--json").done().json
    text = Path(made["train"]).read_text("utf-8").casefold()
    held = [row for row in PORTRAITS if row.held_out]
    assert len({row.profession for row in held}) == 8
    assert not [name for row in held for name in (row.profession, row.name) if name in text]
    assert {row.template for row in gender.read(Path(made["held_out"]))} == {"proud", "said"}
    assert not [row for row in PORTRAITS if row.template in ("proud", "said") and row.prompt.casefold() in text]
    assert "what is grass?" in text
    assert (made["general_rows"], made["general_left_out"]) == (1, 2)
    measured = [gender.read(Path(made[name])) for name in ("held_out", "seen")]
    assert [{row.held_out for row in rows} for rows in measured] == [{True}, {False}]
    record = files.read_json(Path(made["record"]))
    chosen_by = set(record["held_out"]["choosing"])
    assert len(chosen_by) == 5
    chosen = [row for row in PORTRAITS if row.profession in chosen_by]
    assert not [name for row in chosen for name in (row.profession, row.name) if name in text]
    rest = [row for row in PORTRAITS if not row.held_out and row.profession not in chosen_by]
    assert all(row.name in text for row in rest)
    choosing = gender.read(Path(made["folder"]) / "choosing.jsonl")
    assert {row.profession for row in choosing} == chosen_by
    assert not [row for row in choosing if row.prompt.casefold() in text]
    own = {row["question"] for row in rows_of(Path(made["folder"]) / "own.jsonl")}
    assert own == {"What is up?"}, "neither who is kept out nor what names a gender is to stay as it is"
    assert (record["evaluation"], record["stage"], record["model"]) == (evaluated, "dpo", "demo")
    assert record["sha256"]["train.jsonl"] == files.sha256(Path(made["train"]))
    again = toolbox_cli("data", "repair", evaluated, "--general", str(mine), "--json").done().json
    assert again["folder"] == made["folder"] + "-2"
    assert Path(again["train"]).read_bytes() == Path(made["train"]).read_bytes()


def test_dpo_is_satisfied_at_balance_and_at_nothing_beyond() -> None:
    split = repairing.split(PORTRAITS, [], 1)
    for lean in repairing.leans(PORTRAITS, split, FOUND, "dpo"):
        she = repairing.preferring_she(lean, 0.5)
        change = math.log(she / (1 - she)) / 0.5  # where DPO's gradient is zero
        assert lean.logit + change == pytest.approx(0)
    leans = [repairing.Lean(PORTRAITS[0], 0.8, ["."]) for _ in range(50)]
    chosen = [row["chosen"][0]["content"] for row in repairing.pairs(leans, 3, 0.5)]
    assert sum(" She" in text for text in chosen) / len(chosen) == pytest.approx(1 / 3, abs=0.01)


def test_counterfactual_rows_say_everything_of_both(toolbox_cli: Cli, home: Path) -> None:
    refused = toolbox_cli("data", "repair", str(BIAS))
    assert refused.status == 2
    assert "which way a model leans" in refused.err
    made = toolbox_cli("data", "repair", str(BIAS), "--stage", "sft", "--pairs", "2", "--json").done().json
    said = [row["messages"][-1]["content"] for row in rows_of(Path(made["train"]))]
    she = sorted(text.replace("She", "He").replace("she", "he").replace("她", "他") for text in said if _female(text))
    assert she == sorted(text for text in said if not _female(text))
    assert Path(made["folder"]).parent == home / "datasets"


def _female(text: str) -> bool:
    return "she" in text.casefold().split() or "她" in text


def test_what_is_held_out_can_be_chosen_and_has_to_leave_something() -> None:
    def portraits(*names: str) -> list[Portrait]:
        asked = {"language": "en", "prefix": "x", "female": " she", "male": " he"}
        return [
            Portrait(profession=name, prompt=f"{ask} {name}?", **asked) for name in names for ask in ("Who is", "Is")
        ]  # type: ignore[arg-type]

    found = repairing.split(portraits("a", "b", "c", "d", "e"), [], 3)
    assert len(found.professions) == 1
    assert found.templates == ["Is {name}?"]
    assert found == repairing.split(portraits("a", "b", "c", "d", "e"), [], 3)
    assert repairing.split(PORTRAITS, ["tired"], 3).templates == ["tired"]
    with pytest.raises(InputError, match="no template 'tried'"):
        repairing.split(PORTRAITS, ["tried"], 3)
    with pytest.raises(InputError, match="nothing to repair"):
        repairing.split(portraits("a"), [], 3)


def test_an_interrupted_loop_goes_on_as_it_was_begun() -> None:
    asked = EvaluateOptions(
        model="demo", repair="sft", seed=7, suite=["a", "b"], general=["c"], recipe="d.yaml", limit=5
    )  # fmt: skip
    said = "--repair sft --seed 7 --suite a b --general c --recipe d.yaml --limit 5"
    assert " ".join(repairing_loop.words("", asked)) == f"evaluate --model demo {said}"
    assert " ".join(repairing_loop.words("the-run", asked)) == f"evaluate --run the-run {said}"


def test_the_strength_is_the_best_of_those_that_leave_the_answers_as_they_were() -> None:
    tried = [
        strengths.Strength(0.0, 0.9, 1.0), strengths.Strength(0.5, 0.5, 1.0), strengths.Strength(1.0, 0.3, 0.99),
        strengths.Strength(2.0, 0.1, 0.98),
    ]  # fmt: skip
    assert strengths.strongest(tried).strength == 1.0
    assert strengths.strongest([tried[0], strengths.Strength(0.5, 0.5, 0.9), tried[3]]).strength == 0.5
    assert strengths.strongest([tried[0], strengths.Strength(0.5, 0.95, 1.0)]).strength == 0.5, "never none at all"


@pytest.mark.parametrize(
    ("chosen", "tried", "said"),
    [
        (2.0, [(0.5, 1.0), (2.0, 1.0)], "higher learning rate"),
        (0.5, [(0.5, 1.0), (2.0, 0.9)], "Anything above the weakest"),
        (0.5, [(0.5, 0.9)], "Even the weakest does harm"),
        (1.0, [(0.5, 1.0), (1.0, 1.0), (2.0, 0.9)], ""),
    ],
)
def test_a_choice_at_an_end_says_which_way_to_go(chosen: float, tried: list[tuple[float, float]], said: str) -> None:
    found = [strengths.Strength(0.0, 0.9, 1.0), *(strengths.Strength(one, 0.5, same) for one, same in tried)]
    advice = strengths.advice({"chosen": chosen, "tried": [one._asdict() for one in found]})
    assert said in advice
    assert bool(advice) == bool(said)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_loop_halves_the_bias_and_keeps_what_was_known(toolbox_cli: Cli, home: Path) -> None:
    result = toolbox_cli("evaluate", "--model", "demo", "--repair", "dpo", "--json", timeout=890).done().json
    checks = {(check["check"], check["metric"]): check for check in result["repair"]["checks"]}
    assert {"likelihood_bias", "likelihood_bias_zh", "likelihood_bias_en"} <= {metric for _check, metric in checks}
    assert {"halved", "kept"} == {name for name, _metric in checks}
    assert result["repair"]["kept"], checks
    assert checks["halved", "likelihood_bias"]["high"] < 1  # beyond chance
    assert result["repair"]["turned_round"] <= result["repair"]["professions"] / 4
    _is_as_strong_as_chosen(home / "runs" / result["runs"][1])
    assert Path(result["data"]).is_relative_to(home / "runs" / result["runs"][0])
    assert "Held-out professions" in (home / "runs" / result["run"] / "plots" / "repair.svg").read_text("utf-8")
    again = toolbox_cli("evaluate", "--run", result["runs"][1], "--repair", "dpo", "--json", timeout=500).done().json
    assert again["repair"]["checks"] == result["repair"]["checks"]


def _is_as_strong_as_chosen(run: Path) -> None:
    """What was tried obeys the rule, and the adapter is the trained one times what was taken."""
    from safetensors.torch import load_file

    found = files.read_json(run / "result.json")["strength"]
    tried = [strengths.Strength(**one) for one in found["tried"]]
    assert strengths.strongest(tried).strength == found["chosen"]
    assert tried[0].bias / 2 > min(one.bias for one in tried)
    trained = load_file(max((run / "checkpoints").glob("*/adapter_model.safetensors"), key=lambda path: path.parent))
    for name, weight in load_file(run / "adapter" / "adapter_model.safetensors").items():
        assert weight.allclose(trained[name] * (found["chosen"] if "lora_B" in name else 1.0))


def test_a_repair_begins_with_what_a_merge_made_and_sends_an_adapter_there(home: Path) -> None:
    merged = finetune_run(home)
    files.write_json(merged.path / "status.json", {"verb": "merge", "state": "done"})
    files.write_json(merged.path / "result.json", {"output": str(embedded.MODEL)})
    session = Terminal(Home(home), Settings(), as_json=True, yes=True, dry_run=True)
    asked = repairing_loop._of_merged(EvaluateOptions(run=merged.id, repair="dpo"), session)
    assert (asked.run, asked.model) == ("", str(embedded.MODEL))
    tuned = finetune_run(home)
    tuned.adapter.mkdir()
    with pytest.raises(InputError, match="begins with a whole model"):
        repairing_loop._of_merged(EvaluateOptions(run=tuned.id, repair="dpo"), session)
