"""IFEval: every kind of instruction, met and not met, checked by hand; strict and lenient readings; the figures."""

from pathlib import Path
from typing import Any

import pytest

from toolbox import suites
from toolbox.config import Home
from toolbox.errors import InputError
from toolbox.evaluation import ifeval
from toolbox.evaluation.instructions import CHECKS, met, readings, sentences
from toolbox.inference import unwatched
from toolbox.suites.ifeval import INSTRUCTIONS, Request, read

FILE = Path(__file__).resolve().parents[2] / "shared" / "data" / "eval" / "ifeval_input.jsonl"
CASES: dict[str, list[tuple[dict[str, Any], list[str], list[str]]]] = {
    "change_case:capital_word_frequency": [
        ({"capital_relation": "at least", "capital_frequency": 2}, ["I AM here.", "A TOP-NOTCH one."], ["Am I here."]),
        ({"capital_relation": "less than", "capital_frequency": 2}, ["ONE is here."], ["NOT ONE is here."]),
    ],
    "change_case:english_capital": [
        ({}, ["THIS IS A PLAIN TEXT."], ["THIS IS a PLAIN TEXT.", "DIES IST KEIN ENGLISCHER SATZ."])
    ],
    "change_case:english_lowercase": [({}, ["this is a plain text, of 2 lines."], ["This is a plain text."])],
    "combination:repeat_prompt": [
        ({"prompt_to_repeat": "Name a city. "}, ["name a city.\n\nRome."], ["Rome. Name a city."])
    ],
    "combination:two_responses": [
        (
            {},
            ["One.\n******\nTwo.", "******\nOne.\n******\nTwo."],
            ["Same\n******\nSame", "One.", "A******B******C", "A******\n\n******B"],
        )
    ],
    "detectable_content:number_placeholders": [
        ({"num_placeholders": 2}, ["[name], [address]"], ["[name]", "[na\nme] [x]"])
    ],
    "detectable_content:postscript": [
        ({"postscript_marker": "P.S."}, ["Bye.\n\nP.S. Write!", "p. s. more"], ["Bye. PS: more"]),
        ({"postscript_marker": "P.P.S"}, ["Bye.\nP.P.S more", "P. P. S. more"], ["Bye.\nP.S. more"]),
    ],
    "detectable_format:constrained_response": [({}, ["Well. My answer is no."], ["My answer is: no", "no"])],
    "detectable_format:json_format": [
        ({}, ['{"a": [1]}', '```json\n{"a": 1}\n```', "```\n[]\n```"], ["{'a': 1}", 'Here: {"a": 1}'])
    ],
    "detectable_format:multiple_sections": [
        (
            {"section_spliter": "SECTION", "num_sections": 2},
            ["SECTION 1\na\nSECTION 2\nb"],
            ["SECTION 1", "Section 1 Section 2"],
        )
    ],
    "detectable_format:number_bullet_lists": [
        ({"num_bullets": 2}, ["* a\n* b", "- a\n text\n  - b"], ["* a", "* a\n* b\n* c", "**a**\n**b**", "+ a\n+ b"])
    ],
    "detectable_format:number_highlighted_sections": [
        ({"num_highlights": 2}, ["*a* and *b c*", "**a** and *b*"], ["*a* and * *", "*a\nb* *c*"])
    ],
    "detectable_format:title": [({}, ["<<A poem>>\nText", "a <<b>> c"], ["<A poem>", "<< >>", "<<A\npoem>>"])],
    "keywords:existence": [({"keywords": ["sun", "Moon"]}, ["Sunday, and the moon"], ["sun"])],
    "keywords:forbidden_words": [({"forbidden_words": ["rock"]}, ["a rocket"], ["Rock!", "hard-rock"])],
    "keywords:frequency": [
        ({"keyword": "war", "relation": "at least", "frequency": 2}, ["War and war", "warwar"], ["war"]),
        ({"keyword": "war", "relation": "less than", "frequency": 1}, ["peace"], ["Warm"]),
    ],
    "keywords:letter_frequency": [
        ({"letter": "q", "let_relation": "at least", "let_frequency": 2}, ["Qq"], ["q"]),
        ({"letter": "!", "let_relation": "less than", "let_frequency": 2}, ["Ah!"], ["Ah!!"]),
    ],
    "language:response_language": [
        (
            {"language": "de"},
            ["Das ist ein Satz auf Deutsch, wie man ihn schreibt.", "1 + 1 = 2"],
            ["This is an English sentence."],
        ),
        ({"language": "zh-cn"}, ["这是一个中文句子。"], ["This is an English sentence."]),
        (
            {"language": "hi"},
            ["सभी मनुष्यों को गौरव और अधिकारों के मामले में समानता प्राप्त है।"],
            ["सर्व मानवी व्यक्ती जन्मतः स्वतंत्र आहेत."],
        ),
    ],
    "length_constraints:nth_paragraph_first_word": [
        (
            {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "weekend"},
            ["One.\n\nWeekend, at last.", 'One.\n\n"weekend\'s end"'],
            ["Weekend.\n\nOne.", "One.\n\nWeekends.", "One.\n\nWeekend.\n\nThree.", "One.\nWeekend"],
        )
    ],
    "length_constraints:number_paragraphs": [
        ({"num_paragraphs": 2}, ["a\n***\nb", "***\na\n***\nb\n***"], ["a\n\nb", "a\n***\n***\nb", "a", "a***b***c"])
    ],
    "length_constraints:number_sentences": [
        (
            {"relation": "at least", "num_sentences": 2},
            ["One. Two!", 'He said "no." Then he went.'],
            ["It cost 3.5 dollars, e.g. here."],
        ),
        ({"relation": "less than", "num_sentences": 2}, ["Dr. A. Smith came"], ["Really? Yes."]),
    ],
    "length_constraints:number_words": [
        ({"relation": "at least", "num_words": 3}, ["it's me"], ["me too"]),
        ({"relation": "less than", "num_words": 3}, ["me too"], ["one, two, three"]),
    ],
    "punctuation:no_comma": [({}, ["no such mark; here"], ["one, two"])],
    "startend:end_checker": [
        ({"end_phrase": "Any questions?"}, ['So it is. any questions?"  '], ["Any questions? Ask."])
    ],
    "startend:quotation": [({}, [' "all of it" '], ['"', '"begun', "'single'"])],
}


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_every_kind_both_ways(name: str) -> None:
    for arguments, good, bad in CASES[name]:
        assert set(INSTRUCTIONS[name]) == set(arguments)
        assert {text: met(name, text, arguments) for text in good} == dict.fromkeys(good, True)
        assert {text: met(name, text, arguments) for text in [*bad, " \n"]} == dict.fromkeys([*bad, " \n"], False)


