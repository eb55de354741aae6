"""Time and disk against what others measured, and their parts."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hardware import QWEN_7B, write_model
from plans import CPU, demo_facts, finetune_plan

from toolbox import costs, device, memory, models
from toolbox.memory import Load
from toolbox.recipe import Recipe, Training

LLAMA = {**QWEN_7B, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
LLAMA_2_7B = {
    **LLAMA, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32000,
}  # fmt: skip
LLAMA_32_3B = {
    **LLAMA, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
    "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
}  # fmt: skip
ALPACA_TOKENS = 110
"""Of a mean row, about: such short rows take as long as it takes to start the operations, whatever their length."""
MEASURED = [  # shape, GPU, method, rows at once, tokens a row, checkpointing, seconds a micro-batch
    (LLAMA_32_3B, "NVIDIA A100-SXM4-80GB", "full", 2, 4096, False, 8192 / 7075),
    (LLAMA_32_3B, "NVIDIA A100-SXM4-80GB", "full", 2, 4096, True, 8192 / 7210),
    (LLAMA_32_3B, "NVIDIA A100-SXM4-80GB", "lora", 2, 4096, True, 8192 / 8210),
    (LLAMA_32_3B, "NVIDIA A100-SXM4-80GB", "qlora", 2, 4096, True, 8192 / 8035),
    (LLAMA_2_7B, "NVIDIA A100-SXM4-40GB", "lora", 1, ALPACA_TOKENS, False, 2.36 * 60 / 1000),
    (LLAMA_2_7B, "NVIDIA A100-SXM4-40GB", "qlora", 1, ALPACA_TOKENS, False, 3.68 * 60 / 1000),
    (LLAMA_2_7B, "NVIDIA A100-SXM4-40GB", "lora", 2, ALPACA_TOKENS, False, 2.52 * 60 / 1000),
]
"""torchtune's README (the rows with checkpointing are compiled, as ours are not) and litgpt's resource tables."""


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: "-".join(map(str, row[2:6])))
def test_the_time_of_a_step_is_within_its_range_of_what_others_measured(row: Any, tmp_path: Path) -> None:
    shape, gpu, method, batch, tokens, checkpointing, seconds = row
    model = models.read(write_model(tmp_path / "model", shape), id="model", source="local")
    recipe = Recipe(
        name="test", summary="", method=method, quantization="nf4" if method == "qlora" else "none", dtype="bfloat16",
        training=Training(
            per_device_train_batch_size=batch, max_length=tokens, learning_rate=1e-4,
            gradient_checkpointing=checkpointing,
        ),
        LoraConfig={} if method == "full" else {"r": 8, "target_modules": "all-linear"},
    )  # fmt: skip
    load = Load(rows=1000, longest_tokens=tokens, mean_tokens=tokens)
    found = memory.estimate(model, recipe, device.assume(gpu), load)
    predicted = batch * tokens / found.tokens_per_s
    low, high = costs.UNCERTAIN["cuda"]
    assert low < seconds / predicted < high
    assert predicted == pytest.approx(seconds, rel=0.45)


def test_the_parts_of_time_and_disk_go_the_right_way(home: Path) -> None:
    plan = finetune_plan(home, gradient_checkpointing=False)
    load = Load(rows=1000, longest_tokens=200, mean_tokens=100, data_bytes=10**6, eval_rows=100)
    made = memory.estimate(plan.model, plan, CPU, load)
    assert sum(made.disk_parts_bytes.values()) == made.disk_bytes
    assert made.disk_parts_bytes["download"] == 0
    assert 0 < made.rest_s < made.time_s
    assert made.time_low_s < made.time_s < made.time_high_s
    assert made.tokens == 6 * 2 * 4 * 100
    again = finetune_plan(home, gradient_checkpointing=True)
    assert memory.estimate(plan.model, again, CPU, load).time_s > made.time_s
    other = memory.estimate(msgspec.structs.replace(demo_facts(), path=Path("/nowhere")), plan, CPU, load)
    assert other.disk_parts_bytes["download"] == plan.model.weights_bytes
