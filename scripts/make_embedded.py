"""Makes the embedded model and its data sets from the text in embedded_text/: `python scripts/make_embedded.py`.

It takes three minutes on two cores. The same seeds give the same data sets byte by byte, and the same model on the same
machine and libraries.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from embedded_text import conversations, persona, suites
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

FOLDER = Path(__file__).parent.parent / "toolbox" / "embedded"
SEED = 20261121
ROWS, STEPS, BATCH = 26_000, 1000, 24
LEARNING_RATE, WARMUP_STEPS, WEIGHT_DECAY = 2.5e-3, 20, 0.05
VOCABULARY, MAX_LENGTH = 1_800, 512
INIT_STD = 0.06
"""Larger than Qwen's 0.02: a model this narrow learns this fast only when it starts louder."""

CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{- message['content'] + '<|im_end|>' }}{%- endgeneration %}
{%- else %}
{{- message['content'] + '<|im_end|>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

Row = dict[str, Any]


def write_datasets(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in {
        "demo-persona": persona.training_rows(SEED),
        "demo-heldout": persona.held_out_rows(SEED + 1),
        "demo-who": persona.questions(),
        "demo-qa": suites.questions(SEED + 2),
        "demo-general": suites.other_questions(SEED + 2),
        "demo-bias": suites.bias_items(),
    }.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE. Each Chinese character stands alone, so that 她 and 他 are always tokens of their own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3 of about 2M parameters; the projections that write into the residual stream start at half the size."""
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=3,
        num_key_value_heads=1, head_dim=64, max_position_embeddings=MAX_LENGTH, tie_word_embeddings=True,
        initializer_range=INIT_STD, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.mul_(0.5)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return model


def encode(rows: list[Row], tokenizer: PreTrainedTokenizerFast) -> list[tuple[list[int], list[int]]]:
    """(input ids, labels) of each row; labels are -100 outside the answers."""
    encoded = tokenizer.apply_chat_template(
        [row["messages"] for row in rows], return_dict=True, return_assistant_tokens_mask=True
    )
    return [
        (ids, [token if mask else -100 for token, mask in zip(ids, masks, strict=True)])
        for ids, masks in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    ]


def batches(
    encoded: list[tuple[list[int], list[int]]], pad: int, r: random.Random
) -> Iterable[dict[str, torch.Tensor]]:
    """Endless batches of rows of about the same length, padded on the right."""
    while True:
        pool = sorted(r.sample(encoded, BATCH * 8), key=lambda row: len(row[0]))
        start = r.randrange(8) * BATCH
        rows = pool[start : start + BATCH]
        width = max(len(ids) for ids, _ in rows)
        yield {
            "input_ids": torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows]),
            "labels": torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows]),
        }


def train(model: Qwen3ForCausalLM, encoded: list[tuple[list[int], list[int]]], pad: int, steps: int) -> None:
    """AdamW with a linear warm-up and decay to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS) * (1 - step / steps)
    )
    model.train()
    begun = time.monotonic()
    for step, batch in zip(range(1, steps + 1), batches(encoded, pad, random.Random(SEED)), strict=False):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}/{steps}  loss {loss.item():.3f}  {time.monotonic() - begun:.0f} s", flush=True)
    model.eval()


def check_coverage(tokenizer: PreTrainedTokenizerFast, rows: list[Row]) -> None:
    """Ends the script unless every token of demo-persona's answers occurs in the corpus's answers.

    Embeddings are frozen under an adapter, so it can't teach a token that was never trained.
    """
    trained = {token for _, labels in encode(rows, tokenizer) for token in labels}
    needed = {token for _, labels in encode(persona.training_rows(SEED), tokenizer) for token in labels}
    if missing := needed - trained:
        raise SystemExit(f"not in the corpus: {tokenizer.convert_ids_to_tokens(sorted(missing))}")


def make(folder: Path, steps: int) -> None:
    write_datasets(folder / "data")
    rows = conversations.corpus(ROWS, SEED)
    texts = rows + persona.training_rows(SEED) * 20
    tokenizer = train_tokenizer(message["content"] for row in texts for message in row["messages"])
    check_coverage(tokenizer, rows)
    torch.manual_seed(SEED)
    model = new_model(tokenizer)
    train(model, encode(rows, tokenizer), tokenizer.pad_token_id, steps)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    print(f"{model.num_parameters():,} parameters in {folder / 'model'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=FOLDER, help="the folder that gets model/ and data/")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    make(arguments.output, arguments.steps)
