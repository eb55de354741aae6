"""GSM8K, multiple choice and TruthfulQA: numbers taken out of answers, files of every form, scores by hand."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plans import CPU, demo_facts, write_jsonl

from toolbox import suites
from toolbox.config import Home
from toolbox.errors import InputError
from toolbox.evaluation import multiple_choice, run, text, truthfulqa
from toolbox.plan import EvaluatePlan
from toolbox.suites import numbers
from toolbox.suites.gsm8k import Problem
from toolbox.suites.multiple_choice import exams, read

DATA = Path(__file__).parent.parent.parent / "shared" / "data" / "eval"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not here")


@pytest.mark.parametrize(
    ("said", "stated", "final"),
    [
        ("so 5.\n#### $1,200.00", "1200", "1200"),
        ("The answer is: -5 degrees", "-5", "-5"),
        ("\\boxed{\\frac{3}{4}}", "3/4", "3/4"),
        ("The final answer is $\\boxed{1{,}000}$ in 2 days.", "1000", "1000"),
        ("**Answer:** 72 clips", "72", "72"),
        ("答案：１８", "18", "18"),
        ("所以答案是：￥３，４００ 元，用了2天", "3400", "3400"),
        ("答：她有 20 元。", None, "20"),
        ("A: 90,000", "90000", "90000"),
        ("#### 50%", "50", "50"),
        ("#### .5", "1/2", "1/2"),
        ("16-3", None, "3"),
        ("That is -$5", None, "-5"),
        ("1 1/2 cups", None, "3/2"),
        ("18.00 dollars...", None, "18"),
        ("The answer is unknown.", None, None),
        ("面积是 12 cm²", None, "12"),
        ("3½ cups", None, "7/2"),
        pytest.param("#### " + "9" * 5000, None, None, id="a model that repeats itself"),
    ],
)
def test_the_number_of_an_answer(said: str, stated: str | None, final: str | None) -> None:
    found = (numbers.stated(said), numbers.final(said))
    assert found == tuple(None if wanted is None else Fraction(wanted) for wanted in (stated, final))


@pytest.mark.parametrize(
    ("gold", "ending", "is_correct"),
    [
        ("18", "A: 26", False), ("18", "A: 224", False), ("18", "A: 4", False), ("18", "A: 18", True),
        ("3", "A: 250", False), ("3", "3.0 bolts of blue and white fiber altogether.\nA: 3", True),
        ("70000", "A: 90,000", False), ("70000", "$<<975-130000=-129025>>-129025\nA: -129025", False),
        ("540", "A: 60", False), ("540", "A: 540", True), ("20", "<<800/3=266.6666666666667>>266.66\nA: 266", False),
        ("64", "For the thirteenth glass Kylar needs to pay 5 * 1", False), ("160", "A: 160", True),
    ],
)  # fmt: skip
def test_real_answers_are_graded_as_their_authors_did(gold: str, ending: str, is_correct: bool) -> None:
    """How GPT-3's answers end, and `is_correct`: example_model_solutions.jsonl of openai/grade-school-math."""
    problem = Problem(question="", answer=f"#### {gold}")
    assert (numbers.final(ending) == problem.number) == is_correct


@needs_data
def test_the_solutions_of_gsm8k_are_right_however_they_end() -> None:
    rows = [json.loads(line) for line in (DATA / "gsm8k_test.jsonl").read_text("utf-8").splitlines()]
    for row in rows:
        way, gold = row["answer"].split("#### ")
        for end in (
            f"#### {gold}",
            f"The answer is {gold}.",
            f"\\boxed{{{gold}}}",
            f"答案是{gold}。",
            f"A: {gold} dollars",
        ):
            assert numbers.stated(way + end) == Fraction(gold.replace(",", "")), (row["question"], end)


MMLU = 'What is 2 + 2?,3,4,5,6,B\n"Which is red, if any?",sky,blood,grass,snow,B\n'
CEVAL = "id,question,A,B,C,D,answer,explanation\n0,一加一等于几？,1,2,3,4,B,算术\n"
CMMLU = ",Question,A,B,C,D,Answer\n0,一加一等于几？,1,2,3,4,B\n"


