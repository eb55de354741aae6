"""Models and rows that `bench/train.py` trains: made from PEERS_HOME's small model, the same at every run."""

import json
import shutil
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "small": {},
    "qwen8": {
        "hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864,
        "num_hidden_layers": 8, "max_window_layers": 8, "vocab_size": 151936,
    },
}  # fmt: skip
"""small: 82M weights, a vocabulary of 8k. qwen8: Qwen2.5-0.5B's layers and vocabulary, 8 of its 24 layers."""
TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}"
    "{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}"
    "{%- endif %}{%- for message in messages %}"
    "{{- ('' if loop.first else '\\n') + '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '\\n<|im_start|>assistant\\n' }}{%- endif %}"
)
"""Qwen2.5's without the line feed after the last answer, which some peers learn and others don't."""


def make_model(shape: str, small: Path, folder: Path) -> Path:
    """The model of a shape in `folder`, with random weights where `small` has others."""
    made = folder / shape
    if (made / "config.json").exists():
        return made
    made.mkdir(parents=True)
    for file in small.iterdir():
        if file.suffix != ".safetensors" and file.name != "config.json":
            shutil.copy(file, made / file.name)
    settings = json.loads((made / "tokenizer_config.json").read_text("utf-8")) | {"chat_template": TEMPLATE}
    (made / "tokenizer_config.json").write_text(json.dumps(settings))
    if SHAPES[shape]:
        _draw(json.loads((small / "config.json").read_text("utf-8")) | SHAPES[shape], made)
    else:
        shutil.copy(small / "model.safetensors", made)
        shutil.copy(small / "config.json", made)
    return made


def _draw(settings: dict[str, Any], made: Path) -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**settings)).save_pretrained(made)


def take_rows(source: Path, model: Path, longest: int, count: int) -> list[list[dict[str, str]]]:
    """The first `count` rows of an alpaca file that have at most `longest` tokens: tools cut longer ones each in its
    own way."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    taken = []
    for row in json.loads(source.read_text("utf-8")):
        question = row["instruction"] + ("\n" + row["input"] if row.get("input") else "")
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]
        if row["output"] and len(tokenizer(tokenizer.apply_chat_template(turns, tokenize=False)).input_ids) <= longest:
            taken.append(turns)
    return taken[:count]


def write_rows(rows: list[list[dict[str, str]]], folder: Path) -> None:
    """`rows` as each tool reads them: messages.jsonl, trl/train.jsonl, and alpaca.json with its dataset_info.json."""
    (folder / "trl").mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"messages": turns}) for turns in rows]
    (folder / "messages.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    pairs = [json.dumps({"prompt": turns[:-1], "completion": turns[-1:]}) for turns in rows]
    (folder / "trl" / "train.jsonl").write_text("\n".join(pairs) + "\n", "utf-8")
    alpaca = [{"instruction": turns[0]["content"], "input": "", "output": turns[1]["content"]} for turns in rows]
    (folder / "alpaca.json").write_text(json.dumps(alpaca), "utf-8")
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "alpaca.json"}}), "utf-8")
