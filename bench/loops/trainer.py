"""transformers' Trainer with peft, as most others train: the memory model itself, with another loss at the end."""

from typing import Any

import msgspec

from loops import Parts
from loops.tables import Row, config, targets_of
from toolbox import device, models, recipe
from toolbox.memory import Load, parts_bytes
from toolbox.memory.implementation import Implementation
from toolbox.memory.states import Strategy

TRAINER = Implementation(
    name="transformers' Trainer", trained_weights=0, adapter_weights=2, autocast=False, loss="cross_entropy",
    loss_copies=10, labels_only=False,
)  # fmt: skip
"""Weights in the type of their file, an adapter in its model's. Logits are made at all places, in 16 bits; their
log-softmax in float32 is kept, and two gradients of it are there at once (loss/loss_utils.py, ForCausalLMLoss)."""
MASTERS = msgspec.structs.replace(TRAINER, name="with masters", trained_weights=4, adapter_weights=4, autocast=True)
"""Trained weights in float32 under autocast: what tables call amp, or mixed."""
NAMES = {
    "query": ("q_proj",), "key": ("k_proj",), "value": ("v_proj",), "projection": ("o_proj",),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}  # fmt: skip
OPTIMIZERS = {"paged": "paged_adamw_8bit", "8bit": "adamw_8bit", "adafactor": "adafactor", "sgd": "sgd"}
STRATEGIES: tuple[Strategy, ...] = ("zero2", "zero3", "fsdp")


def peak(row: Row, shape: dict[str, Any]) -> Parts:
    """What it allocates on a GPU at a step's highest moment, by parts; without the CUDA context."""
    made, gpus = _recipe(row), int(row["n_gpu"] or 1)
    facts = models.facts_of_config(config(shape, tied=shape.get("tied") is True), id=row["model"], source=row["repo"])
    tokens = made.training.max_length
    load = Load(rows=1, longest_tokens=tokens, mean_tokens=tokens)
    mixed = any(word in row.get("precision", "") for word in ("amp", "mixed"))
    said = f"{row.get('variant', '')} {row['notes']}".lower()
    strategy: Strategy = "ddp" if gpus > 1 else ""
    for name in STRATEGIES:
        strategy = name if name in said.replace("-", "") else strategy
    how = MASTERS if mixed else TRAINER
    parts = parts_bytes(facts, made, device.assume("A100:80GiB"), load, how, strategy, gpus)
    return {name: float(size) for name, size in parts.items() if name != "overhead"}


def _recipe(row: Row) -> recipe.Recipe:
    """The row's settings under our names."""
    full, quantised = row["method"] == "full", row["quant"] not in ("", "none")
    optimizer = row.get("optimizer", "").lower()
    named = [name for target in targets_of(row["lora_targets"]) for name in NAMES.get(target, ())]
    return recipe.Recipe(
        name="",
        summary="",
        method="full" if full else "qlora" if quantised else "lora",
        quantization="nf4" if quantised else "none",
        dtype="bfloat16",
        training=recipe.Training(
            per_device_train_batch_size=int(row["batch"]),
            gradient_accumulation_steps=int(row["grad_accum"] or 1),
            gradient_checkpointing=row["grad_checkpoint"].lower() == "true",
            max_length=int(row["seq_len"]),
            learning_rate=1e-4,
            optim=next((name for word, name in OPTIMIZERS.items() if word in optimizer), "adamw_torch"),
        ),
        LoraConfig={} if full else {"r": int(row["lora_r"] or 8), "target_modules": named, "lora_dropout": 0.05},
        BitsAndBytesConfig={"bnb_4bit_use_double_quant": row["quant"].endswith("dq")} if quantised else {},
    )
