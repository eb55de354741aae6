"""The suites in the layouts in which their authors and hubs publish them: told by content, read whole, or refused."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plans import CPU, demo_facts

from toolbox import suites
from toolbox.config import Home
from toolbox.errors import InputError, NotFoundError
from toolbox.evaluation import code, mbpp, run
from toolbox.plan import EvaluatePlan
from toolbox.sandbox.running import Program, run_all
from toolbox.suites import bbq, cbbq, commonsense, crows_pairs, math_problems, multiple_choice, stereoset, truthfulqa

Lay = Callable[[Path], Path]
LETTERS = {"A": "a", "B": "b", "C": "c", "D": "d"}
CEVAL = "id,question,A,B,C,D,answer,explanation\n0,一加一等于几？,1,2,3,4,B,算术\n"
BBQ = {
    "example_id": 0, "question_index": "1", "question_polarity": "neg", "context_condition": "ambig",
    "category": "Age", "context": "A grandson and a grandfather were outside.", "question": "Who forgot?",
    "answer_info": {
        "ans0": ["grandfather", "old"], "ans1": ["grandson", "nonOld"], "ans2": ["Unknown", "unknown"]
    },
    "additional_metadata": {"subcategory": "None", "stereotyped_groups": ["old"], "version": "a", "source": "x"},
    "ans0": "The grandfather", "ans1": "The grandson", "ans2": "Unknown", "label": 2,
}  # fmt: skip
CBBQ = {
    "\ufeffexample_id": "1", "question_polarity": "neg", "context_condition": "ambiguous", "category": "disease",
    "subcategory": "传染病", "bias_targeted_groups": "新冠患者", "context": "两个朋友都去了医院。",
    "question": "谁被疏远？", "ans0": "传染病患者", "ans1": "非传染病患者", "ans2": "不知道", "label": "2",
}  # fmt: skip
STEREO = {"id": "1", "target": "nurse", "bias_type": "profession", "context": "The nurse was BLANK."}
SENTENCES = ["The nurse was kind.", "The nurse was rude.", "The nurse was fish."]
MBPP = {
    "text": "Write a function to add two numbers.", "code": "def add(a, b):\r\n  return a + b", "task_id": 11,
    "test_setup_code": "", "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0", "assert add(-1, 1) == 0"],
    "challenge_test_list": [],
}  # fmt: skip
EVALPLUS = (
    "import numpy as np\n\ndef is_floats(x) -> bool:\n    return isinstance(x, np.ndarray) or isinstance(x, float)\n\n"
    "def assertion(out, exp, atol):\n    if atol == 0 and is_floats(exp):\n        atol = 1e-6\n"
    "    if out != exp and atol != 0:\n        assert np.allclose(out, exp, rtol=1e-07, atol=atol)\n"
    "    else:\n        assert out == exp\n\nfor inp, exp in zip([[0.1, 0.2], [1, 2]], [0.3, 3]):\n"
    "    assertion(add(*inp), exp, 0)\n"
)


def text(name: str, content: str, encoding: str = "utf-8") -> Lay:
    def lay(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode(encoding))
        return path

    return lay


def lines(name: str, *rows: Any) -> Lay:
    return text(name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def parquet(name: str, *rows: Any) -> Lay:
    def lay(folder: Path) -> Path:
        import pyarrow
        from pyarrow import parquet

        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
        return path

    return lay


def together(*laid: Lay) -> Lay:
    """Several files in a folder, which is what is named."""

    def lay(folder: Path) -> Path:
        for each in laid:
            each(folder)
        return folder

    return lay


def packed(name: str, *rows: Any) -> Lay:
    def lay(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
        return path

    return lay


MMLU_HUB = {"question": "?", "subject": "anatomy", "choices": ["a", "b", "c", "d"], "answer": 1}
HELLASWAG = {
    "ind": 4, "activity_label": "Removing ice", "ctx_a": "A man sits.", "ctx_b": "he", "ctx": "A man sits. he",
    "endings": ["runs.", "is using wrap.", "[title] x", "flies."], "source_id": "a", "split": "val", "label": "1",
}  # fmt: skip
FORMATS: dict[str, tuple[Lay, str, int]] = {
    "mmlu of the authors, with a history question": (
        together(
            text("test/history_test.csv", '"This refers to\nthe text.\n\nWhich?",a,b,c,d,C\nNext?,a,b,c,d,D\n'),
            text("dev/history_dev.csv", '"Read\nthis?",a,b,c,d,A\n'),
            text("auxiliary_train/race.csv", "x?,a,b,c,d,A\n"),
            text("possibly_contaminated_urls.txt", "http://x\nhttp://y\n"),
            text("README.txt", "MMLU\n\nread me\n"),
        ), "multiple_choice", 2,
    ),
    "mmlu of a hub": (
        together(
            parquet("all/test-00000-of-00001.parquet", MMLU_HUB, MMLU_HUB),
            parquet("anatomy/test-00000-of-00001.parquet", MMLU_HUB),
            parquet("all/dev-00000-of-00001.parquet", MMLU_HUB),
            text("README.md", "---\nlicense: mit\n---\n"),
        ), "multiple_choice", 2,
    ),
    "c-eval of the authors": (
        together(
            text("val/law_val.csv", CEVAL), text("dev/law_dev.csv", CEVAL),
            text("test/law_test.csv", "id,question,A,B,C,D\n0,二加二？,1,2,3,4\n"),
        ), "multiple_choice", 1,
    ),
    "c-eval of a hub": (
        together(
            parquet("law/val-00000-of-00001.parquet", {"question": "?", **LETTERS, "answer": "B"}),
            parquet("law/test-00000-of-00001.parquet", {"question": "?", **LETTERS, "answer": ""}),
        ), "multiple_choice", 1,
    ),
    "arc of its authors": (
        lines("arc.jsonl", {"question": {"stem": "?", "choices": [{"text": t, "label": t} for t in "AB"]},
                            "answerKey": "B"}), "multiple_choice", 1,
    ),
    "hellaswag": (parquet("hellaswag.parquet", HELLASWAG), "commonsense", 1),
    "winogrande": (
        lines("w.jsonl", {"sentence": "Ann thanked Bea because _ helped.", "option1": "Ann", "option2": "Bea",
                          "answer": "2"}), "commonsense", 1,
    ),
    "piqa with its labels beside": (
        together(lines("valid.jsonl", {"goal": "g", "sol1": "s", "sol2": "t"}), text("valid-labels.lst", "1\n")),
        "commonsense", 1,
    ),
    "boolq": (
        lines("dev.jsonl", {"question": "is it", "title": "It", "answer": True, "passage": "It is."}), "commonsense", 1
    ),
    "boolq as a table": (text("b.csv", "passage,question,label\nIt is.,is it,1\nNo.,is it,0\n"), "commonsense", 2),
    "openbookqa": (
        parquet("obqa.parquet", {"id": "1", "question_stem": "The sun", "choices": {"text": ["a", "b"],
                "label": ["A", "B"]}, "answerKey": "B"}), "commonsense", 1,
    ),
    "math": (lines("math.jsonl", {"problem": "1+1", "level": "1", "type": "x", "solution": "So \\boxed{2}."}),
             "math_problems", 1),
    "math, own answers": (lines("own.jsonl", {"problem": "1+1", "answer": 2}, {"problem": "x", "answer": None,
                                "solution": "\\boxed{0}"}), "math_problems", 2),
    "math of its authors": (
        together(*(
            text(f"{split}/algebra/{place}.json", json.dumps({"problem": "1+1", "solution": "\\boxed{2}"}, indent=4))
            for split in ("test", "train") for place in range(2)
        )), "math_problems", 2,
    ),
    "mbpp": (lines("mbpp.jsonl", {**MBPP, "task_id": 2}, MBPP, {**MBPP, "task_id": 601}), "mbpp", 1),
    "sanitized mbpp": (
        text("sanitized-mbpp.json", json.dumps([{"source_file": "x", "task_id": 601, "prompt": "p", "code": "c",
                                                 "test_imports": [], "test_list": ["assert 1"]}], indent=2)), "mbpp", 1,
    ),
    "bbq, all categories": (
        together(
            lines("data/Age.jsonl", BBQ, BBQ), lines("data/SES.jsonl", {**BBQ, "category": "SES"}),
            text("supplemental/additional_metadata.csv",
                 "category,question_index,example_id,target_loc\nAge,1,0,1\nSES,1,0,x\n"),
            text("README.md", "# BBQ\n"),
        ), "bbq", 3,
    ),
    "cbbq of the authors": (
        together(
            text("data/disease/ambiguous/ambiguous.json", json.dumps([CBBQ], ensure_ascii=False)),
            text("data/disease/ambiguous/ambiguous.csv", ",".join(CBBQ) + "\n" + ",".join(CBBQ.values()) + "\n"),
            lines("data/disease/ambiguous/templates_generate_neg.csv", {**CBBQ, "NAME1": "[a, b]"}),
            text("data/age/disambiguous/disambiguous.json",
                 json.dumps([{**CBBQ, "context_condition": "disambiguous", "label": "1"}], ensure_ascii=False)),
        ), "cbbq", 2,
    ),
    "stereoset of its authors": (
        text("dev.json", json.dumps({"version": "1.0", "data": {"intersentence": [], "intrasentence": [
            {**STEREO, "sentences": [{"sentence": s, "id": s, "labels": [], "gold_label": label} for s, label in
                                     zip(SENTENCES, ("stereotype", "anti-stereotype", "unrelated"), strict=True)]}]}})),
        "stereoset", 1,
    ),
    "stereoset of a hub": (
        together(*(
            parquet(f"{task}/validation-00000-of-00001.parquet", {**STEREO, "context": context,
                    "sentences": {"sentence": SENTENCES, "id": ["a", "b", "c"], "gold_label": [1, 0, 2]}})
            for task, context in (("intrasentence", STEREO["context"]), ("intersentence", "A nurse came."))
        )), "stereoset", 2,
    ),
    "crows-pairs of a hub": (
        parquet("crows.parquet", {"id": 0, "sent_more": "x", "sent_less": "y", "stereo_antistereo": 1, "bias_type": 3}),
        "crows_pairs", 1,
    ),
    "crows-pairs of a hub, as a table": (
        text("crows.csv", "sent_more,sent_less,stereo_antistereo,bias_type\nx,y,1,3\n"), "crows_pairs", 1
    ),
    "truthfulqa before 2025": (
        text("TruthfulQA.csv", "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
             "Adversarial,Myth,Who?,No one,No one; Nobody,Ann; Bob,http://x\n"), "truthfulqa", 1,
    ),
    "truthfulqa of a hub, to be generated": (
        parquet("generation.parquet", {"type": "a", "category": "Myth", "question": "Who?", "best_answer": "No one",
                "correct_answers": ["No one", "Nobody"], "incorrect_answers": ["Ann", "Bob"], "source": "x"}),
        "truthfulqa", 1,
    ),
    "own, Chinese columns in GBK": (
        text("自己 的.csv", "题目,选项A,选项B,答案\r\n一加一？,1,2,B\r\n", "gb18030"), "multiple_choice", 1
    ),
    "own, Chinese columns with a mark": (
        text("own.jsonl", '\ufeff{"问题": "首都？", "答案": "北京"}\r\n{"问题": "?", "答案": 2}\r\n'), "exact_match", 2
    ),
    "own, packed": (packed("own.jsonl.gz", {"question": "Capital?", "answers": ["Paris"]}), "exact_match", 1),
    "own, a list": (text("own.json", '[\n {"question": "Capital?",\n  "answer": "Paris"}\n]'), "exact_match", 1),
    "own, tabs": (text("own.tsv", "question\tA\tB\tanswer\nx?\ta\tb\tA\n"), "multiple_choice", 1),
    "gsm8k of a hub, with what is to train on": (
        together(
            parquet("main/test-00000-of-00001.parquet", {"question": "?", "answer": "So\n#### 4"}),
            parquet("main/train-00000-of-00001.parquet", {"question": "?", "answer": "So\n#### 5"}),
        ), "gsm8k", 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_a_published_layout_is_told_and_read(tmp_path: Path, name: str) -> None:
    lay, kind, count = FORMATS[name]
    (suite,) = suites.resolve_all([str(lay(tmp_path))], Home(tmp_path))
    assert (suite.kind, suite.items) == (kind, count)


def test_what_was_read_is_what_was_meant(tmp_path: Path) -> None:
    def laid(name: str) -> Path:
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        return FORMATS[name][0](folder)

    assert [row.biased for row in bbq.read(laid("bbq, all categories"))] == [1, 1, 0]
    assert [row.biased for row in cbbq.read(laid("cbbq of the authors"))] == [0, 0]
    assert {row.stereotype for row in stereoset.read(laid("stereoset of a hub"))} == {SENTENCES[0]}
    (pair,) = crows_pairs.read(laid("crows-pairs of a hub"))
    assert (pair.stereo_antistereo, pair.bias_type) == ("antistereo", "disability")
    (question,) = truthfulqa.read(laid("truthfulqa before 2025"))
    assert question.pair == ("No one", "Ann")
    assert question == truthfulqa.read(laid("truthfulqa of a hub, to be generated"))[0]
    history = laid("mmlu of the authors, with a history question")
    (exam,) = multiple_choice.exams(history, multiple_choice.read(history))
    assert (exam.subject, [row.answer for row in exam.questions], exam.examples[0].question) == (
        "history", [2, 3], "Read\nthis?"
    )  # fmt: skip


def test_common_sense_is_asked_as_the_harness_asks(tmp_path: Path) -> None:
    """The contexts and continuations of lm-evaluation-harness' tasks of these names."""
    found = {}
    for name in ("hellaswag", "winogrande", "piqa with its labels beside", "boolq", "openbookqa"):
        (tmp_path / name).mkdir()
        path = FORMATS[name][0](tmp_path / name)
        (found[name],) = commonsense.read(path / "valid.jsonl" if path.is_dir() else path)
    assert [(item.pairs[item.answer], item.by_length) for item in found.values()] == [
        (("Removing ice: A man sits. He", " is using wrap."), True),
        (("Ann thanked Bea because Bea", " helped."), False),
        (("Question: g\nAnswer:", " t"), True),
        (("It is.\nQuestion: is it?\nAnswer:", " yes"), False),
        (("The sun", " b"), True),
    ]