def test_sentences_end_where_a_reader_says() -> None:
    text = "Mr. Smith (b. 1950) came at 3 p.m. with J. Doe... he left! Why? I don't know.\nNo mark here\nend. e.g. x"
    assert sentences(text) == [
        "Mr. Smith (b. 1950) came at 3 p.m. with J. Doe... he left!",
        "Why?",
        "I don't know.",
        "No mark here\nend.",
        "e.g. x",
    ]
    assert len(sentences("这是一句。还有一句！")) == 2


def test_the_lenient_reading_forgives_a_first_and_a_last_line_and_asterisks() -> None:
    text = "Sure, here it is:\n**a plain text**\nHope it helps!"
    assert readings(text)[3] == "**a plain text**"
    assert readings(text)[7] == "a plain text"
    row = Request(prompt="", instruction_id_list=["punctuation:no_comma", "startend:quotation"], kwargs=[{}, {}])
    assert ifeval.judged(row, [text]) == [False, False]
    assert ifeval.judged(row, readings(text)) == [True, False]


class Parrot:
    """A subject that gives the answers it was made with."""

    name = "base"

    def __init__(self, *answers: str) -> None:
        self.answers = answers

    def generate(self, conversations: list[Any], **_settings: Any) -> list[str]:
        return list(self.answers)


def test_the_figures_count_requests_and_instructions(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(
        '{"key": 1, "prompt": "a", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"language": null}]}\n'
        '{"key": 2, "prompt": "b", "instruction_id_list": ["punctuation:no_comma", "startend:quotation",'
        ' "detectable_format:title"], "kwargs": [{}, {}, {}]}\n'
    )
    suite = suites.resolve(str(path), home)
    assert suite.kind == "ifeval"
    finding = ifeval.measure(Parrot("Well, so\nplain", '"<<a>> b"'), suite, 0, unwatched)  # type: ignore[arg-type]
    values = {name: measured.estimate().value for name, measured in finding.metrics.items()}
    assert values == {
        "prompt_level_strict_acc": 0.5,
        "inst_level_strict_acc": 0.75,
        "prompt_level_loose_acc": 1.0,
        "inst_level_loose_acc": 1.0,
    }
    assert [each["strict"] for each in finding.rows[1]["instructions"]] == [True, True, True]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ('{"prompt": "a", "instruction_id_list": ["no:such"], "kwargs": [{}]}', "there is no instruction no:such"),
        ('{"prompt": "a", "instruction_id_list": ["punctuation:no_comma"], "kwargs": []}', "equally long"),
        ('{"prompt": "a", "instruction_id_list": ["keywords:existence"], "kwargs": [{}]}', "needs keywords"),
    ],
)
def test_a_row_that_cannot_be_judged_is_named(home: Home, tmp_path: Path, row: str, told: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(row)
    with pytest.raises(InputError, match=f"Row 1 of .*{told}"):
        suites.resolve(str(path), home)


@pytest.mark.skipif(not FILE.is_file(), reason="no IFEval")
def test_the_papers_file_is_read_whole(home: Home) -> None:
    assert suites.resolve(str(FILE), home).kind == "ifeval"
    rows = read(FILE)
    assert len(rows) == 541
    assert {name for row in rows for name in row.instruction_id_list} == set(INSTRUCTIONS) == set(CHECKS)
