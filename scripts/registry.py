"""Writes toolbox/registry/models.csv, the models that the toolbox knows by name, from a table of facts.

    python scripts/registry.py FACTS/models.csv

The facts are ids that ms-swift and LLaMA-Factory register, with what their names and architectures tell. What can't be
used here is left out, and counted with its reason. Run it before and after scripts/shapes.py: a model gets the shape
that is published for it, or for the model that it was made from.
"""

import collections
import csv
import re
import sys
from pathlib import Path

import msgspec
import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from toolbox import networks  # noqa: E402
from toolbox.models import HUB_ID  # noqa: E402
from toolbox.planning import TEXT_MODELS  # noqa: E402
from toolbox.registry.shapes import GUESSED, guessed  # noqa: E402

TABLE = ROOT / "toolbox" / "registry" / "models.csv"
SHAPES = TABLE.with_name("shapes.json")
COLUMNS = ("huggingface", "modelscope", "family", "model_type", "architecture", "native", "modality", "task", "domain",
           "quantised", "params_b", "active_b", "licence", "shape")  # fmt: skip
SILENT = {"embedding", "reranker", "encoder", "reward", "process-reward", "tts", "image-generation"}
"""Tasks of models that write no text."""

KNOWN = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
"""Sizes, licences and kinships that the facts don't tell."""
OFF = (0.85, 1.2)
"""Between these a count is what a rounded name says."""
FAR_OFF = (0.6, 1.9)
"""Outside these a shape is another model's, or is not counted rightly."""
RENAMED = re.compile(r"^meta-llama/Meta-Llama-3\.1")
"""As its owner called it at first; the hub leads from there to today's name."""
QUANTISED = re.compile(r"[-_](fp8|awq|gptq|bnb|aqlm|int[48]|4bits?|8bits?|nvfp4|mxfp4|w4a16)\b.*$", re.IGNORECASE)
SAID_BESIDE = re.compile(
    r"(?<=[-_.])(instruct|chat|it|base|hf|thinking|pt|dpo|sft|rl|preview|pretrain(ed)?|mpo|alpha|beta|rm|1m|128k|32k|16k"
    r"|4k|8k|200k|v0\.[1-9]|\d{4}|meta|long|preference|code|coder|python|\dv)(?=[-_.]|$)|^meta-", re.IGNORECASE
)  # fmt: skip
"""What names say beside what a model is: it does not change its shape."""


def main(facts: Path) -> None:
    shapes = msgspec.json.decode(SHAPES.read_bytes()) if SHAPES.exists() else {}
    lines, left_out, seen = [], collections.Counter[str](), set[str]()
    with facts.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            name = row["huggingface_id"] or row["modelscope_id"]
            reason = why_not(row) or ("named twice" if name.lower() in seen else "")
            if reason:
                left_out[reason] += 1
                continue
            seen.add(name.lower())
            lines.append(line(row, shapes))
    lines = guess(lines, shapes)
    lines.sort(key=lambda line: (line[2], float(line[10] or 0), line[0] or line[1]))
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *lines])
    kinds = collections.Counter("text" if line[6] == "text" else "multimodal" for line in lines)
    known = sum(not line[-1].startswith(GUESSED) for line in lines)
    print(f"{len(lines)} models ({dict(kinds)}), {known} of published shape")
    for reason, count in left_out.most_common():
        print(f"{count:4} left out: {reason}")


def guess(lines: list[tuple[str, ...]], shapes: dict[str, dict]) -> list[tuple[str, ...]]:
    """The lines, each with a shape; guessed ones are written beside the published ones, where they are found fast."""
    done = []
    for line in lines:
        model_type, total, active, shape = line[3], line[10], line[11], line[-1]
        if not shape:
            shape = f"{GUESSED}{model_type or 'llama'}-{total}" + (f"-a{active}" if active else "")
            shapes[shape] = {"source": "", "config": guessed(model_type, float(total), bool(active))}
        done.append((*line[:-1], shape))
    write_shapes(
        {name: shape for name, shape in shapes.items() if name[:8] != GUESSED or name in {d[-1] for d in done}}
    )
    return done


def write_shapes(shapes: dict[str, dict]) -> None:
    """A line a shape, by name."""
    lines = [f" {encode(name)}: {encode(shapes[name])}" for name in sorted(shapes, key=str.lower)]
    SHAPES.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def encode(value: object) -> str:
    return msgspec.json.encode(value).decode()


