"""What a step computes in operations of our own: the same as what torch and peft compute, forward and backward."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model

from toolbox import embedded, loading
from toolbox.training import adapted
from toolbox.training.logps import PIECE, token_logps
from toolbox.training.products import BLOCK, CausalAttention

NEAR = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", NEAR)
def test_log_probabilities_are_those_of_cross_entropy(dtype: torch.dtype) -> None:
    tokens = 3 * PIECE["cpu"] // 300_000 + 1  # four pieces
    logits = torch.randn(tokens, 300_000).to(dtype).requires_grad_()
    targets, weights = torch.randint(300_000, (tokens,)), torch.randn(tokens)
    expected = -F.cross_entropy(logits.float(), targets, reduction="none")
    (gradient,) = torch.autograd.grad(expected @ weights, logits)
    found = token_logps(logits.clone(), targets)
    assert torch.allclose(found, expected, atol=1e-5)
    (own,) = torch.autograd.grad(token_logps(logits.clone(), targets) @ weights, logits)
    assert torch.allclose(own, gradient, atol=1e-6, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5)


def test_logits_that_another_operation_has_kept_are_not_overwritten() -> None:
    logits = torch.randn(4, 8, requires_grad=True).tanh()
    with pytest.raises(RuntimeError, match="inplace operation"):
        token_logps(logits, torch.zeros(4, dtype=torch.long)).sum().backward()


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
def test_attention_is_that_of_masked_scores(dtype: torch.dtype, heads: tuple[int, int]) -> None:
    """Spans with as many keys as queries, and a branch whose keys begin before it; lengths around a block's."""
    queries, keys = [0, BLOCK, 2 * BLOCK + 1, 2 * BLOCK + 31], [0, BLOCK, 2 * BLOCK + 1, 2 * BLOCK + 91]
    shapes = ((queries[-1], heads[0], 16), (keys[-1], heads[1], 16), (keys[-1], heads[1], 16))
    states = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    above = torch.randn(shapes[0]).to(dtype)
    expected = torch.cat([masked(states, *span) for span in zip(queries, queries[1:], keys, keys[1:], strict=False)])
    gradients = torch.autograd.grad(expected, states, above)
    found = CausalAttention.apply(*states, (queries, keys), 0.3)
    for one, other in zip([found, *torch.autograd.grad(found, states, above)], [expected, *gradients], strict=True):
        assert (one - other).abs().max() <= NEAR[dtype] * other.abs().max()


def masked(states: list[torch.Tensor], begin: int, end: int, first: int, last: int) -> torch.Tensor:
    places = (slice(begin, end), slice(first, last), slice(first, last))
    query, key, value = (state[place].transpose(0, 1) for state, place in zip(states, places, strict=True))
    key, value = (s.repeat_interleave(len(query) // len(key), 0) for s in (key, value))
    seen = torch.ones(end - begin, last - first, dtype=torch.bool).tril(last - first - end + begin)
    scores = (query.float() @ key.float().mT * 0.3).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ value.float()).transpose(0, 1).to(query.dtype)


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapted_linear_computes_what_peft_computes(dtype: torch.dtype, checkpointing: bool) -> None:
    model = lora(dtype)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    expected = output_and_gradients(model)
    assert adapted.adapt(model) == 7 * model.config.num_hidden_layers
    for one, other in zip(output_and_gradients(model), expected, strict=True):
        assert (one - other).norm() <= 2 * NEAR[dtype] * other.norm()
    with model.disable_adapter(), torch.no_grad():
        plain = loading.base_model(embedded.MODEL, str(dtype).removeprefix("torch."), "cpu")(input_ids=IDS).logits
        assert torch.equal(model(input_ids=IDS).logits, plain)


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}])
def test_what_is_more_than_the_formula_is_left_to_peft(settings: dict[str, Any]) -> None:
    assert adapted.adapt(lora(torch.float32, **settings)) == 0


IDS = torch.arange(40)[None]


def lora(dtype: torch.dtype, **settings: Any) -> Any:
    """The embedded model with an adapter that changes it."""
    torch.manual_seed(0)
    base = loading.base_model(embedded.MODEL, str(dtype).removeprefix("torch."), "cpu")
    made = LoraConfig(
        task_type="CAUSAL_LM", **{"r": 4, "target_modules": "all-linear", "init_lora_weights": False, **settings}
    )
    return get_peft_model(base, made).train()


def output_and_gradients(model: Any) -> list[torch.Tensor]:
    model.zero_grad()
    dtype = model.base_model.model.lm_head.weight.dtype
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = model(input_ids=IDS).logits.float()
    logits.square().mean().backward()
    return [logits.detach(), *(w.grad.clone() for w in model.parameters() if w.requires_grad)]
