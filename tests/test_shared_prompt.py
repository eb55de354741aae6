"""What samples of a row begin with alike is computed once, and every loss, log-probability and gradient stays."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from plans import finetune_plan, finetune_run, stored
from test_training import Recorder

from toolbox import embedded, loading, stages
from toolbox.training import attention, batches, layouts, seeds, trees
from toolbox.training import stages as training_stages
from toolbox.training.rows import IGNORED, Sample
from toolbox.training.stages import scoring
from toolbox.training.stages.pairs import Pair
from toolbox.training.step import Forward

PAIRED = ["rm", "dpo", "orpo", "simpo", "cpo"]
SIZES = [(9, 5, 7), (4, 8, 3), (12, 1, 6), (1, 4, 4)]
"""(prompt, chosen, rejected) tokens of each pair."""


def sample(number: int, prompt: list[int], answer: list[int]) -> Sample:
    return Sample("x", number, prompt + answer, [IGNORED] * len(prompt) + answer)


def tokens(count: int) -> list[int]:
    return torch.randint(5, 120, (count,)).tolist()


@pytest.fixture
def items() -> list[Pair]:
    """Pairs of many shapes: among them answers that begin alike, and one answer that is the other's beginning."""
    torch.manual_seed(0)
    made = []
    for number, (prompt, chosen, rejected) in enumerate(SIZES):
        before = tokens(prompt)
        made.append(Pair(sample(number, before, tokens(chosen)), sample(number, before, tokens(rejected))))
    before, answer = tokens(6), tokens(5)
    made.append(Pair(sample(8, before, answer), sample(8, before, [*answer[:2], *tokens(3)])))
    made.append(Pair(sample(9, before, answer), sample(9, before, answer[:3])))
    return made


def tiny(kind: str) -> Any:
    """A model of the architecture `kind` with random weights large enough for attention to matter."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 128, "initializer_range": 0.3}  # fmt: skip
    own = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 128, "initializer_range": 0.3, "resid_pdrop": 0.0,
           "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # fmt: skip
    torch.manual_seed(1)
    config = AutoConfig.for_model(kind, **(own if kind == "gpt2" else shape))
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager" if kind == "mamba" else "sdpa")


def model_of(kind: str) -> Any:
    return loading.base_model(embedded.MODEL, "float32", "cpu") if kind == "demo" else tiny(kind)


@pytest.mark.parametrize("kind", ["demo", "llama", "qwen3", "gpt2"])
def test_losses_and_gradients_are_those_of_pairs_with_a_prompt_each(home: Path, items: list[Pair], kind: str) -> None:
    model = model_of(kind)
    scoring.extend(model)
    padded = Forward(model, 0, "cpu", "float32")
    reporter = Recorder()
    shared = layouts.choose(padded, [side for item in items for side in item.sequences], reporter)  # type: ignore[arg-type]
    assert shared.layout is batches.flatten_shared
    assert not reporter.phases
    for name in PAIRED:
        expected = outcome(name, replace(shared, layout=batches.flatten), items, home)
        found = outcome(name, shared, items, home)
        assert found[0] == pytest.approx(expected[0], rel=1e-5, abs=1e-5), name
        for weight, gradient in expected[1].items():
            assert torch.allclose(found[1][weight], gradient, rtol=1e-4, atol=1e-5), (name, weight)


def outcome(name: str, forward: Forward, items: list[Pair], home: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The loss and the figures of a stage whose reference is another model, and the gradients."""
    kind = stages.OPTIONS[name]
    stage = training_stages.stage_for(finetune_plan(home, stage=name, options=kind()))
    before = copy.deepcopy(forward.model.state_dict())
    with torch.no_grad():
        for weight in forward.model.parameters():
            weight *= 1.01
    run = finetune_run(home)
    stage.prepare(forward, stored(run.path / "rows", items), run, Recorder())  # type: ignore[arg-type]
    forward.model.load_state_dict(before)
    forward.model.zero_grad()
    made = stage.loss(forward, items, stage.totals(forward, [items]))
    made.loss.backward()
    figures = [float(value) for values in made.figures.values() for value in values]
    gradients = {
        key: weight.grad.clone() for key, weight in forward.model.named_parameters() if weight.grad is not None
    }
    return [float(made.loss.detach()), *figures], gradients


