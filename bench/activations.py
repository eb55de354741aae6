"""What a decoder layer keeps for its backward pass, in bytes a token: `python bench/activations.py`.

Counts the tensors that autograd saves in small Llamas of several widths, and solves for what each width brings.
The tape of toolbox/memory/ says the same (`counted`); tests/test_memory.py holds both together.
"""

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from typing import Any

import msgspec
import numpy
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from toolbox import networks
from toolbox.memory import implementation
from toolbox.memory.layers import Work, layer_tape

WIDTHS = [  # hidden, inner, query heads, key heads
    (64, 128, 4, 4), (128, 128, 4, 4), (64, 256, 4, 4), (64, 128, 8, 4), (64, 128, 4, 2), (128, 256, 8, 2),
]  # fmt: skip
HEAD, RANK = 16, 8
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def kept_bytes(
    layers: int, tokens: int, widths: tuple[int, int, int, int], adapter: dict[str, Any] | None, dtype: torch.dtype
) -> int:
    """Bytes of all tensors but weights that a forward pass saves; `adapter` is peft's `LoraConfig`, None: full."""
    hidden, inner, heads, keys = widths
    config = LlamaConfig(
        vocab_size=64, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=keys, head_dim=HEAD, tie_word_embeddings=False,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    if adapter is not None:
        model = get_peft_model(model.to(dtype), LoraConfig(task_type="CAUSAL_LM", **adapter))
    model.train()
    weights = {weight.untyped_storage().data_ptr() for weight in [*model.parameters(), *model.buffers()]}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        kept = model(  # held until the sum is taken: it holds the saved tensors
            input_ids=torch.zeros(1, tokens, dtype=torch.long),
            position_ids=torch.arange(tokens)[None],
            use_cache=False,
            logits_to_keep=1,
        )
    total = sum(saved.values())
    del kept
    return total


def layer_bytes(tokens: int, widths: tuple[int, int, int, int], **options: Any) -> float:
    """What one layer more keeps, a token."""
    return (kept_bytes(3, tokens, widths, **options) - kept_bytes(1, tokens, widths, **options)) / 2 / tokens


def counted(
    tokens: int, widths: tuple[int, int, int, int], adapter: dict[str, Any] | None, dtype: torch.dtype
) -> float:
    """The same by the memory model's tape."""
    hidden, inner, heads, keys = widths
    width = 2 if dtype == torch.bfloat16 else 4
    work = Work(
        tokens=tokens, longest=tokens, width=width, stream=4 if adapter is None else width, full=adapter is None,
        targets=frozenset(LINEARS if adapter else ()), rank=RANK, dropout=bool((adapter or {}).get("lora_dropout")),
    )  # fmt: skip
    network = networks.llama_like(hidden, inner, 1, heads, keys, HEAD, 64, False)
    how = msgspec.structs.replace(implementation.CUDA, dropout_mask=0)
    return layer_tape(network.layers[0], work, how).forward()[0] / tokens


def fit(**options: Any) -> numpy.ndarray:
    """Bytes a token by hidden, inner, queries and keys; by the layer's weights over the tokens; a rest; the residue."""
    rows, found = [], []
    for widths in WIDTHS:
        hidden, inner, heads, keys = widths
        linear = 2 * hidden * HEAD * (heads + keys) + 3 * hidden * inner
        lora = RANK * (7 * hidden + 2 * HEAD * (heads + keys) + 3 * inner)
        for tokens in (64, 256):
            rows.append([hidden, inner, heads * HEAD, keys * HEAD, linear / tokens, lora / tokens, 1])
            found.append(layer_bytes(tokens, widths, **options))
    matrix = numpy.array(rows, float)
    solution = numpy.linalg.lstsq(matrix, numpy.array(found), rcond=None)[0]
    residue = numpy.abs(matrix @ solution - found).max()
    return numpy.append(solution, residue)


def main() -> None:
    print(f"{'':36}{'hidden':>8}{'inner':>8}{'queries':>8}{'keys':>8}{'linear':>8}{'lora':>8}{'rest':>8}{'residue':>9}")
    for dtype in (torch.bfloat16, torch.float32):
        for name, adapter in (
            ("full", None),
            ("adapter", {"r": RANK, "target_modules": "all-linear"}),
            ("adapter, dropout", {"r": RANK, "target_modules": "all-linear", "lora_dropout": 0.1}),
        ):
            *numbers, residue = fit(adapter=adapter, dtype=dtype)
            print(f"{name + ', ' + str(dtype):36}" + "".join(f"{n:8.2f}" for n in numbers) + f"{residue:9.1e}")


if __name__ == "__main__":
    main()
