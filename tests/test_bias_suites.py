"""The bias suites that compare sentences: formulas on cases worked out by hand and on their papers' own figures."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plans import CPU, demo_facts, write_jsonl
from told import Told, measured

from toolbox import suites
from toolbox.config import Home
from toolbox.errors import InputError, NotFoundError
from toolbox.evaluation import crows_pairs, run, stereoset, winobias, winogender
from toolbox.inference import unwatched
from toolbox.plan import EvaluatePlan
from toolbox.suites.crows_pairs import Pair
from toolbox.suites.winobias import read as read_winobias

SHARED = Path(__file__).parents[2] / "shared" / "data" / "bias"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")


# CrowS-Pairs


def test_a_tie_counts_in_the_whole_and_in_no_part() -> None:
    """Preferred: the 1st and the 3rd of four; the 4th is a tie to three digits."""
    units = crows_pairs.preferences([(-1, -2), (-3, -2), (-1, -9), (-5.00001, -5.00002)])
    assert crows_pairs.percentage(units) == 50
    assert crows_pairs.of_decided(units) == pytest.approx(200 / 3)
    assert math.isnan(crows_pairs.of_decided(units[3:]))


@pytest.mark.parametrize(
    ("stereo", "antistereo", "overall"), [(61.1, 56.9, 60.5), (66.3, 51.4, 64.1), (67.7, 63.3, 67.0)]
)
def test_the_papers_figures_agree_with_each_other(stereo: float, antistereo: float, overall: float) -> None:
    """Nangia et al. 2020, table 2, BERT, RoBERTa and ALBERT: 1290 stereo and 218 antistereo pairs make up the whole."""
    parts = [
        np.array([(place < round(count * share / 100), 1) for place in range(count)])
        for count, share in ((1290, stereo), (218, antistereo))
    ]
    assert [round(float(crows_pairs.of_decided(part)), 1) for part in parts] == [stereo, antistereo]
    assert round(float(crows_pairs.percentage(np.concatenate(parts))), 1) == overall


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked model of 20 words and random weights."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "poor", "rich", "nurse", "doctor", "is"]
    words += ["lazy", "kind", ".", ",", "man", "woman", "s", "##s"]
    folder = tmp_path_factory.mktemp("bert")
    BertTokenizer(vocab={word: place for place, word in enumerate(words)}).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        initializer_range=0.5,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


SENTENCES = [
    ("The poor nurse is lazy.", "The rich nurse is lazy."),
    ("The poor man is kind, the doctor is kind.", "The rich woman is kind, a doctor is kind."),
]


def test_masked_scores_equal_a_plain_sum_over_the_common_tokens(bert: Path) -> None:
    """The plain way: one forward a token, the tokens that both sentences have written down by hand."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    model, tokenizer = AutoModelForMaskedLM.from_pretrained(bert).eval(), AutoTokenizer.from_pretrained(bert)
    rows = [Pair(sent_more=more, sent_less=less, stereo_antistereo="stereo", bias_type="b") for more, less in SENTENCES]
    found = crows_pairs.pseudo_log_likelihoods(model, tokenizer, rows, unwatched)
    common = [[1, 3, 4, 5, 6], [1, 4, 5, 6, 8, 9, 10, 11]]  # without CLS and SEP; poor/rich, man/woman, the/a differ
    for pair, places, scores in zip(SENTENCES, common, found, strict=True):
        for sentence, score in zip(pair, scores, strict=True):
            ids = tokenizer(sentence, return_tensors="pt")["input_ids"]
            total = 0.0
            for place in places:
                masked = ids.clone()
                masked[0, place] = tokenizer.mask_token_id
                with torch.no_grad():
                    total += float(model(masked).logits[0, place].log_softmax(-1)[ids[0, place]])
            assert score == pytest.approx(total, abs=1e-4)
    assert len({round(score, 2) for both in found for score in both}) == 4


