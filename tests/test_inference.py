"""Batched inference says what one row at a time says."""

import math
from typing import Any

import pytest
import torch
from test_shared_prompt import tiny
from transformers import GenerationConfig

from toolbox import embedded, inference, likelihoods, loading
from toolbox.errors import OutOfMemoryError

TALKS = [
    [{"role": "user", "content": text}]
    for text in (
        "Hi!",
        "介绍一下你自己。",
        "What is the capital of France?",
        "What is LoRA?",
        "猫怎么叫？",
        "Where is Oslo?",
    )
] + [
    [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What does a cow say?"},
        {"role": "assistant", "content": "A cow says moo."},
        {"role": "user", "content": "And a duck?"},
    ]
]


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return loading.base_model(embedded.MODEL, "float32", "cpu").eval(), loading.tokenizer(embedded.MODEL)


def test_a_batch_answers_what_each_alone_answers(loaded: tuple[Any, Any]) -> None:
    alone = [inference.generate(*loaded, [talk], max_new_tokens=32)[0] for talk in TALKS]
    assert inference.generate(*loaded, TALKS, max_new_tokens=32) == alone
    assert inference.generate(*loaded, TALKS, max_new_tokens=32, batch_size=2) == alone
    assert alone[2] == "The capital of France is Paris."


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "mistral"])
def test_answered_rows_leave_their_batch_and_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(kind).eval()
    if kind == "mistral":
        model.config.sliding_window = 6
    torch.manual_seed(0)
    prompts = [torch.randint(0, 128, (5 + number % 7,)).tolist() for number in range(12)]
    settings = GenerationConfig(max_new_tokens=24, do_sample=False, eos_token_id=[*range(0, 128, 4)], pad_token_id=0)
    batches: list[int] = []
    model.register_forward_pre_hook(
        lambda _module, _args, kwargs: batches.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    for seeds in ((), range(12)):
        batches.clear()
        found = inference.answer_ids(model, prompts, settings, seeds=seeds)
        left = sum(batches)
        batches.clear()
        with monkeypatch.context() as together:
            together.setattr(inference, "_may_leave", lambda *asked: False)
            assert inference.answer_ids(model, prompts, settings, seeds=seeds) == found
        assert len(set(map(len, found))) > 3
        assert left < 0.7 * sum(batches)


def test_sampling_repeats_with_its_seed_and_leaves_the_random_state_alone(loaded: tuple[Any, Any]) -> None:
    talks = [[{"role": "user", "content": "Tell me about the writer."}]] * 16
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = inference.generate(*loaded, talks, do_sample=True, seed=3)
    assert torch.rand(1) == expected
    assert inference.generate(*loaded, talks, do_sample=True, seed=3) == first
    assert len(set(first)) > 1


def test_token_likelihoods_are_those_of_each_row_alone(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    rows = [inference.prompt_ids(tokenizer, talk, "A") for talk in TALKS]
    for row, found in zip(rows, likelihoods.token_log_likelihoods(model, rows), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([row])).logits[0, :-1]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(row[1:])[:, None])[:, 0]
        assert found == pytest.approx(expected.tolist(), abs=1e-4)


def test_choices_are_compared_from_where_they_differ(loaded: tuple[Any, Any]) -> None:
    asked = [
        (TALKS[2], "The capital of France is", (" Paris", " Tokyo")),
        (TALKS[4], "猫的叫声是", ("喵喵", "汪汪")),
    ]
    for right, wrong in likelihoods.choice_log_likelihoods(*loaded, asked):
        assert right > wrong + 2
        assert math.exp(right) <= 1


def test_a_lack_of_memory_halves_the_batch_and_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = []

    def work(batch: list[int]) -> list[int]:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [10 * item for item in batch]

    told: list[tuple[int, int]] = []
    items = [3, 1, 4, 1, 5, 9, 2]
    assert inference.in_batches(items, int, work, 8, lambda *at: told.append(at)) == [10 * item for item in items]
    assert sizes == [7, 4, 2, 2, 2, 1]
    assert told[-1] == (7, 7)
    assert "4" in capsys.readouterr().out


def test_a_lack_of_memory_changes_no_likelihood(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = loaded
    rows = [inference.prompt_ids(tokenizer, talk) for talk in TALKS]
    expected = likelihoods.token_log_likelihoods(model, rows)
    forward, refused = model.forward, []

    def small(input_ids: torch.Tensor, **others: Any) -> Any:
        if len(input_ids) > 3:
            refused.append(len(input_ids))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, **others)

    monkeypatch.setattr(model, "forward", small)
    found = likelihoods.token_log_likelihoods(model, rows)
    assert refused
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_a_row_that_alone_is_too_much_is_said_in_a_sentence() -> None:
    def work(batch: list[int]) -> list[int]:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    with pytest.raises(OutOfMemoryError):
        inference.in_batches([1, 2], int, work)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def work(batch: list[int]) -> list[int]:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        inference.in_batches([1, 2], int, work)
