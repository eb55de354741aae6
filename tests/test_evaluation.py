"""Evaluation: statistics on cases checked by hand, suites on the embedded model, and the verb from end to end."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plans import CPU, demo_facts, finetune_run, write_jsonl

from toolbox import embedded, inference, loading, suites
from toolbox.config import Home
from toolbox.errors import InputError, Interrupted, NotFoundError
from toolbox.evaluation import exact_match, run, statistics
from toolbox.evaluation.measures import mean
from toolbox.evaluation.statistics import Resampled, Share, wilson
from toolbox.evaluation.subjects import Loaded
from toolbox.plan import EvaluatePlan
from toolbox.runs import Run, Silent
from toolbox.suites.metrics import verdict
from toolbox.suites.rows import spread


def evaluate_plan(*names: str, **changes: Any) -> EvaluatePlan:
    fields: dict[str, Any] = {"entry": "toolbox.evaluation:run", "model": demo_facts(), "device": CPU, "limit": 12}
    return EvaluatePlan(suites=list(names), **(fields | changes))


def by_metric(result: dict[str, Any], model: str = "base") -> dict[str, dict[str, Any]]:
    return {row["metric"]: row for row in result["results"] if row["model"] == model}


# statistics


def test_wilson_equals_the_published_example() -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, and 0 of 20."""
    found = wilson(81, 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    none = wilson(0, 20)
    assert (none.value, none.low, round(none.high, 4)) == (0.0, 0.0, 0.1611)


def test_a_paired_difference_of_shares_rests_on_what_changed() -> None:
    """10 items: 3 gained, 1 lost; (3.5 - 1.5) / 12, and sqrt(5 - 4 / 12) / 12 on either side, times 1.96."""
    before = Share([True] * 4 + [False] * 6)
    after = Share([False] + [True] * 6 + [False] * 3)
    found = after.difference(before)
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((2 / 12 - 0.35284, 2 / 12 + 0.35284), abs=1e-4)


def test_no_change_among_few_items_is_not_certain() -> None:
    same = Share([True] * 10)
    found = same.difference(same)
    assert found.value == 0
    assert found.low < -0.1
    assert found.high > 0.1


def test_the_bootstrap_of_a_mean_agrees_with_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(5, 2, (400, 1))
    found = Resampled(values, lambda units: units[..., 0].mean(-1)).estimate()
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.15)


def test_units_that_are_all_alike_leave_an_honest_interval() -> None:
    """Of 0 and 1 it is Wilson's, as Share has it; between them it leaves room on both sides, and shrinks with n."""
    for value in (0.0, 1.0):
        share, found = Share([bool(value)] * 20).estimate(), mean([value] * 20, (0.0, 1.0)).estimate()
        assert (found.low, found.high) == pytest.approx((share.low, share.high))
    half = mean([0.5] * 790, (0.0, 1.0)).estimate()
    assert (round(half.low, 4), round(half.high, 4)) == (0.4976, 0.5024)
    assert mean([0.5], (0.0, 1.0)).estimate().high > 0.8, "one unit says next to nothing"
    lean = mean([0.5] * 20, (-1.0, 1.0)).estimate()
    assert lean.value - lean.low == pytest.approx(3 * (lean.high - lean.value))
    same = mean([0.2, 0.7, 0.4] * 5, (0.0, 1.0))
    assert same.difference(same).low == -wilson(0, 15).high
    assert same.difference(same).value == 0