def test_any_number_of_answers_share_their_prompt(items: list[Pair]) -> None:
    model = model_of("llama").eval()
    forward = Forward(model, 0, "cpu", "float32", batches.flatten_shared)
    prompt = tokens(20)
    group = [sample(1, prompt, [size, *tokens(size)]) for size in (3, 7, 5, 1)] + [items[0].chosen]
    assert batches.flatten_shared(group, 0).inputs["input_ids"].shape == (1, 20 + 20 + items[0].chosen.size)
    with torch.no_grad():
        expected = torch.cat([forward.logps([one]) for one in group])
        model.set_attn_implementation(attention.TREES)
        assert torch.allclose(forward.logps(group), expected, rtol=1e-5)


def test_what_begins_alike_grows_on_one_trunk(items: list[Pair]) -> None:
    system, asked, other = tokens(16), [1, *tokens(7)], [2, *tokens(5)]
    rows = [sample(1, system + asked, [10, 11, 12]), sample(2, system + other, [13]), sample(1, system + asked, [14])]
    found = trees.grow(rows)
    assert found.nodes == [(-1, 16), (0, 8), (1, 3), (1, 1), (0, 7)]
    assert found.paths == {0: [0, 1, 2], 2: [0, 1, 3], 1: [0, 4]}
    assert found.tokens == 35
    short = [3]
    alone = [sample(1, short, [4, *tokens(20)]), sample(2, short, [5, *tokens(20)]), sample(3, [6], [7])]
    assert trees.grow(alone).nodes == [(-1, 22), (-1, 22), (-1, 2)]  # one token is not worth it
    assert trees.grow([rows[0], rows[0]]).nodes == [(-1, 27)]


def test_the_reference_takes_the_answers_of_a_row_together(items: list[Pair]) -> None:
    sides = [item.chosen for item in items[:3]] + [item.rejected for item in items[:3]]
    sizes = [trees.grow(item.sequences).tokens for item in items[:3]]
    assert list(trees.batched(sides, most=max(sizes))) == [[1, 4], [2, 5], [0, 3]]
    assert sorted(next(trees.batched(sides, most=sum(sizes)))) == list(range(6))


def test_without_a_kernel_long_branches_are_attended_to_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = tokens(10)
    sides = [sample(1, prompt, [7, *tokens(40)]), sample(1, prompt, [8, *tokens(30)])]
    forward = layouts.choose(Forward(model_of("llama"), 0, "cpu", "float32"), sides, Recorder())  # type: ignore[arg-type]
    expected = gradients_of(forward, sides)
    monkeypatch.setattr(attention, "kernel_for", lambda kind, dtype: None)
    monkeypatch.setattr(attention, "AT_ONCE", 16)
    for one, other in zip(gradients_of(forward, sides), expected, strict=True):
        assert near(one, other)


def test_a_model_that_cannot_share_has_each_answer_with_its_own_prompt(items: list[Pair]) -> None:
    def deaf(row: Any, query: Any, key: Any, value: Any, mask: Any, nodes: Any = (), **options: Any) -> Any:
        """Branches don't see their trunk."""
        apart = tuple((-1, count) for _parent, count in nodes)
        return attention.causal_within_trees(row, query, key, value, mask, apart, **options)

    attention.AttentionInterface.register(attention.TREES, deaf)
    reporter = Recorder()
    model = model_of("llama")
    sides = [side for item in items for side in item.sequences]
    try:
        chosen = layouts.choose(Forward(model, 0, "cpu", "float32"), sides, reporter)  # type: ignore[arg-type]
    finally:
        attention.AttentionInterface.register(attention.TREES, attention.causal_within_trees)
    assert chosen.layout is batches.flatten
    assert any("can't share a prompt" in text for text in reporter.phases)