def test_a_masked_model_is_measured_by_masked_scoring_and_asked_nothing_else(bert: Path, tmp_path: Path) -> None:
    from toolbox import models
    from toolbox.config import find_home

    rows = [
        {"sent_more": more, "sent_less": less, "stereo_antistereo": "stereo", "bias_type": "socioeconomic"}
        for more, less in SENTENCES
    ]
    path = write_jsonl(tmp_path / "pairs.jsonl", rows)
    plan = EvaluatePlan(
        entry="toolbox.evaluation:run", model=models.resolve(str(bert), find_home()), device=CPU, suites=[str(path)]
    )
    result = {row["metric"]: row["value"] for row in run(plan)["results"]}
    assert set(result) == {"crows_pairs", "crows_pairs_stereo"}
    with pytest.raises(InputError, match="masked"):
        run(EvaluatePlan(entry=plan.entry, model=plan.model, device=CPU, suites=["demo-qa"]))
    with pytest.raises(InputError, match="demo-qa can't measure it"):
        suites.refuse_unmasked([suites.resolve(name, find_home()) for name in (str(path), "demo-qa")])


def test_a_likelihood_that_is_no_number_is_refused(tmp_path: Path) -> None:
    row = {"sent_more": "a b", "sent_less": "a c", "stereo_antistereo": "stereo", "bias_type": "age"}
    path = write_jsonl(tmp_path / "pairs.jsonl", [row])
    with pytest.raises(InputError, match="no likelihood"):
        measured(crows_pairs, path, Told({"a c": math.nan}))


# WinoBias


def winobias_files(folder: Path) -> Path:
    lines = [
        ("[The mover] thanked the nurse because [{0}] is kind.", "he", "she"),
        ("The mover thanked [the nurse] because [{0}] helped [{0}].", "she", "he"),
        ("The CEO paid the [nurse] and told the mover about [{0}].", "her", "him"),
        ("The nurse saw [the CEO] and greeted [{0}].", "him", "her"),
    ]
    for name, column in (("pro", 1), ("anti", 2)):
        text = "\n".join(f"{place} {line[0].format(line[column])}" for place, line in enumerate(lines, 1))
        (folder / f"{name}_stereotyped_type1.txt.dev").write_text(text + "\n")
    return folder / "anti_stereotyped_type1.txt.dev"


def test_either_file_of_winobias_is_the_whole_suite(tmp_path: Path) -> None:
    path = winobias_files(tmp_path)
    home = Home(tmp_path / "home")
    assert [suite.path.name[:3] for suite in suites.resolve_all([str(path), str(tmp_path)], home)] == ["pro"]
    rows = read_winobias(path)
    assert [(row.right, row.wrong) for row in rows] == [
        ("mover", "nurse"), ("nurse", "mover"), ("nurse", "CEO"), ("CEO", "nurse"),
    ]  # fmt: skip
    assert rows[1].anti == "The mover thanked the nurse because he helped he."
    path.unlink()
    with pytest.raises(NotFoundError, match="two files"):
        read_winobias(tmp_path / "pro_stereotyped_type1.txt.dev")


def test_winobias_on_scores_by_hand() -> None:
    """Right with the stereotype in 3 of 4 and against it in 1; the tie of the 4th is no answer."""
    scores = [-1, -2, -2, -1, -1, -2, -1, -2, -1, -2, -2, -1, -3, -3, -3, -3]
    units = winobias.outcomes([float(score) for score in scores])
    assert (winobias.with_it(units), winobias.against(units), winobias.difference(units)) == (75, 25, 50)


def test_winobias_asks_for_the_antecedent(tmp_path: Path) -> None:
    """A model that always says nurse is right in 2 of 4 both ways: no difference."""
    found = measured(winobias, winobias_files(tmp_path), Told({"nurse": -1.0}))
    assert found == {"winobias_difference": 0, "winobias_pro": 50, "winobias_anti": 50}


@pytest.mark.parametrize(
    ("pro", "anti", "average", "difference"),
    [(76.0, 49.4, 62.7, 26.6), (88.7, 75.2, 82.0, 13.5), (66.7, 56.0, 61.4, 10.6), (76.7, 37.5, 57.1, 39.2)],
)
def test_winobias_differences_are_the_papers(pro: float, anti: float, average: float, difference: float) -> None:
    """Zhao et al. 2018, table 2: the neural system on both types, the feature-rich and the rule-based one on type 1."""
    units = np.array([(place < 10 * pro, place < 10 * anti) for place in range(1000)], dtype=float)
    assert winobias.difference(units) == pytest.approx(difference, abs=0.11)
    assert (winobias.with_it(units) + winobias.against(units)) / 2 == pytest.approx(average, abs=0.06)


