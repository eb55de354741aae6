"""The steps of a finetune run by a plain padded loop of transformers and peft: `python bench/gpu_padded.py RUN_DIR`.

Same plan, rows in the same order, adapter, optimizer and arithmetic; rows are padded, and the model makes all logits
and its own loss. Prints tokens (no padding) a second, peak_bytes and losses as JSON, measured as `finetune` does.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def main(run: Path) -> None:
    import torch

    from toolbox import loading, plan
    from toolbox.runs import Run, Silent
    from toolbox.training import batches, optim, preparing, seeds
    from toolbox.training.meter import Meter
    from toolbox.training.stages import stage_for
    from toolbox.training.tuner import tuner_for

    made: Any = plan.load(run / "plan.yaml")
    device = loading.torch_device(made.device.kind, made.device.index)
    tokenizer = loading.tokenizer(made.model.path)
    data = preparing.prepare(made, stage_for(made), tokenizer, Run(run), Silent())
    meter = Meter(device)
    seeds.set_seed(made.seed)
    model: Any = tuner_for(made).load(device).train()
    optimizer = optim.make(model.named_parameters(), made)
    trained = [weight for group in optimizer.param_groups for weight in group["params"]]
    steps, seen, took, losses = made.training.max_steps, 0, 0.0, []
    for step in range(steps):
        begun = time.monotonic()
        micro_batches = batches.of_step(data.samples, step, made.training, made.seed)
        labels = batches.label_tokens([sample for items in micro_batches for sample in items])
        loss = 0.0
        for items in micro_batches:
            with torch.autocast(device.split(":")[0], getattr(torch, made.dtype), enabled=made.dtype != "float32"):
                part = model(**filled(items, device), num_items_in_batch=labels, use_cache=False).loss
            part.backward()
            loss += float(part.detach())
        torch.nn.utils.clip_grad_norm_(trained, made.training.max_grad_norm)
        optim.set_rate(optimizer, optim.learning_rate(made.training, step, steps))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss)
        took += time.monotonic() - begun
        seen += sum(sample.size for items in micro_batches for sample in items)
    data.remove()
    print(json.dumps({"tokens_per_s": seen / took, "peak_bytes": meter.peak_bytes(), "losses": losses}))


def filled(samples: Sequence[Any], device: str) -> dict[str, Any]:
    """`input_ids`, `attention_mask` and `labels`, [samples, longest], filled up on the right."""
    import torch

    longest = max(sample.size for sample in samples)
    rows = [(sample, longest - sample.size) for sample in samples]
    values = {
        "input_ids": [sample.input_ids + [0] * more for sample, more in rows],
        "attention_mask": [[1] * sample.size + [0] * more for sample, more in rows],
        "labels": [sample.labels + [-100] * more for sample, more in rows],
    }
    return {name: torch.tensor(value, device=device) for name, value in values.items()}


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(Path(sys.argv[1]))