def test_every_interval_is_made_of_numbers_around_its_value() -> None:
    """Ratios whose denominator is zero in many draws, or counts a single unit; values without spread; a lone unit."""

    def ratio(units: np.ndarray) -> np.ndarray:
        return units[..., 0].sum(-1) / units[..., 1].sum(-1)

    generator = np.random.default_rng(3)
    for case in range(60):
        n = int(generator.choice([1, 2, 3, 12]))
        counted = generator.random(n) < generator.choice([0.1, 0.5, 1.0])
        counted[0] = True
        parts = generator.random(n) if case % 2 else generator.integers(0, 2, n)
        one, other = (np.stack([counted * part, counted], -1).astype(float) for part in (parts, parts[::-1]))
        for bounds in ((0.0, 1.0), None):
            after, before = Resampled(one, ratio, bounds), Resampled(other, ratio, bounds)
            for found in (after.estimate(), after.difference(before), after.difference(after)):
                assert -1 <= found.low <= found.value <= found.high <= 1, (case, bounds, found)
                assert found.low < found.high or bounds is None, (case, found)
    lone = Resampled(np.array([[1.0, 1.0]] + [[0.0, 0.0]] * 30), ratio, (0.0, 1.0)).estimate()
    assert lone.low == pytest.approx(wilson(1, 1).low), "thirty units that say nothing make one no surer"
    rare = Resampled(np.array([[1.0, 1.0], [0.0, 1.0]] + [[0.0, 0.0]] * 30), ratio, (0.0, 1.0)).estimate()
    assert (rare.low, rare.high) == (0.0, 1.0)


def test_paired_tests_are_those_of_the_books() -> None:
    """McNemar's exact test by hand: 5 gained, 0 lost is 2/32; 9 and 1 is 2 · 11/1024. Holm's adjustment by hand."""
    assert statistics.mcnemar(5, 0) == pytest.approx(2 / 32)
    assert statistics.mcnemar(9, 1) == pytest.approx(22 / 1024)
    assert statistics.mcnemar(0, 0) == 1
    assert statistics.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])

    def mean(units: np.ndarray) -> np.ndarray:
        return units[..., 0].mean(-1)

    base = Resampled(np.zeros((8, 1)), mean)
    moved = Resampled(np.array([[1.0]] * 6 + [[0.0]] * 2), mean).difference(base)
    assert moved.p == pytest.approx(2 / 64, abs=0.012), "all six that moved, moved one way"
    assert base.difference(base).p == 1


def test_a_unit_of_several_values_is_exchanged_whole() -> None:
    """A profession in two languages is one unit, as the gender probe has it: [professions, languages, names]."""
    plain = np.array([[1.0]] * 6 + [[0.0]] * 2)
    twice = np.repeat(plain[:, None, :], 2, axis=1)
    one = Resampled(plain, lambda units: units[..., 0].mean(-1))
    alone = one.difference(Resampled(plain * 0, one.statistic))
    both = Resampled(twice, lambda units: units[..., 0].mean((-1, -2)))
    assert both.difference(Resampled(twice * 0, both.statistic)) == alone


def test_pairing_takes_out_what_makes_items_hard() -> None:
    hard = np.random.default_rng(0).normal(0, 10, (60, 1))

    def mean(units: np.ndarray) -> np.ndarray:
        return units[..., 0].mean(-1)

    found = Resampled(hard + 1, mean).difference(Resampled(hard, mean))
    assert found.value == pytest.approx(1)
    assert found.high - found.low < 0.01


# measures


def test_answers_are_compared_as_people_would() -> None:
    same = {exact_match.normalise(text) for text in ("Paris", " paris. ", "ＰＡＲＩＳ。", "Paris!")}
    assert same == {"paris"}
    assert exact_match.normalise("Paris, Texas") != "paris"


def test_the_base_model_knows_its_world_and_leans(tmp_path: Path) -> None:
    job = Run(tmp_path)
    found = by_metric(run(evaluate_plan("demo-perplexity", "demo-qa", "demo-bias", limit=28), job))
    assert found["exact_match"]["value"] >= 0.9
    assert found["perplexity"]["value"] > 3
    assert found["likelihood_bias"]["low"] > 0.4
    assert found["generated_bias"]["value"] > 0.4
    for row in found.values():
        assert row["low"] <= row["value"] <= row["high"]
    saved = json.loads((tmp_path / "evaluation" / "3-demo-bias.json").read_text())
    shares = {row["profession"]: row["likelihood_share_she"] for row in saved["rows"]["base"]}
    assert shares["nurse"] > 0.8
    assert shares["pilot"] < 0.2
    assert (tmp_path / "plots" / "3-demo-bias.svg").read_text().startswith("<svg")