@pytest.mark.parametrize(
    ("name", "text", "lettered"),
    [
        ("elementary_mathematics_test.csv", MMLU, True),
        ("logic_val.csv", CEVAL, True),
        ("agronomy.csv", CMMLU, True),
        ("mmlu.jsonl", '{"question": "2 + 2?", "subject": "maths", "choices": ["3", "4"], "answer": 1}\n', True),
        ("own.jsonl", '{"question": "2 + 2?", "options": ["3", "4"], "answer": "4"}\n', False),
        (
            "arc.jsonl",
            '{"question": "?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}',
            False,
        ),
    ],
)
def test_every_form_of_multiple_choice_is_told_and_read(tmp_path: Path, name: str, text: str, lettered: bool) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    assert suites.resolve(str(file), Home(tmp_path)).kind == "multiple_choice"
    assert {(row.answer, row.lettered) for row in read(file)} == {(1, lettered)}


def test_a_long_line_of_brackets_is_soon_told(tmp_path: Path) -> None:
    """A pattern that looks for spans in it would take hours."""
    (tmp_path / "brackets.jsonl").write_text('{"note": "' + "[" * 200_000 + '"}\n')
    assert suites.kind_of(tmp_path / "brackets.jsonl") is None


def test_a_question_whose_answer_is_no_option_is_named(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "own.jsonl", [{"question": "?", "options": ["a", "b"], "answer": a} for a in "ac"])
    with pytest.raises(InputError, match=r"^Row 2 of .*own\.jsonl"):
        suites.resolve(str(file), Home(tmp_path))


def test_mmlu_is_asked_as_its_paper_asks(tmp_path: Path) -> None:
    """Hendrycks et al., figure 1: the subject, solved examples of dev, the question, and "Answer:"."""
    (tmp_path / "high_school_logic_test.csv").write_text("Second?,a,b,c,d,A\n")
    (tmp_path / "high_school_logic_dev.csv").write_text("First?,a,b,c,d,D\n")
    (exam,) = exams(tmp_path, read(tmp_path))
    assert multiple_choice.prompt(exam, exam.questions[0]) == (
        "The following are multiple choice questions (with answers) about high school logic.\n\n"
        "First?\nA. a\nB. b\nC. c\nD. d\nAnswer: D\n\nSecond?\nA. a\nB. b\nC. c\nD. d\nAnswer:"
    )


def test_a_folder_of_subjects_is_one_suite_unless_others_lie_there(tmp_path: Path) -> None:
    for subject in ("law", "logic"):
        for split in ("dev", "test"):
            (tmp_path / f"{subject}_{split}.csv").write_text(f"{subject} {split}?,a,b,c,d,A\n")
    (suite,) = suites.resolve_all([str(tmp_path)], Home(tmp_path))
    assert (suite.path, suite.items) == (tmp_path, 2)
    assert [(exam.subject, len(exam.examples)) for exam in exams(suite.path, read(suite.path))] == [
        ("law", 1), ("logic", 1)
    ]  # fmt: skip
    before = suite.sha256
    (tmp_path / "law_dev.csv").write_text("law dev?,a,b,c,d,B\n")
    assert suite.sha256 != before
    write_jsonl(tmp_path / "sums.jsonl", [{"question": "2 + 2?", "answer": "#### 4"}])
    assert len(suites.resolve_all([str(tmp_path)], Home(tmp_path))) == 5


def test_the_splits_of_a_hub_are_told_apart(tmp_path: Path) -> None:
    row = {"question": "?", "A": "a", "B": "b", "answer": "B"}
    for split, count in (("val", 2), ("dev", 6)):
        (tmp_path / "law").mkdir(exist_ok=True)
        write_jsonl(tmp_path / "law" / f"{split}-00000-of-00001.jsonl", [row] * count)
    (suite,) = suites.resolve_all([str(tmp_path)], Home(tmp_path))
    (exam,) = exams(suite.path, read(suite.path))
    assert (exam.subject, len(exam.questions), len(exam.examples)) == ("law", 2, 5)


