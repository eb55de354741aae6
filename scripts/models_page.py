"""Writes docs/models.md and docs/models.en.md from the registry and the memory model; scripts/reference.py calls it."""

import sys
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from toolbox import device, fitting, i18n, registry  # noqa: E402
from toolbox.commands.models import billions  # noqa: E402
from toolbox.config import Home  # noqa: E402
from toolbox.fitting import Fit  # noqa: E402
from toolbox.i18n import _  # noqa: E402
from toolbox.registry import Model  # noqa: E402
from toolbox.registry.shapes import GUESSED  # noqa: E402

PAGES = {"zh": ROOT / "docs" / "models.md", "en": ROOT / "docs" / "models.en.md"}
SIZES_GIB = (8, 12, 16, 24, 48, 80)
GPUS = tuple(f"NVIDIA A10:{size}GiB" for size in SIZES_GIB)
"""Memory is what counts here, so the other figures of these are one and the same GPU's."""
LARGE_FAMILY = 8
"""Models from which on a family has a line of its own."""
WORDS = {
    "zh": (
        "认识的模型",
        "共 {count} 个模型：{text} 个文本，{more} 个多模态；其中 {tunable} 个能在这里微调，"
        "{quantised} 个已量化（只能部署），{own} 个需要其仓库自带的程序代码（这里从不运行）。"
        "{published} 个的结构有公开来源（toolbox/registry/shapes.json），其余按规模估计，规划时留两倍余量。"
        "其中 scripts/shapes.csv 的各行、许可证和部分规模凭记忆写下，来源没有逐一重读；"
        "模型自己的 config.json 总是优先，许可证以模型页面为准。",
        "查找：`models search 关键词 --fits`；一个模型：`models show 名称`；更新：`models refresh 文件或地址`。",
        "按用途",
        "每格：能用 LoRA 微调的个数 + 只能用 QLoRA 的个数。一次一行、2048 个词元、重算激活值，并留出余量；"
        "这是规划器的预测，不是实测。",
        ("用途", "个数"),
        "按系列",
        "{least} 个模型以上的系列。每格：能用 LoRA / QLoRA 微调的最大规模；— 表示没有。",
        ("系列", "个数", "规模", "许可证"),
    ),
    "en": (
        "The models that are known",
        "{count} models: {text} of text, {more} multimodal. {tunable} of them can be fine-tuned here, {quantised} are "
        "quantised already (to serve only), {own} need program code of their own repository, which is never run here. "
        "The shapes of {published} are published (toolbox/registry/shapes.json says where); the others' are estimated "
        "from their size, and planned for with twice the margin. The rows of scripts/shapes.csv, the licences and some "
        "sizes were written from memory, and their sources not all read again: a model's own config.json always comes "
        "first, and its page says the licence.",
        "To search: `models search WORD --fits`; one of them: `models show NAME`; newer ones: `models refresh SOURCE`.",
        "By what they are for",
        "A cell: how many can be tuned by LoRA + how many by QLoRA only. One row at a time of 2048 tokens, activations "
        "computed again, with a margin; it is what the planner predicts, not measured.",
        ("for", "models"),
        "By family",
        "Families of {least} models and more. A cell: the largest that LoRA / QLoRA can tune; — is none.",
        ("family", "models", "sizes", "licences"),
    ),
}  # fmt: skip
"""Words of these pages only, which the program never says."""


def page(language: str) -> str:
    """The page in one language, as Markdown."""
    i18n.use(language)
    title, counts, how, by_kind, cell, kind_columns, by_family, family_cell, family_columns = WORDS[language]
    models = [model for model, _fit in fits()[GPUS[0]]]
    gpus = tuple(f"{size} GiB" for size in SIZES_GIB)
    told = counts.format(
        count=len(models), text=sum(model.modality == "text" for model in models),
        more=sum(model.modality != "text" for model in models), tunable=sum(model.tunable for model in models),
        quantised=sum(bool(model.quantised) for model in models),
        own=sum(not model.native and not model.quantised for model in models),
        published=sum(not model.shape.startswith(GUESSED) for model in models),
    )  # fmt: skip
    kinds = [kind for kind in registry.KINDS if any(registry.kind(model) == kind for model in models)]
    families = [
        name for name, count in sorted(Counter(model.family for model in models).items()) if count >= LARGE_FAMILY
    ]
    return "\n".join([
        f"# {title}", "", "<!-- make docs -->", "", told, "", how, "",
        f"## {by_kind}", "", cell, "", *_table((*kind_columns, *gpus), [_of_kind(kind) for kind in kinds]), "",
        f"## {by_family}", "", family_cell.format(least=LARGE_FAMILY), "",
        *_table((*family_columns, *gpus), [_of_family(name) for name in families]), "",
    ])  # fmt: skip


@cache
def fits() -> dict[str, list[tuple[Model, Fit]]]:
    """By GPU, each shipped model with what fits."""
    home = Home(Path(tempfile.gettempdir()) / "nobody's")
    each = [fitting.fits(registry.shipped(), device.assume(gpu), home) for gpu in GPUS]
    by_model = zip(*each, strict=True)  # a model for all GPUs before the next: what was counted is remembered a while
    return dict(zip(GPUS, map(list, zip(*by_model, strict=True)), strict=True))


def _of_kind(kind: str) -> list[str]:
    cells = []
    for gpu in GPUS:
        best = Counter(fit.best for model, fit in fits()[gpu] if registry.kind(model) == kind)
        cells.append(f"{best['lora']} + {best['qlora']}")
    count = sum(registry.kind(model) == kind for model in registry.shipped())
    return [_(registry.KINDS[kind]), str(count), *cells]


def _of_family(family: str) -> list[str]:
    models = [model for model in registry.shipped() if model.family == family]
    sizes = sorted({model.params_b for model in models})
    said = billions(sizes[0]) + (f"–{billions(sizes[-1])}" if len(sizes) > 1 else "")
    licences = [name for name, _count in Counter(model.licence for model in models if model.licence).most_common(2)]
    cells = []
    for gpu in GPUS:
        found = [(model, fit) for model, fit in fits()[gpu] if model.family == family]
        largest = [max((model.params_b for model, fit in found if name in fit.methods), default=0.0)
                   for name in ("lora", "qlora")]  # fmt: skip
        cells.append(" / ".join(billions(size) if size else "—" for size in largest) if any(largest) else "—")
    return [f"`{family}`", str(len(models)), said, ", ".join(licences) or "—", *cells]


def _table(columns: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]