def test_the_reference_is_computed_for_the_rows_that_steps_see(items: list[Pair], tmp_path: Path) -> None:
    training = finetune_plan(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=2).training
    seen = [items[place] for place in batches.of_steps(len(items), 2, training, seed=1)]
    steps = [batches.of_step(items, step, training, seed=1) for step in range(2)]
    taken = [item.number for step in steps for batch in step for item in batch]
    assert sorted(item.number for item in seen) == sorted(taken)
    assert len(seen) == 4
    assert list(batches.of_steps(len(items), 3, training, seed=1)) == list(range(len(items)))


def plain_kernel(query: Any, key: Any, value: Any, within: attention.Spans, scaling: float | None) -> torch.Tensor:
    """What flash-attn and torch's varlen_attn compute, span by span: causal, ends of keys and queries aligned."""
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    seen = []
    for span in range(len(within.queries) - 1):
        q = query[within.queries[span] : within.queries[span + 1]].transpose(0, 1)
        k, v = (s[within.keys[span] : within.keys[span + 1]].transpose(0, 1) for s in (key, value))
        assert q.shape[1] <= within.longest_query
        assert k.shape[1] <= within.longest_key
        scores = q @ k.transpose(1, 2) * (scaling or q.shape[-1] ** -0.5)
        future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1 + k.shape[1] - q.shape[1])
        seen.append((scores.masked_fill(future, -torch.inf).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(seen)


def test_a_kernel_for_many_lengths_is_called_once_a_layer_with_every_branch(
    items: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(*states: Any) -> torch.Tensor:
        calls.append(states[3])
        return plain_kernel(*states)

    model = model_of("llama")
    sides = [side for item in items for side in item.sequences]
    forward = layouts.choose(Forward(model, 0, "cpu", "float32"), sides, Recorder())  # type: ignore[arg-type]
    expected = gradients_of(forward, sides)
    monkeypatch.setattr(attention, "kernel_for", lambda kind, dtype: counted)
    for layout in (batches.flatten_shared, batches.flatten):
        calls.clear()
        found = gradients_of(replace(forward, layout=layout), sides)
        assert len(calls) == model.config.num_hidden_layers
        assert (calls[0].gathered is None) == (layout is batches.flatten)
        for one, other in zip(found, expected, strict=True):
            assert near(one, other)


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1e-2))


def gradients_of(forward: Forward, samples: list[Sample]) -> list[torch.Tensor]:
    """The samples' log-probabilities, and the gradients of their sum."""
    forward.model.zero_grad()
    logps = forward.logps(samples)
    logps.sum().backward()
    return [logps.detach(), *(weight.grad.clone() for weight in forward.model.parameters() if weight.grad is not None)]


def test_without_such_a_gpu_each_node_is_attended_by_itself() -> None:
    assert attention.kernel_for("mps", torch.bfloat16) is None
    assert attention.kernel_for("cuda", torch.float32) is None


def test_torchs_kernel_takes_what_it_is_given() -> None:
    """Up to the kernel itself, which is CUDA's: its stand-in for shapes checks the arguments."""
    within = attention.spans(((-1, 4), (0, 2), (0, 3), (-1, 5)), torch.device("meta"))
    query, key = torch.empty(14, 4, 8, device="meta"), torch.empty(22, 2, 8, device="meta")
    assert attention._torch_varlen(query, key, key, within, 0.3).shape == (14, 4, 8)


def test_gradients_that_meet_at_a_shared_token_are_added_in_one_order() -> None:
    threads, settings = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    places, gradients = torch.randint(0, 40, (600,)), torch.randn(600, 192)
    torch.set_num_threads(2)
    try:
        with seeds.repeatable("cpu"):
            sums = [torch.zeros(1200, 192).index_put_((places,), gradients, accumulate=True) for _time in range(20)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(sums[0], other) for other in sums)
    assert torch.get_deterministic_debug_mode() == settings