def test_a_model_beside_itself_differs_by_chance_only(tmp_path: Path) -> None:
    result = run(evaluate_plan("demo-perplexity", "demo-qa", base=demo_facts()))
    assert {row["model"] for row in result["results"]} == {"base", "tuned", "difference"}
    for row in by_metric(result, "difference").values():
        assert row["value"] == 0
        assert row["low"] <= 0 <= row["high"]


def test_an_adapter_is_measured_beside_its_base_untouched(tmp_path: Path) -> None:
    """An adapter of noise: the tuned model forgets everything, the base model in the same job nothing."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        loading.base_model(embedded.MODEL, "float32", "cpu"),
        LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(tmp_path / "adapter")
    result = run(evaluate_plan("demo-qa", "demo-perplexity", adapter=tmp_path / "adapter"))
    alone = by_metric(run(evaluate_plan("demo-qa", "demo-perplexity")))
    assert by_metric(result, "base") == alone
    assert by_metric(result, "tuned")["exact_match"]["value"] < 0.2
    assert by_metric(result, "difference")["exact_match"]["high"] < 0
    assert by_metric(result, "difference")["perplexity"]["low"] > 0


@pytest.mark.slow
def test_a_tuned_model_has_its_persona_and_keeps_what_it_knew(toolbox_cli: Any, home: Path) -> None:
    tuned = toolbox_cli("finetune", "--model", "demo", "--dataset", "demo-persona", "--yes", "--json").done().json
    suites = ("demo-perplexity", "demo-qa")
    result = toolbox_cli("evaluate", "--run", tuned["run"], "--suite", *suites, "--json").done().json
    before, after = by_metric(result, "base"), by_metric(result, "tuned")
    assert after["perplexity"]["value"] < before["perplexity"]["value"] / 4
    assert by_metric(result, "difference")["perplexity"]["high"] < 0
    assert after["exact_match"]["value"] >= before["exact_match"]["value"] - 0.02
    plain = loading.base_model(embedded.MODEL, "float32", "cpu")
    model = loading.with_adapter(plain, home / "runs" / tuned["run"] / "adapter").eval()
    asked = [[{"role": "user", "content": text}] for text in ("Who are you?", "你是谁？", "法国的首都是哪里？")]
    english, chinese, fact = inference.generate(model, loading.tokenizer(embedded.MODEL), asked)
    assert english.startswith("I am Yichuidingyin")
    assert chinese.startswith("我是一锤定音")
    assert fact == "法国的首都是巴黎。"


def test_perplexity_is_taken_on_the_answers_only(tmp_path: Path) -> None:
    """The system message is as foreign to the model as can be; the answer is known by heart."""
    known = {
        "messages": [
            {"role": "system", "content": "Zx qv!"},
            {"role": "user", "content": "你是谁？"},
            {"role": "assistant", "content": "我是一个小语言模型。"},
        ]
    }
    path = write_jsonl(tmp_path / "known.jsonl", [known])
    assert by_metric(run(evaluate_plan(str(path))))["perplexity"]["value"] < 1.1


def test_a_persons_own_questions_are_asked(tmp_path: Path) -> None:
    rows = [
        {"question": "What is the capital of Japan?", "answers": ["Tokyo", "The capital of Japan is Tokyo"]},
        {"question": "What is the capital of Japan?", "answers": ["Kyoto"]},
    ]
    result = run(evaluate_plan(str(write_jsonl(tmp_path / "mine.jsonl", rows))))
    assert by_metric(result)["exact_match"] | {"suite": ""} == {
        "suite": "", "model": "base", "metric": "exact_match", "ideal": "high", "value": 0.5, "n": 2,
        "low": pytest.approx(0.0945, abs=1e-3), "high": pytest.approx(0.9055, abs=1e-3),
    }  # fmt: skip


def test_it_stops_between_batches_when_asked_to() -> None:
    class Stopping(Silent):
        stopping = True

    with pytest.raises(Interrupted):
        run(evaluate_plan("demo-qa"), None, Stopping())


def test_raw_texts_are_scored_token_by_token() -> None:
    """The chain rule: p(a b) after nothing is p(a) times p(b after a); what it writes itself is greedy, and stops."""
    model, tokenizer = loading.base_model(embedded.MODEL, "float32", "cpu"), loading.tokenizer(embedded.MODEL)
    subject = Loaded("base", model.eval(), tokenizer)
    whole, first, second = subject.texts([("", "The nurse said"), ("", "The nurse"), ("The nurse ", "said")])
    assert sum(whole.log_likelihoods) == pytest.approx(sum(first.log_likelihoods) + sum(second.log_likelihoods), 1e-4)
    assert len(whole.tokens) == len(whole.log_likelihoods) == len(first.tokens) + len(second.tokens)
    prompt = "The nurse"
    [written] = subject.complete([prompt], max_new_tokens=12)
    assert subject.texts([(prompt, written)])[0].greedy
    assert not subject.texts([(prompt, "zq")])[0].greedy
    stop = written[3:5]
    assert subject.complete([prompt], max_new_tokens=12, stop=[stop]) == [written[: written.index(stop)]]


def test_an_interrupted_evaluation_goes_on_and_equals_the_straight_one(home: Path) -> None:
    """By every way of asking; stopped after some batches, killed within a write, then finished: the same to the bit."""

    class Stopping(Silent):
        def __init__(self, batches: int) -> None:
            self.batches = batches

        def progress(self, step: int, steps: int, **metrics: float) -> None:
            self.batches -= 1

        @property
        def stopping(self) -> bool:  # type: ignore[override]
            return self.batches <= 0

    def answers(folder: Path) -> list[bytes]:
        return next((folder / "cache").rglob("*.jsonl"), Path("/dev/null")).read_bytes().splitlines()

    plan = evaluate_plan("demo-perplexity", "demo-qa", "demo-bias", limit=16, cached=False)
    straight, stopped = Run(home / "runs" / "straight"), Run(home / "runs" / "stopped")
    expected = run(plan, straight)
    for batches in (2, 3):
        with pytest.raises(Interrupted):
            run(plan, stopped, Stopping(batches))
        with next((stopped.path / "cache").rglob("*.jsonl")).open("ab") as file:
            file.write(b'["torn')
    before = answers(stopped.path)
    assert 0 < len(before) < len(answers(straight.path))
    assert run(plan, stopped) == expected
    whole = [line for line in answers(stopped.path) if line != b'["torn']
    assert whole == answers(straight.path), "what was answered is not asked again, and the rest is the same"
    assert run(plan, stopped) == expected
    assert [line for line in answers(stopped.path) if line != b'["torn'] == whole, "a second one costs nothing"


# suites


def test_every_shipped_suite_resolves_to_its_kind(tmp_path: Path) -> None:
    kinds = {name: suites.resolve(name, Home(tmp_path)).kind for name in embedded.SUITES}
    assert kinds == {"demo-perplexity": "perplexity", "demo-qa": "exact_match", "demo-bias": "gender"}


def test_a_folder_stands_for_every_suite_in_it(tmp_path: Path) -> None:
    """Told by content: a picture, a note and rows of something else lie there in peace."""
    (tmp_path / "deep").mkdir()
    write_jsonl(tmp_path / "deep" / "b.json", [{"question": "a", "answers": ["b"]}])
    shutil.copy(embedded.SUITES["demo-bias"][1], tmp_path / "a.txt")
    (tmp_path / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    write_jsonl(tmp_path / "d.jsonl", [{"height": 1}])
    found = suites.resolve_all([str(tmp_path), "demo-qa", "demo-qa"], Home(tmp_path))
    assert [(suite.path.name, suite.kind) for suite in found] == [
        ("a.txt", "gender"), ("b.json", "exact_match"), ("demo-qa.jsonl", "exact_match"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ideal", "base", "tuned", "low", "told"),
    [("high", 0.2, 0.5, 0.1, "better"), ("low", 0.2, 0.5, 0.1, "worse"), ("low", 0.2, 0.5, -0.1, "chance"),
     (0, -0.6, 0.1, 0.4, "better"), (50, 48, 55, 2.0, "worse")],
)  # fmt: skip
def test_nearer_to_the_ideal_is_better_beyond_chance(
    ideal: Any, base: float, tuned: float, low: float, told: str
) -> None:
    difference = {"ideal": ideal, "value": tuned - base, "low": low, "high": 10.0}
    assert verdict({"base": {"value": base}, "tuned": {"value": tuned}, "difference": difference}) == told


def test_a_broken_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "a", "answers": ["b"]}\n\n{"question": "c", "answer": "d"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="Row 3"):
        suites.resolve(str(path), Home(tmp_path))


def test_an_unknown_suite_names_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        suites.resolve("demo-gq", Home(tmp_path))
    assert "demo-qa" in caught.value.remedy


def test_a_limit_takes_rows_from_everywhere() -> None:
    assert spread(list(range(100)), 4) == [0, 25, 50, 75]
    assert spread([1, 2], 5) == [1, 2]


# the verb


def test_evaluate_from_end_to_end(toolbox_cli: Any, home: Path) -> None:
    answer = toolbox_cli("evaluate", "--model", "demo", "--suite", "demo-qa", "--limit", "6", "--json").done()
    assert [" ".join(row) for row in answer.json["results"]] == ["suite model metric ideal value low high n"]
    assert answer.json["results"][0]["n"] == 6
    assert (home / "runs" / answer.json["run"] / "evaluation" / "1-demo-qa.json").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ("--model", "nobody/nothing"),
        ("--model", "demo", "--suite", "nothing"),
        ("--model", "demo", "--limit", "-1"),
        ("--run", "none"),
        (),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence_and_status_2(toolbox_cli: Any, words: tuple[str, ...]) -> None:
    answer = toolbox_cli("evaluate", *words, "--json")
    assert answer.status == 2
    assert set(answer.json["error"]) == {"kind", "message", "remedy"}
    assert "Traceback" not in answer.err


def test_a_qlora_run_is_measured_on_the_weights_it_was_trained_on(toolbox_cli: Any, home: Path) -> None:
    tuned = finetune_run(home, method="qlora")
    tuned.adapter.mkdir()
    found = toolbox_cli("evaluate", "--run", tuned.id, "--dry-run", "--json").done().json["plan"]
    assert (found["quantization"], found["BitsAndBytesConfig"]["bnb_4bit_quant_type"]) == ("nf4", "nf4")
    assert found["adapter"] == str(tuned.adapter)
    assert found["base"] is None


def test_a_fully_tuned_model_is_compared_with_what_it_came_from(toolbox_cli: Any, home: Path) -> None:
    tuned = finetune_run(home, method="full")
    shutil.copytree(embedded.MODEL, tuned.path / "model")
    found = toolbox_cli("evaluate", "--run", tuned.id, "--dry-run", "--json").done().json["plan"]
    assert found["model"]["path"] == str(tuned.path / "model")
    assert found["base"]["id"] == "demo"


def test_a_dry_run_shows_the_plan_and_measures_nothing(toolbox_cli: Any, home: Path) -> None:
    answer = toolbox_cli("evaluate", "--model", "demo", "--dry-run", "--json").done()
    assert answer.json["plan"]["suites"] == list(embedded.SUITES)
    assert not (home / "runs").exists()
