"""Every method of tuning at every stage: it trains what it says and nothing else, reloads, resumes, merges."""

import sys
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from toolbox import methods, stages

sys.path.insert(0, str(ROOT / "scripts"))
import matrix
import tuners

FAST = [
    ("loreft", "rm", "none"), ("ln", "rm", "none"), ("ia3", "orpo", "nf4"),
]  # fmt: skip
"""One of each way of keeping weights at a stage that adds some, or has a reference."""
RESTING = {"lisa": 0.2}
"""The least share of the trained tensors that moves where not all do: layers of LISA rest."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def passes(pair: matrix.Pair) -> None:
    where, scored = (pair.method, pair.stage, pair.quantization), pair.stage == "rm"
    method = methods.find(pair.method)
    assert pair.weights, where
    assert pair.moved >= RESTING.get(pair.method, 1.0), where
    assert not pair.strayed, where
    assert pair.resumed_equal, where
    assert pair.reload_diff <= (matrix.SCORES if scored else tuners.SAME), where
    merges = method.kind == "adapter" and not method.unmergeable
    assert merges == (pair.merge_diff is not None), where
    assert (pair.merge_diff or 0) <= (matrix.SCORES if scored else tuners.MERGED), where


@pytest.mark.parametrize(("method", "stage", "quantization"), FAST)
def test_a_method_works_at_a_stage(method: str, stage: str, quantization: str, tmp_path: Path) -> None:
    passes(matrix.measure(method, stage, quantization, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("stage", stages.NAMES)
@pytest.mark.timeout(1200)
def test_every_method_works_at_every_stage(stage: str) -> None:
    for method, named, quantization in matrix.every():
        if named == stage and (method, stage, quantization) not in FAST:
            with tempfile.TemporaryDirectory() as home:
                passes(matrix.measure(method, stage, quantization, Path(home)))


def test_what_the_page_tells_was_measured_of_every_pair() -> None:
    figures = matrix.read()
    assert [(pair.method, pair.stage, pair.quantization) for pair in figures] == list(matrix.every())
    for pair in figures:
        passes(pair)
