"""The memory model against what autograd keeps, and against dry runs of the very step."""

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hardware import QWEN_7B, ROOT, write_model
from plans import finetune_plan

from toolbox import device, memory, models, planning, recipe
from toolbox.config import Home
from toolbox.memory import Load
from toolbox.memory.states import STRATEGIES, States, Strategy, sharded
from toolbox.networks import Layer, Network

SIZES = {
    "architectures": ["X"], "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 4096,
}  # fmt: skip


def made(method: str, quantization: str = "none", double: bool = False, **training: Any) -> recipe.Recipe:
    return recipe.Recipe(
        name="test", summary="", method=method, quantization=quantization, dtype="bfloat16",  # type: ignore[arg-type]
        training=recipe.Training(**{"per_device_train_batch_size": 1, "learning_rate": 1e-4, **training}),
        LoraConfig={} if method == "full" else {"r": 8, "target_modules": "all-linear"},
        BitsAndBytesConfig={"bnb_4bit_use_double_quant": double} if quantization == "nf4" else {},
    )  # fmt: skip


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> models.ModelFacts:
    folder = write_model(tmp_path_factory.mktemp("models") / "qwen", QWEN_7B)
    return models.resolve(str(folder), Home(folder.parent))


A100 = device.assume("A100:80GiB")


SHAPES: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2", **SIZES},
    "gated, tied, norms of heads": {"model_type": "qwen3", "head_dim": 64, "tie_word_embeddings": True, **SIZES},
    "plain MLP beside attention, LayerNorm": {"model_type": "phi", **SIZES},
}
CASES = [
    (name, kind, method, anew)
    for name in SHAPES
    for kind in ("cuda", "cpu")
    for method in ("lora", "full")
    for anew in (False, True)
    if not (name.startswith("plain") and kind == "cuda" and anew)
]


@pytest.mark.parametrize(
    ("name", "kind", "method", "anew"),
    [case if number % 7 == 0 else pytest.param(*case, marks=pytest.mark.slow) for number, case in enumerate(CASES)],
)
def test_the_model_says_what_a_dry_run_counts(
    name: str, kind: str, method: str, anew: bool, home: Path, tmp_path: Path
) -> None:
    from toolbox.training import exact

    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps(SHAPES[name]))
    facts = models.facts_of_config(SHAPES[name], id="m", source="local", path=tmp_path / "m")
    on = A100 if kind == "cuda" else device.Device(
        kind="cpu", name="CPU", memory_total_bytes=1 << 40, memory_free_bytes=1 << 40, bf16=True, cores=2
    )  # fmt: skip
    plan = finetune_plan(
        home, model=facts, device=on, method=method, dtype="bfloat16", gradient_checkpointing=anew, max_length=512,
        per_device_train_batch_size=1, LoraConfig={} if method == "full" else {"r": 8, "target_modules": "all-linear"},
    )  # fmt: skip
    counted = exact.peak(plan)
    parts = memory.parts_bytes(facts, plan, on, planning.load_of(plan))
    assert sum(parts.values()) - parts["overhead"] == pytest.approx(counted.peak_bytes, rel=0.02)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_what_a_layer_keeps_is_what_autograd_saves(kind: str, dtype: str) -> None:
    sys.path.insert(0, str(ROOT / "bench"))
    import activations
    import torch

    adapter = {"r": activations.RANK, "target_modules": "all-linear"} if kind == "adapter" else None
    for widths in activations.WIDTHS:
        measured = activations.layer_bytes(64, widths, adapter=adapter, dtype=getattr(torch, dtype))
        assert activations.counted(64, widths, adapter=adapter, dtype=getattr(torch, dtype)) == measured


def test_parts_add_up_and_go_the_right_way(qwen: models.ModelFacts) -> None:
    load = Load(rows=100, longest_tokens=4096, mean_tokens=300)
    lora = memory.estimate(qwen, made("lora"), A100, load)
    assert lora.peak_bytes == sum(lora.parts_bytes.values())
    assert set(lora.parts_bytes) == {
        "weights", "adapter", "gradients", "optimizer", "activations", "logits", "overhead"
    }  # fmt: skip
    assert lora.parts_bytes["weights"] == 2 * qwen.parameters
    qlora = memory.estimate(qwen, made("qlora", "nf4", True), A100, load)
    full = memory.estimate(qwen, made("full"), A100, load)
    assert qlora.parts_bytes["weights"] < lora.parts_bytes["weights"] / 2
    assert qlora.peak_bytes < lora.peak_bytes < full.peak_bytes
    assert lora.fits
    assert not full.fits
    assert full.parts_bytes["optimizer"] == 8 * qwen.parameters
    assert memory.estimate(qwen, made("lora", max_length=512), A100, load).peak_bytes < lora.peak_bytes
    assert qlora.time_s > lora.time_s > 0


