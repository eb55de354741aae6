"""What llama.cpp says of a GGUF file, and its K-quants, in its own interpreter: run there, this file is the program."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolbox.exporting import Step
    from toolbox.exporting.checking import Questions, Said
    from toolbox.plan import ExportPlan

NEW_TOKENS = 32
FLOAT32 = 0
"""ggml's number of that type."""
TENSOR = re.compile(r"\[ *(\d+)/ *(\d+)\]")
"""How a line of llama.cpp's begins while it quantises: which tensor of how many."""
INSTEAD = re.compile(r"(\d+) of (\d+) tensor\(s\) required fallback")


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


def quantise(plan: "ExportPlan", source: Path, target: Path, step: "Step") -> list[str]:
    """Have llama.cpp write `source`, a GGUF file of 16 or 32 bits, to `target` in the type of the plan.

    Returns what a person should know of it. Raises ToolboxError where it fails, OutOfMemoryError where it was killed.
    """
    from toolbox import engines, files, foreign
    from toolbox.errors import OutOfMemoryError, ToolboxError
    from toolbox.i18n import _

    work = source.with_name("work.json")
    said = {"source": str(source), "target": str(target), "type": plan.type, "threads": plan.device.cores}
    files.write_json(work, said)
    notes: list[str] = []

    def heed(line: str) -> None:
        if place := TENSOR.match(line):
            step(int(place[1]), int(place[2]))
        elif rest := INSTEAD.search(line):
            notes.append(
                _("{count} of {total} tensors have rows that no {type} divides, and took another type.").format(
                    count=rest[1], total=rest[2], type=plan.type
                )
            )
        elif not line:
            step(0, 0)

    assert plan.python  # exports.choose has seen to it
    environ = engines.environment(source.parent / ".cache", "cpu", 0, "")
    status, last = foreign.run(plan.python, Path(__file__), work, environ, heed)
    if foreign.killed(status):
        raise OutOfMemoryError(
            _("llama.cpp was killed, as the system does where memory runs out."), _("Free some memory, or take q8_0.")
        )
    if status:
        raise ToolboxError(
            _("llama.cpp can't quantise this model: {reason}").format(reason=last or status),
            _("Take a type that needs no llama.cpp, as q8_0 or q4_0."),
        )
    return notes


def _quantise(work: dict[str, Any]) -> int:
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{work['type'].upper()}")
    settings.nthread = work["threads"]
    return int(llama_cpp.llama_model_quantize(work["source"].encode(), work["target"].encode(), settings))


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
    if sys.argv[1].endswith(".json"):
        sys.exit(_quantise(json.loads(Path(sys.argv[1]).read_text("utf-8"))))
    sys.stdout.write(json.dumps(_said(json.load(sys.stdin), *sys.argv[1:])))
