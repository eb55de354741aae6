"""litgpt's own code on tensors without numbers, every storage counted: `python -m loops.real ROW …`.

PYTHONPATH is bench:FOLDER, and FOLDER has litgpt (`pip install --no-deps --target FOLDER litgpt==0.4.13
lightning==2.5.0 lightning-utilities torchmetrics`). A ROW is the number of a line of ../shared/facts/memory.csv, of one
GPU. Shown: measured, counted here, and what the tape says. It is how the tape's operations were checked.
"""

import json
import sys
import weakref
from typing import Any

import memory as bench
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from loops import litgpt as tape
from loops import tables

BLOCK = 512
"""What torch's allocator rounds to (c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize)."""


class Live(TorchDispatchMode):
    """Bytes of storages that live, and the most that ever did."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: Any) -> None:
        key, size = storage._cdata, -(-storage.nbytes() // BLOCK) * BLOCK
        if key in self._known:
            return

        def gone(_: Any) -> None:
            if self._known.pop(key, None):
                self.now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


class _Product(torch.autograd.Function):
    """bitsandbytes 0.42's MatMul4Bit: what it keeps and makes."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, shape: Any) -> Any:
        ctx.shape, ctx.tensors = shape, (x, weight) if ctx.needs_input_grad[0] else ()
        return nn.functional.linear(x, torch.empty(shape, dtype=torch.half, device="meta").to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        weight = torch.empty(ctx.shape, dtype=torch.half, device="meta").to(gradient.dtype)
        return (gradient @ weight if ctx.needs_input_grad[0] else None), None, None, None


class _Quantised(nn.Module):
    def __init__(self, linear: nn.Linear, double: bool) -> None:
        super().__init__()
        self.shape, self.bias, size = tuple(linear.weight.shape), linear.bias, linear.weight.numel()
        self.out_features, self.in_features = self.shape
        self.weight = nn.Parameter(torch.empty(size // 2, dtype=torch.uint8, device="meta"), requires_grad=False)
        self.scales = torch.empty(size // 64, dtype=torch.uint8 if double else torch.float32, device="meta")

    def forward(self, x: torch.Tensor) -> Any:
        return _Product.apply(x, self.weight, self.bias, self.shape)


def _quantise(module: nn.Module, double: bool) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, _Quantised(child, double))
        else:
            _quantise(child, double)


def _flash(query: Any, key: Any, value: Any, attn_mask: Any = None, is_causal: bool = False, **options: Any) -> Any:
    """The kernels that CUDA takes."""
    if attn_mask is None:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, 0.0, is_causal, False, scale=options["scale"])[0]
    mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, mask, True, 0.0, False, scale=options["scale"])[0]


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """CUDA's, whose mask is bytes."""
    return torch.native_dropout(input, p, True)[0] if training and p else input


def _model(row: tables.Row, name: str) -> Any:
    import litgpt
    from litgpt import adapter, adapter_v2, lora

    if "lora" in row["method"]:
        wanted = {f"lora_{target}": target in tables.targets_of(row["lora_targets"]) for target in tables.ALL}
        config = lora.Config.from_name(name, lora_r=int(row["lora_r"]), lora_alpha=16, lora_dropout=0.05, **wanted)
        model = lora.GPT(config)
        lora.mark_only_lora_as_trainable(model)
    elif row["method"] == "adapter":
        adapter.mark_only_adapter_as_trainable(model := adapter.GPT(adapter.Config.from_name(name)))
    elif row["method"] == "adapter_v2":
        adapter_v2.mark_only_adapter_v2_as_trainable(model := adapter_v2.GPT(adapter_v2.Config.from_name(name)))
    else:
        model = litgpt.GPT(litgpt.Config.from_name(name))
    return model


def peak_bytes(row: tables.Row, name: str, steps: int) -> int:
    """Of so many micro-batches, the second with an optimizer's step after it, as finetune/*.py makes them."""
    from litgpt.utils import chunked_cross_entropy

    batch, tokens, full = int(row["batch"]), int(row["seq_len"]), row["method"] == "full"
    torch.set_default_dtype(torch.bfloat16)
    with Live() as live:
        with torch.device("meta"):
            model = _model(row, name)
            if row["quant"].startswith("bnb"):
                _quantise(model, row["quant"].endswith("dq"))
            model.max_seq_length = tokens
        moments: list[torch.Tensor] = []
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        for step in range(steps):
            ids = torch.zeros((batch, tokens), dtype=torch.long, device="meta")
            if full:
                logits = model(ids).float()
                loss = chunked_cross_entropy(logits[..., :-1, :], ids[..., 1:])
            else:
                logits = [chunk.float() for chunk in model(ids, lm_head_chunk_size=tape.CHUNK)]
                logits[-1] = logits[-1][..., :-1, :]
                loss = chunked_cross_entropy(logits, ids[..., 1:])
            (loss / 2).backward()
            if step == 0 and not row["quant"].startswith("bnb"):
                moments += [torch.zeros_like(weight) for weight in weights for _ in range(2)]
        return live.peak


def main() -> None:
    nn.functional.scaled_dot_product_attention = _flash  # type: ignore[assignment]
    nn.functional.dropout = _dropout
    shapes = json.loads((bench.FACTS / "model_configs.json").read_text(encoding="utf-8"))
    rows = bench.read(bench.FACTS / "memory.csv")
    for number in map(int, sys.argv[1:]):
        row = rows[number - 2]
        shape = tables.shape_of(row["model"], shapes) or {}
        job = tables.litgpt_job(row, shape)
        real, said = peak_bytes(row, shape["name"], 3 if job.repeats else 1), sum(tape.peak(job).values())
        figures = f"{row['peak']}, {real / bench.GB:.2f}, {said / bench.GB:.2f}"
        print(f"{row['model']} {row['method']} {row['quant']}: {figures}")


if __name__ == "__main__":
    main()