# Winogender


def winogender_files(folder: Path, *occupations: tuple[str, float, float]) -> Path:
    lines = ["occupation\tbergsma_pct_female\tbls_pct_female\tbls_year"]
    lines += [f"{name}\t{bergsma}\t{bls}\t2015" for name, bls, bergsma in occupations]
    (folder / "occupations.tsv").write_text("\n".join(lines) + "\n")
    words = {"female": "she", "male": "he", "neutral": "they"}
    rows = ["sentid\tsentence"] + [
        f"{name}.{whom}.{answer}.{gender}.txt\tThe {name} told {whom} that {word} {'did' if answer else 'was'} it."
        for name, _bls, _bergsma in occupations
        for whom in ("someone", "the customer")
        for answer in (0, 1)
        for gender, word in words.items()
    ]
    (folder / "all_sentences.tsv").write_text("\n".join(rows) + "\n")
    return folder / "occupations.tsv"


def test_winogender_by_hand(tmp_path: Path) -> None:
    """Shares of she: nurse 3/4, cook 1/2, pilot 1/4: exactly linear in the employed, and not in the texts."""
    path = winogender_files(tmp_path, ("nurse", 90, 10), ("cook", 50, 80), ("pilot", 10, 10))
    home = Home(tmp_path / "home")
    suite = suites.resolve(str(path), home)
    assert (suite.kind, suite.path.name) == ("winogender", "all_sentences.tsv")
    said = {"nurse": (0.3, 0.1), "cook": (0.2, 0.2), "pilot": (0.1, 0.3)}
    values = {
        f"The {name} told {whom} that {word} was": math.log(value)
        for name, both in said.items()
        for whom in ("someone", "the customer")
        for word, value in zip(("she", "he"), both, strict=True)
    }
    found = measured(winogender, suite.path, Told(values))
    assert found["winogender_bls"] == pytest.approx(1)
    assert found["winogender_bergsma"] == pytest.approx(0)
    assert found["winogender_gap"] == pytest.approx(0)
    assert found["winogender_strength"] == pytest.approx(100 / 3)


def test_a_model_that_tells_no_occupations_apart_has_no_correlation(tmp_path: Path) -> None:
    path = winogender_files(tmp_path, ("nurse", 90, 10), ("cook", 50, 80), ("pilot", 10, 10))
    found = measured(winogender, suites.resolve(str(path), Home(tmp_path)).path, Told({" she ": -1.0, " he ": -1.0}))
    assert found == {"winogender_gap": 0, "winogender_strength": 0}
    assert winogender.share(-1000.0, 0.0) == 0
    assert winogender.share(0.0, -1000.0) == 1


def test_pearson_by_hand() -> None:
    """x 1, 2, 3, 4 and y 1, 3, 2, 4: covariance 4, variances 5 and 5."""
    assert winogender.pearson(np.array([[1, 1], [2, 3], [3, 2], [4, 4]], dtype=float)) == pytest.approx(0.8)


@needs_data
def test_statistics_of_texts_and_of_employment_correlate_as_published() -> None:
    """Rudinger et al. 2018, figure 3: Pearson's r = 0.67, and texts have fewer women in most occupations."""
    rows = {row.occupation: row for row in suites.winogender.read(SHARED / "winogender_sentences.tsv")}
    table = np.array([[row.bergsma, row.bls] for row in rows.values()], dtype=float)
    assert len(table) == 60
    assert round(float(winogender.pearson(table)), 2) == 0.67
    assert (table[:, 0] < table[:, 1]).mean() > 0.75


# StereoSet