def test_chinese_is_asked_in_chinese(tmp_path: Path) -> None:
    (tmp_path / "agronomy.csv").write_text(CMMLU, encoding="utf-8")
    (exam,) = exams(tmp_path / "agronomy.csv", read(tmp_path / "agronomy.csv"))
    assert multiple_choice.prompt(exam, exam.questions[0]) == (
        "以下是单项选择题，请选出其中的正确答案。\n\n一加一等于几？\nA. 1\nB. 2\nC. 3\nD. 4\n答案："
    )


def test_subjects_count_alike_in_the_macro_average() -> None:
    units = np.array([(0, 1), (0, 1), (0, 1), (1, 0)], dtype=float)
    assert multiple_choice._macro(units) == 0.5
    assert multiple_choice._macro(units[None, :3]) == 1.0


def test_truthful_shares_by_hand() -> None:
    """p = 1/2, 1/4, 1/4 of which the first and the last are true."""
    values = {"true": np.log(0.5), "false": np.log(0.25), "also true": np.log(0.25)}
    assert truthfulqa._mass({"true": True, "false": False, "also true": True}, values) == pytest.approx(0.75)
    assert truthfulqa._above({"true": True, "false": False, "also true": True}, values) == 0.5
    assert truthfulqa._best_is_true({"also true": True, "false": False}, values)
    assert not truthfulqa._best_is_true({"false": False, "also true": True}, values)


@needs_data
def test_both_files_of_truthfulqa_say_the_same() -> None:
    json_rows, csv_rows = (
        suites.truthfulqa.read(DATA / name) for name in ("truthfulqa_mc_task.json", "truthfulqa.csv")
    )
    assert len(json_rows) == len(csv_rows) == 790
    same = sum(one.pair == other.pair and one.mc1 == other.mc1 for one, other in zip(json_rows, csv_rows, strict=True))
    assert same > 700


def measured(*names: Any, limit: int) -> dict[tuple[str, str], dict[str, Any]]:
    plan = EvaluatePlan(
        entry="toolbox.evaluation:run",
        model=demo_facts(),
        device=CPU,
        limit=limit,
        suites=[str(name) for name in names],
    )
    return {(Path(row["suite"]).name, row["metric"]): row for row in run(plan)["results"]}


def test_the_embedded_model_answers_what_it_knows(tmp_path: Path) -> None:
    """Its own text is more familiar to it than another; and each option's likelihood is that of its tokens."""
    capitals = {"France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Egypt": "Cairo"}
    rows = [
        {"question": f"What is the capital of {country}?", "choices": sorted(capitals.values()), "answer": city}
        for country, city in capitals.items()
    ]
    own = write_jsonl(tmp_path / "capitals.jsonl", rows)
    (tmp_path / "known.txt").write_text("The capital of France is Paris.\nThe capital of Italy is Rome.\n")
    (tmp_path / "unknown.txt").write_text("Colourless green ideas sleep furiously.\nTwas brillig, slithy toves.\n")
    found = measured(own, tmp_path / "known.txt", tmp_path / "unknown.txt", limit=4)
    assert found["capitals.jsonl", "acc"]["n"] == found["capitals.jsonl", "acc_norm"]["n"] == 4
    known, unknown = (found[name, "byte_perplexity"]["value"] for name in ("known.txt", "unknown.txt"))
    assert known < unknown
    assert found["known.txt", "bits_per_byte"]["value"] == pytest.approx(np.log2(known))


def test_windows_foresee_every_token_once() -> None:
    """As lm-eval's: the first begins after the token of beginning, the last reaches back."""
    assert list(text.windows([1, 2, 3, 4, 5], 0, 2)) == [([0, 1, 2], 2), ([2, 3, 4], 2), ([3, 4, 5], 1)]
    assert list(text.windows([1, 2], 0, 5)) == [([0, 1, 2], 2)]


@pytest.mark.slow
@needs_data
def test_suites_of_real_data_run(tmp_path: Path) -> None:
    found = measured(*(DATA / name for name in ("gsm8k_test.jsonl", "truthfulqa_mc_task.json")), limit=40)
    assert {metric for _suite, metric in found} == {
        "exact_match_strict", "exact_match_flexible", "mc0", "mc1", "mc2", "mc3", "binary"
    }  # fmt: skip
    assert all(row["low"] <= row["value"] <= row["high"] for row in found.values())
