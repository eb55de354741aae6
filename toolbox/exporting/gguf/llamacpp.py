"""What llama.cpp says of a GGUF file, asked in its own interpreter; run there, this file is the program that asks."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolbox.exporting.checking import Questions, Said

NEW_TOKENS = 32
FLOAT32 = 0
"""ggml's number of that type."""


def ask(python: Path, path: Path, questions: "Questions", lora: Path | None = None) -> "Said":
    """Load `path` in llama.cpp, with the adapter `lora` on top, and ask. Raises ToolboxError where it does not load."""
    import msgspec

    from toolbox import engines
    from toolbox.errors import ToolboxError
    from toolbox.exporting.checking import Said
    from toolbox.i18n import _

    files = [str(path), *([str(lora)] if lora else [])]
    done = subprocess.run(
        [str(python), "-I", __file__, *files], input=msgspec.json.encode(questions), capture_output=True,
        env=engines.environment(path.parent / ".cache", "cpu", 0, ""), check=False,
    )  # fmt: skip
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ToolboxError(
            _("llama.cpp does not load the export, so it was not kept: {reason}").format(reason="".join(last)),
            _("Take another format; this model can't be written as GGUF."),
        )
    return msgspec.json.decode(done.stdout, type=Said)


def _said(questions: dict[str, Any], path: str, lora: str | None = None) -> dict[str, Any]:
    """`Said` as plain data."""
    from llama_cpp import Llama

    rows, prompts = questions["rows"], questions["prompts"]
    longest = max(map(len, [*rows, *prompts])) + NEW_TOKENS
    # Keys and values in float32, as the other side keeps them, so that only the file differs.
    model = Llama(
        model_path=path, lora_path=lora, n_ctx=longest, n_batch=longest, logits_all=True, verbose=False,
        type_k=FLOAT32, type_v=FLOAT32,
    )  # fmt: skip
    return {
        "log_likelihoods": [_log_likelihoods(model, row) for row in rows],
        "answers": [_answer(model, prompt, set(questions["ends"])) for prompt in prompts],
        "tokens": [model.tokenize(text.encode(), add_bos=False, special=True) for text in questions["texts"]],
    }


def _log_likelihoods(model: Any, row: list[int]) -> list[float]:
    import numpy as np

    model.reset()
    model.eval(row)
    logits = np.array(model.scores[: len(row) - 1], dtype=np.float64)
    logits -= logits.max(-1, keepdims=True)
    chosen = logits[np.arange(len(row) - 1), row[1:]] - np.log(np.exp(logits).sum(-1))
    return [value if math.isfinite(value) else -math.inf for value in chosen.tolist()]


def _answer(model: Any, prompt: list[int], ends: set[int]) -> list[int]:
    """The greedy answer, up to and with the first token that ends it."""
    model.reset()
    model.eval(prompt)
    answer: list[int] = []
    while len(answer) < NEW_TOKENS and not (answer and answer[-1] in ends):
        answer.append(int(model.scores[model.n_tokens - 1].argmax()))
        model.eval(answer[-1:])
    return answer


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_said(json.load(sys.stdin), *sys.argv[1:])))
