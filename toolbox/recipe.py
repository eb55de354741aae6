"""Recipes: YAML files that say what to do on which hardware."""

from typing import Literal

import msgspec


class Training(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The numbers of the training loop, under the names of transformers' `TrainingArguments` (a test holds them to it)."""

    per_device_train_batch_size: int
    gradient_accumulation_steps: int = 1
    max_length: int = 2048
    """Tokens a row; longer rows are cut, and counted."""
    num_train_epochs: float = 3.0
    max_steps: int = -1
    """Optimizer steps; -1: as many as the epochs need."""
    learning_rate: float
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optim: Literal["adamw_torch", "paged_adamw_8bit"] = "adamw_torch"
    gradient_checkpointing: bool = False
    save_steps: int = 100
    eval_steps: int = 100
