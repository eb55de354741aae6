"""transformers' Trainer with peft, as most others train: the memory model itself, with another loss at the end."""

from typing import Any

from loops import Parts
from loops.tables import Row, config, targets_of
from toolbox import device, models, recipe
from toolbox.memory import Load, parts_bytes
from toolbox.memory.implementation import Implementation

TRAINER = Implementation(
    name="transformers' Trainer", trained_weights=0, adapter_weights=2, loss="cross_entropy", loss_copies=10,
    labels_only=False,
)  # fmt: skip
"""Weights in the type of their file, an adapter in its model's. Logits are made at all places, in 16 bits; their
log-softmax in float32 is kept, and two gradients of it are there at once (loss/loss_utils.py, ForCausalLMLoss)."""
NAMES = {
    "query": ("q_proj",), "key": ("k_proj",), "value": ("v_proj",), "projection": ("o_proj",),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}  # fmt: skip


def peak(row: Row, shape: dict[str, Any]) -> Parts:
    """What it allocates on a GPU at a step's highest moment, by parts; without the CUDA context."""
    tokens, full = int(row["seq_len"]), row["method"] == "full"
    quantised = row["quant"] not in ("", "none")
    training = recipe.Training(
        per_device_train_batch_size=int(row["batch"]),
        gradient_accumulation_steps=int(row["grad_accum"] or 1),
        gradient_checkpointing=row["grad_checkpoint"] == "True",
        max_length=tokens,
        learning_rate=1e-4,
    )
    named = [name for target in targets_of(row["lora_targets"]) for name in NAMES.get(target, ())]
    made = recipe.Recipe(
        name="",
        summary="",
        method="full" if full else "qlora" if quantised else "lora",
        quantization="nf4" if quantised else "none",
        dtype="bfloat16",
        training=training,
        LoraConfig={} if full else {"r": int(row["lora_r"] or 8), "target_modules": named, "lora_dropout": 0.05},
        BitsAndBytesConfig={"bnb_4bit_use_double_quant": row["quant"].endswith("dq")} if quantised else {},
    )
    facts = models.facts_of_config(config(shape, tied=shape.get("tied") is True), id=row["model"], source=row["repo"])
    load = Load(rows=1, longest_tokens=tokens, mean_tokens=tokens)
    parts = parts_bytes(facts, made, device.assume("A100:80GiB"), load, TRAINER)
    return {name: float(size) for name, size in parts.items() if name != "overhead"}