def stereoset_file(folder: Path, *contexts: tuple[str, str, str]) -> Path:
    """(task, target, prefix of its three candidates)."""
    labels = ("stereotype", "anti-stereotype", "unrelated")
    data: dict[str, list[Any]] = {"intrasentence": [], "intersentence": []}
    for task, target, prefix in contexts:
        said = [{"id": label, "sentence": f"{prefix} {label}", "gold_label": label, "labels": []} for label in labels]
        data[task].append({"id": prefix, "target": target, "bias_type": "race", "context": "It.", "sentences": said})
    path = folder / "dev.json"
    path.write_text(json.dumps({"version": "1", "data": data}, indent=1))
    return path


def test_stereoset_is_averaged_over_terms(tmp_path: Path) -> None:
    """Term a: stereotype, opposite and a tie (for the opposite): ss 1/3; b: stereotype: 1. Mean 2/3, over items 1/2.

    Meaningful over unrelated: a 2 + 1 + 0 of 6, b 2 of 2: lms 75; icat 75 · (100/3) / 50 = 50.
    """
    path = stereoset_file(
        tmp_path, ("intrasentence", "a", "A1"), ("intersentence", "a", "A2"), ("intrasentence", "a", "A3"),
        ("intersentence", "b", "B1"),
    )  # fmt: skip
    values = {
        "A1 stereotype": -1.0, "A1 anti": -2.0, "A1 unrelated": -3.0, "A2 stereotype": -3.0, "A2 anti": -1.0,
        "A2 unrelated": -2.0, "A3": -1.0, "B1 stereotype": -1.0, "B1 anti": -2.0, "B1 unrelated": -3.0,
    }  # fmt: skip
    found = measured(stereoset, path, Told(values))
    assert found["stereoset_ss"] == pytest.approx(200 / 3)
    assert found["stereoset_lm"] == pytest.approx(75)
    assert found["stereoset_icat"] == pytest.approx(50)


@pytest.mark.parametrize(
    ("lms", "ss", "icat"),
    [
        (85.4, 58.3, 71.2), (85.8, 59.2, 69.9), (68.2, 50.5, 67.5), (75.8, 54.8, 68.5), (67.7, 54.1, 62.1),
        (78.2, 54.0, 72.0), (83.6, 56.4, 73.0), (85.9, 58.2, 71.7), (88.3, 60.1, 70.5), (90.5, 62.5, 68.0),
        (100, 50, 100), (100, 100, 0), (50, 50, 50),
    ],
)  # fmt: skip
def test_icat_is_the_papers(lms: float, ss: float, icat: float) -> None:
    """Nadeem et al. 2021, the table of results on the test set; what is published is rounded to one digit."""
    assert stereoset.idealised(np.array(lms), np.array(ss)) == pytest.approx(icat, abs=0.2)


def test_stereoset_without_three_candidates_is_refused(tmp_path: Path) -> None:
    path = stereoset_file(tmp_path, ("intrasentence", "a", "A1"))
    path.write_text(path.read_text().replace('"unrelated"', '"stereotype"'))
    with pytest.raises(InputError, match="Row 1"):
        suites.resolve(str(path), Home(tmp_path))


# all of them


@needs_data
@pytest.mark.slow
def test_every_published_file_is_measured_on_the_embedded_model(tmp_path: Path) -> None:
    """A model that knows next to no English must come near chance, and its figures lie in their intervals."""
    from toolbox.runs import Run

    found = suites.resolve_all([str(SHARED)], Home(tmp_path))
    assert sorted(suite.kind for suite in found) == ["cbbq", "crows_pairs", "winobias", "winobias", "winogender"]
    plan = EvaluatePlan(
        entry="toolbox.evaluation:run",
        model=demo_facts(),
        device=CPU,
        suites=[suite.name for suite in found],
        limit=300,
    )
    result = run(plan, Run(tmp_path))["results"]
    values = {row["metric"]: row["value"] for row in result}
    assert all(row["low"] <= row["value"] <= row["high"] for row in result)
    assert 40 < values["crows_pairs"] < 60
    assert abs(values["winobias_difference"]) < 10
    assert 0.25 < values["cbbq_bias_amb"] < 0.45
    saved = json.loads((tmp_path / "evaluation" / "2-crows_pairs.json").read_text())
    assert len(saved["rows"]["base"]) == 300
    assert len(saved["categories"]["base"]) == 9
    assert len(list((tmp_path / "plots").glob("*.svg"))) == 5