def test_an_unknown_gpu_has_no_time(qwen: models.ModelFacts) -> None:
    unknown = device.Device(kind="cuda", name="GPU X", memory_total_bytes=1, memory_free_bytes=1, bf16=True)
    load = Load(rows=100, longest_tokens=500, mean_tokens=300)
    assert memory.estimate(qwen, made("lora"), unknown, load).time_s == 0
    assert memory.estimate(qwen, made("lora"), A100, load).time_s > 0


def held(whole: States, strategy: Strategy, gpus: int) -> float:
    """Gigabytes of weights, gradients and optimizer on each GPU, as the ZeRO paper counts them."""
    there = sharded(whole, strategy, gpus, 0.0)
    return round((there.weights + there.adapter + there.gradients + there.optimizer) / 1e9, 1)


def test_shares_are_those_of_the_zero_paper() -> None:
    """Figure 1 of arXiv:1910.02054: 7.5 billion weights, 64 GPUs, mixed precision, Adam."""
    count = 7.5e9
    paper = States(weights=2 * count, adapter=0, gradients=2 * count, optimizer=12 * count)
    assert [held(paper, name, 64) for name in ("ddp", "zero2", "zero3", "fsdp")] == [120, 16.6, 1.9, 1.9]
    # Masters are weights here, not the optimizer's: whole under ZeRO-2 they are 4 + (4 + 8) / 64 bytes a weight, which
    # is the paper's figure for P_os, 2 + 2 + 12 / 64.
    ours = States(weights=4 * count, adapter=0, gradients=4 * count, optimizer=8 * count)
    assert [held(ours, name, 64) for name in ("ddp", "zero2", "zero3", "fsdp")] == [120, 31.4, 1.9, 1.9]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_parts_on_several_gpus(qwen: models.ModelFacts, method: str) -> None:
    load = Load(rows=100, longest_tokens=1024, mean_tokens=300)
    wanted = made(method, gradient_accumulation_steps=1)

    def parts(strategy: Strategy, gpus: int) -> dict[str, int]:
        return memory.parts_bytes(qwen, wanted, A100, load, strategy=strategy, gpus=gpus)

    alone = memory.parts_bytes(qwen, wanted, A100, load)
    for strategy in STRATEGIES:
        assert parts(strategy, 1) == alone
        peaks = [sum(parts(strategy, gpus).values()) for gpus in (2, 4, 8, 64)]
        assert peaks == sorted(peaks, reverse=True)
        assert (peaks[0] == peaks[-1]) is (strategy == "ddp")
        whole = strategy in ("ddp", "zero2")
        assert parts(strategy, 8)["weights"] == pytest.approx(alone["weights"] / (1 if whole else 8), abs=1)
        assert parts(strategy, 8)["adapter"] == pytest.approx(alone["adapter"] / (1 if whole else 8), abs=1)
        # A layer's gradients are given away while the next ones are made, and so are never all there.
        most = alone["gradients"] / (1 if strategy == "ddp" else 2)
        assert parts(strategy, 8)["gradients"] <= most
    assert parts("zero3-offload", 8)["optimizer"] == 0


@pytest.mark.parametrize("method", ["lora", "full", "galore", "freeze"])
def test_a_network_without_linears_or_layers_has_a_peak_too(method: str, qwen: models.ModelFacts) -> None:
    for layers in ((), (Layer(hidden=64, count=2),)):
        bare = msgspec.structs.replace(qwen, network=Network(hidden=64, vocab=100, layers=layers))
        load = Load(rows=1, longest_tokens=64, mean_tokens=64)
        assert sum(memory.parts_bytes(bare, made(method), A100, load).values()) > memory.OVERHEAD_BYTES["cuda"]
