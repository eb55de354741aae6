"""Both predictions held against real steps on a processor: `PYTHONPATH=. python bench/peaks.py [--only TEXT]`.

Small models of random weights, and the embedded one, each in a process of its own, take a step of our loop. Measured:
what torch's allocator had handed out at most (torch.profiler's memory events, which see within kernels too); what the
dispatch mode of the dry run sees on real tensors; and by how much the process's resident size grew, in which memory
that libc keeps is counted too. Held against it: the memory model, without its overhead, and the dry run.
"""

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import multiprocessing
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from toolbox import device, embedded, memory, models, planning
from toolbox.config import Home
from toolbox.training import exact
from toolbox.training.counting import PARTS
from toolbox.training.stages import stage_for
from toolbox.training.tuner import tuner_for
from toolbox.wishes import Wishes

WIDTHS: dict[str, Any] = {
    "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6,
    "num_key_value_heads": 2, "vocab_size": 32000, "tie_word_embeddings": False, "max_position_embeddings": 2048,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", WIDTHS),
    "qwen2, large vocabulary": ("qwen2", {**WIDTHS, "vocab_size": 151936, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {**WIDTHS, "head_dim": 64}),
    "gemma2": ("gemma2", {**WIDTHS, "head_dim": 64, "tie_word_embeddings": True}),
    "gpt2": ("gpt2", {"n_embd": 384, "n_layer": 6, "n_head": 6, "vocab_size": 50257, "n_positions": 1024}),
    "gpt_neox": ("gpt_neox", {**WIDTHS, "intermediate_size": 1536}),
    "phi": ("phi", {**WIDTHS, "intermediate_size": 1536, "num_key_value_heads": 6}),
    "olmo2": ("olmo2", WIDTHS),
    "qwen3_moe": ("qwen3_moe", {**WIDTHS, "head_dim": 64, "moe_intermediate_size": 256, "num_experts": 8,
                                "num_experts_per_tok": 2}),
}  # fmt: skip
ANEW = "gradient_checkpointing=true"
CASES: list[tuple[str, str, str, str, str]] = [  # model, method, stage, dtype, setting
    *(("demo", method, "sft", "float32", setting) for method in ("lora", "full") for setting in ("", ANEW)),
    ("demo", "lora", "dpo", "float32", ""),
    *((name, "lora", "sft", "float32", "") for name in MODELS),
    *((name, "full", "sft", "float32", "") for name in MODELS),
    *((name, method, "sft", "bfloat16", "") for name in ("llama", "qwen2, large vocabulary", "gpt2")
      for method in ("lora", "full")),
    *((name, "lora", "sft", "bfloat16", ANEW) for name in ("llama", "qwen2, large vocabulary")),
    *((name, "full", "sft", "bfloat16", ANEW) for name in ("llama", "qwen2, large vocabulary")),
    *((name, "qlora", "sft", "bfloat16", setting) for name in ("llama", "qwen2, large vocabulary")
      for setting in ("", ANEW)),
    *((name, method, "dpo", "float32", "") for name in ("llama", "qwen2, large vocabulary")
      for method in ("lora", "full")),
    ("llama", "lora", "kto", "float32", ""),
    ("llama", "full", "orpo", "bfloat16", ""),
]  # fmt: skip
TOKENS, ROWS = 512, 2
MIB = 1 << 20


class Measured(msgspec.Struct):
    """Bytes of tensors but for `resident`; `fast` and `exact` are predictions."""

    allocated: int
    seen: int
    resident: int
    fast: int
    exact: int
    fast_parts: dict[str, int]
    seen_parts: dict[str, int]


def measured(name: str, method: str, stage: str, dtype: str, setting: str) -> Measured:
    """A step, in this process."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = embedded.MODEL if name == "demo" else _written(name, Path(scratch) / "model")
        on = msgspec.structs.replace(device.assume("CPU:64GiB"), bf16=dtype == "bfloat16")
        wishes = Wishes(
            method=method,
            stage=stage,  # type: ignore[arg-type]
            max_length=TOKENS,
            per_device_train_batch_size=ROWS,
            settings=[setting or "gradient_checkpointing=false"],
        )
        facts = models.read(folder, id=name, source="local")
        plan = planning.plan_finetune(facts, [], on, wishes, Home(Path(scratch)), must_fit=False)
        plan.dtype = dtype  # type: ignore[assignment]  # a recipe for tiny models has its own
        fast = memory.parts_bytes(facts, plan, on, planning.load_of(plan))
        dry = exact.peak(plan)
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident size begins anew
        tuner = tuner_for(plan)
        model: Any = tuner.load("cpu")
        stage_for(plan).extend(model)
        tensors = [*model.parameters(), *model.buffers(), *_scales(model)]
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            seen = exact.count(plan, tuner, model, tensors)
        weights = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
        return Measured(
            allocated=sum(weights.values()) + _highest(profile),
            seen=seen.peak_bytes,
            resident=_resident("VmHWM") - before,
            fast=sum(fast.get(part, 0) for part in PARTS),
            exact=dry.peak_bytes,
            fast_parts=fast,
            seen_parts=seen.parts_bytes,
        )


def _written(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    kind, values = MODELS[name]
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values), dtype=torch.float32)
    model.save_pretrained(folder)
    model.config.to_json_file(folder / "config.json", use_diff=False)
    return folder


def _scales(model: Any) -> list[Any]:
    """What weights of 4 bits need beside them."""
    states = [weight.quant_state for weight in model.parameters() if hasattr(weight, "quant_state")]
    nested = [state.state2 for state in states if state.state2 is not None]
    return [
        tensor
        for state in [*states, *nested]
        for tensor in (state.absmax, state.code, state.offset)
        if tensor is not None and hasattr(tensor, "untyped_storage")
    ]


def _highest(profile: Any) -> int:
    """The most bytes that the allocator had handed out while profiled, beyond those of the beginning."""
    live = highest = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        highest = max(highest, live)
    return highest


def _resident(field: str) -> int:
    """VmRSS or VmHWM, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--only", default="", help="cases whose name has this")
    words = asked.parse_args()
    print(f"{'':52}{'allocated':>10}{'seen':>8}{'resident':>9}{'fast':>9}{'exact':>8}  fast - seen by parts, MiB")
    off: dict[str, list[float]] = {"fast": [], "exact": []}
    for case in CASES:
        title = " ".join(filter(None, case))
        if words.only in title:
            with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as alone:
                found = alone.submit(measured, *case).result()
            for kind, error in shown(title, found).items():
                off[kind].append(abs(error))
    for kind, errors in off.items():
        ordered = sorted(errors)
        print(
            f"{kind}: {len(ordered)} cases, median {statistics.median(ordered):.1%}, "
            f"95th percentile {ordered[int(0.95 * (len(ordered) - 1))]:.1%}, worst {ordered[-1]:.1%}"
        )


def shown(title: str, found: Measured) -> dict[str, float]:
    """The error of each prediction, as a share of what was allocated; a line of the table is printed."""
    parts = {part: (found.fast_parts.get(part, 0) - size) / MIB for part, size in found.seen_parts.items()}
    errors = {kind: getattr(found, kind) / found.allocated - 1 for kind in ("fast", "exact")}
    sizes = (found.allocated / MIB, found.seen / MIB, found.resident / MIB)
    told = " ".join(f"{part} {size:+.1f}" for part, size in parts.items() if round(size, 1))
    figures = "{:10.1f}{:8.1f}{:9.1f}{:+9.1%}{:+8.1%}".format(*sizes, *errors.values())
    print(f"{title:52}{figures}  {told}", flush=True)
    return errors


if __name__ == "__main__":
    main()