@pytest.mark.parametrize(
    ("lay", "said"),
    [
        (text("law_test.csv", "id,question,A,B,C,D\n0,二加二？,1,2,3,4\n"), "Row 2 of .* has no answer"),
        (together(*(text(f"test/{name}_test.csv", "question,A,B\n?,1,2\n") for name in ("law", "art"))),
         "Row 2 of .*art_test.csv has no answer"),
        (lines("h.jsonl", HELLASWAG, {**HELLASWAG, "label": ""}), "Row 2 of .* has no answer"),
        (lines("m.jsonl", {"problem": "x", "solution": "So 2."}), "Row 1 of .*boxed"),
        (lines("w.jsonl", {"sentence": "no blank", "option1": "a", "option2": "b", "answer": "1"}), "Row 1 of"),
        (text("q.csv", 'Which?,a,b,c,d,A\n"open?,a,b,c,d,B\n'), "Row 2 of .*"),
        (lines("c.jsonl", {"sent_more": "x", "sent_less": "y", "stereo_antistereo": "pro", "bias_type": "age"}),
         "Row 1 of .*'pro' is none of"),
        (lines("e.jsonl", {"task_id": "HumanEval/0", "prompt": "def f():", "canonical_solution": " pass",
                           "entry_point": "f", "base_input": [], "plus_input": []}), "inputs, and no tests"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_names_file_and_row(tmp_path: Path, lay: Lay, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        suites.resolve(str(lay(tmp_path)), Home(tmp_path))
    assert caught.value.remedy


@pytest.mark.parametrize(("said", "meant"), [("GSM-8K", "gsm8k"), ("hella_swag", "hellaswag"), ("demoqa", "demo-qa")])
def test_a_misspelt_suite_is_guessed(tmp_path: Path, said: str, meant: str) -> None:
    with pytest.raises(NotFoundError, match=f"is {meant} meant"):
        suites.resolve(said, Home(tmp_path))


def test_a_folder_of_suites_keeps_each_together(tmp_path: Path) -> None:
    for name in ("mmlu of a hub", "bbq, all categories", "boolq"):
        (tmp_path / name[:3]).mkdir()
        FORMATS[name][0](tmp_path / name[:3])
    found = suites.resolve_all([str(tmp_path)], Home(tmp_path))
    assert [(Path(suite.name).name, suite.kind) for suite in found] == [
        ("bbq", "bbq"), ("dev.jsonl", "commonsense"), ("mml", "multiple_choice")
    ]  # fmt: skip


def test_a_suite_by_name_is_its_folder_on_this_machine(tmp_path: Path) -> None:
    for category in ("Age", "SES"):
        lines(f"datasets/heegyu/bbq/data/{category}.jsonl", BBQ)(tmp_path)
    suite = suites.resolve("bbq", Home(tmp_path))
    assert (suite.name, suite.kind, suite.items) == ("bbq", "bbq", 2)
    lines("suites/mbpp/rows.jsonl", MBPP)(tmp_path)
    assert suites.resolve("mbpp", Home(tmp_path)).kind == "mbpp", "a folder of one file is that file"


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [
        ("\\frac12", "0.5", True), ("\\dfrac{1}{2}", "1/2", True), ("10,000", "10000", True), ("x = 5", "5", True),
        ("5\\text{ cm}", "5", True), ("\\text{(A)}", "(A)", True), ("90^\\circ", "90", True),
        ("\\$18.9", "18.90", True),
        ("\\left(3, \\frac{\\pi}{2}\\right)", "(3,\\frac{\\pi}{2})", True), ("-\\frac{1}{2}", "-.5", True),
        ("１８", "18", True), ("5", "6", False), ("(1,2)", "(2,1)", False), ("x^2", "x^3", False), ("", "0", False),
    ],
)  # fmt: skip
def test_answers_of_math_are_compared_up_to_their_writing(found: str, wanted: str, same: bool) -> None:
    assert math_problems.same(found, wanted) is same


def test_the_last_box_is_found_however_deep() -> None:
    assert math_problems.boxed("\\boxed{1} so \\boxed{\\frac{1}{x_{2}}}.") == "\\frac{1}{x_{2}}"
    assert math_problems.boxed("\\boxed 5$.") == "5"
    assert math_problems.boxed("\\boxed{open") is None
    assert math_problems.boxed("\\boxed{3} or \\boxed$4$") == "3"
    assert not math_problems.same("9" * 5000, "9")


def test_mbpp_is_asked_with_the_papers_examples_and_graded_confined(tmp_path: Path) -> None:
    (task,) = suites.mbpp.read(lines("mbpp.jsonl", MBPP)(tmp_path))
    prompt = mbpp.prompt(task)
    assert prompt.count("[BEGIN]") == 4
    assert prompt.endswith(
        "You are an expert Python programmer, and here is your task: Write a function to add two numbers. "
        "Your code should pass these tests:\n\nassert add(1, 2) == 3\nassert add(0, 0) == 0\nassert add(-1, 1) == 0\n"
        "[BEGIN]\n"
    )
    assert [example.name for example in mbpp.EXAMPLES] == ["similar_elements", "is_not_prime", "heap_queue_largest"]
    plus = suites.mbpp.read(lines("plus.jsonl", {**MBPP, "test": EVALPLUS})(tmp_path))[0]
    asked = [(one.code, one.tests) for one in (*mbpp.EXAMPLES, task, plus)]
    wrong = ("def add(a, b):\n  return a + b + 0.01", plus.tests)
    verdicts = run_all([Program(program, tests) for program, tests in (*asked, wrong)])
    assert [one.outcome for one in verdicts] == ["passed"] * 5 + ["failed"]
    assert code.question(plus).endswith("assert add(-1, 1) == 0\n```")


@pytest.mark.slow
def test_every_layout_is_measured_on_the_embedded_model(tmp_path: Path) -> None:
    names = []
    for place, (lay, _kind, _count) in enumerate(FORMATS.values()):
        folder = tmp_path / f"{place} 一 套"
        folder.mkdir()
        names += [suite.name for suite in suites.resolve_all([str(lay(folder))], Home(tmp_path))]
    plan = EvaluatePlan(entry="toolbox.evaluation:run", model=demo_facts(), device=CPU, suites=names)
    rows = run(plan)["results"]
    assert {row["suite"] for row in rows} == set(names)
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows)