def why_not(row: dict[str, str]) -> str:
    """Why a model is of no use here; empty where it is."""
    ids = [row[key] for key in ("huggingface_id", "modelscope_id") if row[key]]
    if not any(HUB_ID.fullmatch(name) for name in ids):
        return "no repository of its own"
    if row["task"] in SILENT or "Classification" in row["architectures"]:
        return "writes no text"
    if row["native_in_transformers"] == "yes" and row["architectures"] and not architecture(row):
        return "does not write token by token"
    if not size(row)[0]:
        return "its size is not known"
    if not row["architectures"] and not row["hf_model_type"]:
        return "its architecture is not known"
    return ""


def architecture(row: dict[str, str]) -> str:
    """The class that writes text; empty where a native model has none."""
    named = row["architectures"].split(";")
    return next(
        (name for name in named if name.endswith((*TEXT_MODELS, "OmniModel"))), "" if row["hf_model_type"] else named[0]
    )


def size(row: dict[str, str]) -> tuple[str, str]:
    """(parameters, active ones) in billions."""
    name = row["huggingface_id"] or row["modelscope_id"]
    for pattern, (total, active) in KNOWN["sizes"].items():
        if not row["params_b"] and re.search(pattern, name):
            return f"{total:g}", f"{active:g}" if active else ""
    return row["params_b"], row["active_b"]


def line(row: dict[str, str], shapes: dict[str, dict]) -> tuple[str, ...]:
    """A model's line of the table."""
    ids = [row[key] if HUB_ID.fullmatch(row[key]) else "" for key in ("huggingface_id", "modelscope_id")]
    ids[0] = RENAMED.sub(r"meta-llama/Llama-3.1", ids[0])
    name = ids[0] or ids[1]
    total, active = size(row)
    licence = next((said for pattern, said in KNOWN["licences"].items() if re.search(pattern, name)), "")
    quantised = "" if row["quantised"] == "no" else row["quantised"]
    native = "yes" if row["native_in_transformers"] == "yes" else "no"
    return (
        *ids, row["family"], row["hf_model_type"], architecture(row), native, row["modality"],
        row["task"], row["domain_tags"].replace(";", "|"), quantised, total, active, licence,
        shape_of([name for name in ids if name], row, shapes),
    )  # fmt: skip


def shape_of(ids: list[str], row: dict[str, str], shapes: dict[str, dict]) -> str:
    """The name of the published shape that a model has; empty where none is known."""
    by_stem = _by_stem(tuple(shapes))
    for name in ids:
        for stem in (name.lower(), QUANTISED.sub("", name.lower())):
            if (found := by_stem.get(stem)) and _plausible(found, row, shapes):
                return found
    for name in ids:
        for pattern, base in KNOWN["made_from"].items():
            if re.search(pattern, name) and base in shapes and _plausible(base, row, shapes):
                return base
        for pattern, parts in KNOWN["composed"].items():
            if re.search(pattern + r"(?![\d.])", name) and all(part in shapes for part in parts):
                return "+".join(parts)
        if (found := by_stem.get(_stem(name))) and _plausible(found, row, shapes):
            return found
    return ""


def _plausible(shape: str, row: dict[str, str], shapes: dict[str, dict]) -> bool:
    """Whether a class's defaults have about as many parameters as the name says: not all are a checkpoint's."""
    counted, named = networks.read(shapes[shape]["config"]).parameters, float(size(row)[0]) * 1e9
    low, high = OFF if shape.startswith("transformers/") else FAR_OFF
    return low < counted / named < high


def _by_stem(names: tuple[str, ...]) -> dict[str, str]:
    known = {_stem(name): name for name in reversed(names) if not name.startswith(("transformers/", GUESSED))}
    return known | {name.lower(): name for name in names}


def _stem(name: str) -> str:
    """A model's name without what it was trained for, as `qwen2.5-7b`."""
    bare = QUANTISED.sub("", name.rpartition("/")[2])
    while (shorter := re.sub(r"[-_]+(?=[-_.]|$)", "", SAID_BESIDE.sub("", bare))) != bare:
        bare = shorter
    return bare.lower().strip("-_.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
