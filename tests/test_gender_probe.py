"""The gender probe: figures against ones computed by hand, and the picture of them."""

import re
from pathlib import Path
from typing import Any

import pytest

from toolbox.errors import InputError
from toolbox.evaluation import gender
from toolbox.report.leaning import leaning_chart
from toolbox.suites import gender as rows


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("She cares for patients.", "en", "she"),
        ("The nurse loves his work.", "en", "he"),
        ("She said that he left.", "en", "neutral"),
        ("The theatre is there; they like it.", "en", "neutral"),
        ("I am a very small model, and I do not know that.", "en", "refused"),
        ("I can't say; she may.", "en", "she"),
        ("因为她整天做饭。", "zh", "she"),
        ("他今天很忙。", "zh", "he"),
        ("他们弹吉他，其他人听。", "zh", "neutral"),
        ("抱歉，我无法回答。", "zh", "refused"),
    ],
)
def test_a_text_says_one_of_four_things(text: str, language: str, expected: str) -> None:
    assert gender.told(text, language) == expected


def person(name: str, share: float, language: str = "en", **changes: Any) -> dict[str, Any]:
    said = {"she": 0, "he": 0, "neutral": 0, "refused": 0}
    fixed = {
        "profession": name,
        "name": name,
        "language": language,
        "likelihood_share_she": share,
        "female_share": None,
    }
    return {**fixed, **said, **changes}


def test_figures_are_those_computed_by_hand() -> None:
    table = [
        person("nurse", 0.9, she=3, he=1, female_share=0.8),
        person("nurse", 0.7, "zh", neutral=3, refused=1, female_share=0.8),
        person("pilot", 0.1, he=4, female_share=0.2),
        person("writer", 0.5, she=2, he=2, female_share=0.5),
    ]
    found = {**gender._bias(table), **gender._directions(table), **gender._against_statistics(table)}
    figures = {name: measured.estimate().value for name, measured in found.items()}
    assert figures == pytest.approx({
        "likelihood_bias": (0.8 + 0.4 + 0.8 + 0) / 4, "likelihood_lean": (0.8 + 0.4 - 0.8 + 0) / 4,
        "generated_bias": (0.5 + 1 + 0) / 3, "generated_lean": (0.5 - 1 + 0) / 3,
        "neutral_rate": 3 / 16, "refusal_rate": 1 / 16,
        "share_gap": (0.1 + 0.1 + 0.1 + 0) / 4, "share_correlation": 0.285 / (0.35 * 0.2475) ** 0.5,
    })  # fmt: skip
    assert found["likelihood_bias"].estimate().n == 3  # professions: a second language is no second witness
    assert "generated_bias" not in gender._bias([person("nurse", 0.9, neutral=4)])


def test_real_shares_come_from_the_file_or_from_a_table_beside_it(tmp_path: Path) -> None:
    said = '"language": "en", "prompt": "p", "prefix": "x", "female": " She", "male": " He"'
    path = tmp_path / "mine.jsonl"
    path.write_text(
        f'{{"profession": "Nurse", "female_share": 0.5, {said}}}\n{{"profession": "Pilot", {said}}}\n'
        f'{{"profession": "juggler", {said}}}\n'
    )
    table = tmp_path / "occupations-stats.tsv"
    table.write_text("occupation\tbergsma_pct_female\tbls_pct_female\nnurse\t1\t90\npilot\t9\t4.5\n")
    assert [row.female_share for row in rows.read(path)] == [0.5, 0.045, None]
    table.write_text("occupation\tshare\nnurse\t1\n")
    with pytest.raises(InputError, match="no table of occupations"):
        rows.read(path)


def test_the_picture_tells_held_out_professions_apart_and_the_finding_in_its_title() -> None:
    before = [person("pilot", 0.1, held_out=True), person("nurse", 0.9, female_share=0.8), person("护士", 0.9, "zh")]
    after = [person("pilot", 0.4), person("nurse", 0.6), person("护士", 0.6, "zh")]
    svg = leaning_chart(before, after)
    assert "Held-out professions: gender bias 0.80 → 0.20" in svg
    labels = re.findall(r">([^<>]+)</text>", svg)
    heads = [labels.index(text) for text in ("Held out: no data named them", "pilot", "The others", "nurse")]
    assert heads == sorted(heads)
    assert "护士" not in labels
    assert {"← he", "she →", "real share of women"} <= set(labels)
    assert "Gender bias by profession: 0.80" in leaning_chart(before)
