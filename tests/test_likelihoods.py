"""What rows begin with alike is computed once, and every likelihood stays."""

import inspect
from typing import Any

import pytest
import torch
from test_shared_prompt import tiny

from toolbox import likelihoods
from toolbox.errors import Interrupted
from toolbox.likelihoods import Row, ScoredTokens

SHARING = ["qwen2", "gpt2", "llama"]
LONE = ["mamba", "mistral"]
"""Kinds that keep another memory, or look through a window shorter than the rows."""


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """A primer of 40 tokens, six questions, four answers each; one row twice, one that is another's beginning, letters
    that differ in the last token alone, one token to tell and none."""
    torch.manual_seed(0)

    def some(count: int) -> list[int]:
        return torch.randint(5, 120, (count,)).tolist()

    primer, asked = some(40), []
    for length in range(3, 9):
        context = primer + some(length)
        asked += [(context + some(size), len(context)) for size in (1, 4, 2, length)]
        asked += [([*context, letter], len(context)) for letter in (7, 8, 9)]
    ids, begin = asked[1]
    return [*asked, asked[0], (ids[:-1], begin), (primer, 1), (some(9), 4), ([5], 1), (ids[:begin], begin)]


def alone(model: Any, rows: list[Row]) -> list[ScoredTokens]:
    found = []
    for ids, begin in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
        told = range(begin, len(ids))
        found.append([(float(logits[at - 1, ids[at]]), int(logits[at - 1].argmax()) == ids[at]) for at in told])
    return found


def seen_by(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of all token ids that the model is given from now on."""
    forward, shapes = model.forward, []

    def told(*args: Any, **inputs: Any) -> Any:
        shapes.append(inputs["input_ids"].shape)
        return forward(*args, **inputs)

    told.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(model, "forward", told)
    return shapes


@pytest.mark.parametrize("kind", SHARING + LONE)
def test_likelihoods_are_those_of_each_row_alone(kind: str, rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(kind).eval()
    if kind == "mistral":
        model.config.sliding_window = 16
    expected, before = alone(model, rows), model.config._attn_implementation
    shapes = seen_by(model, monkeypatch)
    found = likelihoods.scored_tokens(model, rows)
    for one, other in zip(found, expected, strict=True):
        assert [value for value, _best in one] == pytest.approx([value for value, _best in other], abs=1e-4)
        assert [best for _value, best in one] == [best for _value, best in other]
    assert model.config._attn_implementation == before
    tokens = sum(len(ids) for ids, _begin in rows)
    assert (sum(shape.numel() for shape in shapes) < tokens / 2) == (kind in SHARING)


def test_who_goes_on_comes_to_the_same_bits(rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    model, kept = tiny("qwen2").eval(), {}
    monkeypatch.setattr(likelihoods, "TOKENS", 60)
    straight = likelihoods.scored_tokens(model, rows)

    def stop(done: int, total: int) -> None:
        if done > total / 3:
            raise Interrupted("stopped", "")

    with pytest.raises(Interrupted):
        likelihoods.scored_tokens(model, rows, watch=stop, keep=kept.update)
    assert 0 < len(kept) < len(rows)
    shapes = seen_by(model, monkeypatch)
    assert likelihoods.scored_tokens(model, rows, known=kept) == straight
    assert model.config._attn_implementation == "sdpa"
    assert max(shape.numel() for shape in shapes) <= 60


def test_a_lack_of_memory_makes_smaller_trees(rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("qwen2").eval()
    expected = likelihoods.scored_tokens(model, rows)
    forward, refused = model.forward, []

    def small(*, input_ids: torch.Tensor, position_ids: Any = None, logits_to_keep: Any = 0, **others: Any) -> Any:
        if input_ids.numel() > 100:
            refused.append(input_ids.numel())
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, position_ids=position_ids, logits_to_keep=logits_to_keep, **others)

    monkeypatch.setattr(model, "forward", small)
    found = likelihoods.scored_tokens(model, rows)
    assert refused
    for one, other in zip(found, expected, strict=True):
        assert [value for value, _best in one] == pytest.approx([value for value, _best in other], abs=1e-4)


def test_logits_are_made_for_what_is_told_only(rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [row for row in rows if row[1] > 40]
    for worth in (likelihoods.WORTH, 0.0):
        model, made = tiny("qwen2").eval(), []
        model.lm_head.register_forward_hook(lambda module, inputs, output, made=made: made.append(output.shape[-2]))
        monkeypatch.setattr(likelihoods, "WORTH", worth)
        monkeypatch.setattr(likelihoods, "PROOF_TOKENS", 4)
        likelihoods.scored_tokens(model, asked)
        assert max(made) <= (len({tuple(ids[:-1]) for ids, _begin in asked}) * 4 if worth else 14)
