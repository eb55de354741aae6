"""The plainest loop: padded batches, transformers and peft as they come. What it computes is what all shall compute.

    python bench/train_reference.py MODEL ROWS.jsonl DTYPE STEPS OUT

Writes OUT/adapter.safetensors, the adapter before the first step, and prints the loss of each step as JSON lines.
`bench/train.py` calls it: an oracle, not a competitor, so nothing here is timed.
"""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH, RATE, SEED = 4, 1e-4, 42


def encoded(messages: list[dict[str, str]], tokenizer: Any) -> tuple[list[int], list[int]]:
    """(tokens, labels) of a prompt and its answer."""
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    before, ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, whole))
    return ids, [-100] * len(before) + ids[len(before) :]


def main(model_path: str, rows_path: str, dtype: str, steps: int, out: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    rows = [json.loads(line)["messages"] for line in Path(rows_path).read_text("utf-8").splitlines()]
    torch.manual_seed(SEED)
    base = AutoModelForCausalLM.from_pretrained(model_path, dtype=getattr(torch, dtype))
    adapter = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
    model: Any = get_peft_model(base, adapter)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    save_file({name: weight.detach().clone() for name, weight in trained.items()}, out / "adapter.safetensors")
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, weight_decay=0.0)
    model.train()
    for step in range(steps):
        pairs = [encoded(messages, tokenizer) for messages in rows[step * BATCH : (step + 1) * BATCH]]
        longest = max(len(ids) for ids, _ in pairs)
        arithmetic = torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else nullcontext()
        with arithmetic:
            loss = model(
                input_ids=torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in pairs]),
                attention_mask=torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in pairs]),
                labels=torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in pairs]),
            ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
        print(json.dumps({"loss": float(loss), "longest": longest}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), Path(sys.argv[5]))
