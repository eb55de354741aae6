"""docs/architectures.md and docs/architectures.en.md, from docs/architectures.json.

python scripts/architectures_page.py      write both anew; scripts/architectures.py measures
"""

import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import architectures  # noqa: E402

PAGES = {"zh": ROOT / "docs" / "architectures.md", "en": ROOT / "docs" / "architectures.en.md"}
SHOWN = 1e-9
"""A difference below this is shown as 0."""


class Words(NamedTuple):
    """What these pages say beside the figures."""

    title: str
    intro: str
    columns: str
    layouts: dict[str, str]
    no: str
    failing: str
    failing_columns: str
    why: dict[str, str]
    notes: str


EN = Words(
    title="Architectures that train",
    intro="""
Of each architecture in the registry that transformers knows, a copy with a few layers of every kind, small widths and
random weights was trained with LoRA on text, for {steps} steps, through the toolbox's own job on a processor: the
losses were finite, all of the adapter's weights moved and no others did; the adapter, saved and loaded again, gives the
same logits; merged, with the whole proof of `merge` and answers written, it still does. **{works} of {all} train**
({versions}). Differences are the largest of a logit, as a share of the largest logit.
""",
    columns="`model_type` | models | loaded as | kinds of layers | rows | adapter on | reloaded | merged",
    layouts={"flatten_shared": "separated, prompts shared", "flatten": "separated", "pad": "padded"},
    no="no",
    failing="What does not train",
    failing_columns="`model_type` | models | why | what the toolbox says",
    why={
        "diffusion_gemma": "it denoises whole blocks of text, and predicts no next token",
        "gemma3n": "its vision tower is timm's, which needs torchvision, and that breaks transformers' own processors",
        "modernbert": "an encoder: it fills gaps and ranks, but does not write",
        "paligemma": "a prefix model: it sees all of a prompt at once, and a causal loss would teach it what it sees",
        "xlm-roberta": "an encoder: it ranks, but does not write",
    },
    notes="""
*Models*: how many of the registry are of that type; — : none that could be tuned. *Rows*: whether rows of a batch are
kept apart without padding, and share what they begin with, which is proven on the model before the first step; where a
layer carries a state from token to token, or attends otherwise than the proof allows, batches are padded.

*Adapter on* is what `target_modules: all-linear` means: every linear that text passes, but the head. Left out are
towers for images and sound with their projectors, which stay frozen; cross-attention to images; routers and indexers,
which choose without a gradient; of selective state spaces all but `in_proj`, since fused kernels read the other weights
past an adapter; and fused experts, whose adapters in peft take no dropout and add up whole matrices of all experts.
In some of these types peft takes the dense layers' `gate_proj`, `up_proj` and `down_proj` for experts' too, so they are
left out with them. Name modules with `--set LoraConfig.target_modules=[…]` to choose otherwise.

Of `qwen2_5_omni` and `qwen3_omni_moe` the part that reads and writes is loaded and trained (the thinker); merged, it is
saved as a model of its own, which does not speak.
""",
)
ZH = Words(
    title="能训练的模型结构",
    intro="""
登记表里 transformers 认得的每种结构，都做一个缩小的副本：每类层都有、宽度很小、权重随机，再用工具箱自己的任务在
处理器上用文本做 {steps} 步 LoRA 训练。损失都是有限数，适配器的权重全都变了，别的都没变；适配器保存后重新加载，
logits 相同；合并时做了 `merge` 的全部证明（包括写回答），仍然相同。**{all} 种里有 {works} 种能训练**（{versions}）。
数字是 logits 的最大差占最大 logit 的比例。
""",
    columns="`model_type` | 模型数 | 加载成 | 层的种类 | 各行 | 适配器加在 | 重新加载 | 合并",
    layouts={"flatten_shared": "不填充，共用开头", "flatten": "不填充", "pad": "填充"},
    no="否",
    failing="不能训练的",
    failing_columns="`model_type` | 模型数 | 原因 | 工具箱怎么说",
    why={
        "diffusion_gemma": "它整块去噪生成文本，不预测下一个词元",
        "gemma3n": "视觉塔来自 timm，而 timm 要装 torchvision，装了会让 transformers 自己的图像处理出错",
        "modernbert": "编码器：能填空、排序，不会写作",
        "paligemma": "前缀模型：提示部分一次全看得到，普通的因果损失只会教它已经看到的东西",
        "xlm-roberta": "编码器：能排序，不会写作",
    },
    notes="""
*模型数*：登记表里属于这种结构的模型有多少；—：没有可以微调的。*各行*：一批里的各行能否不填充地分开、并共用相同的开头，
训练前先在模型上证明；层里有逐词元传递的状态，或注意力与证明的不同时，就填充。

*适配器加在* 就是 `target_modules: all-linear` 的含义：文本经过的每个线性层，输出头除外。不加的有：图像和声音的塔
及其投影（保持冻结），对图像的交叉注意力，没有梯度、只做选择的路由器和索引器，选择性状态空间里除 `in_proj` 以外的
部分（融合核会绕过适配器直接读权重），以及融合在一起的专家（peft 给它们的适配器不能用 dropout，每步还要把所有专家的
整个矩阵加一遍）。有些结构里，peft 会把稠密层的 `gate_proj`、`up_proj`、`down_proj` 也当成专家，所以一起略去。
要另选，用 `--set LoraConfig.target_modules=[…]`。

`qwen2_5_omni` 和 `qwen3_omni_moe` 加载并训练的是读写文字的部分（thinker）；合并后保存成单独的模型，不会说话。
""",
)
WORDS = {"zh": ZH, "en": EN}


def page(language: str) -> str:
    """The page in one language, as Markdown."""
    words, figures, count = WORDS[language], architectures.read(), architectures.registered()
    versions = ", ".join(f"{name} {version}" for name, version in figures.versions.items())
    works = [one for one in figures.types if one.works]
    intro = words.intro.format(
        steps=architectures.STEPS, works=len(works), all=len(figures.types), versions=versions
    )  # fmt: skip
    lines = [
        f"# {words.title}", "", "<!-- scripts/architectures_page.py -->", intro, *_table(words.columns),
        *(_row(words, one, count[one.model_type]) for one in works), "",
        f"## {words.failing}", "", *_table(words.failing_columns),
        *(
            f"| `{one.model_type}` | {count[one.model_type] or '—'} | {words.why[one.model_type]} | {one.reason} |"
            for one in figures.types
            if not one.works
        ),
        words.notes,
    ]  # fmt: skip
    return "\n".join(lines)


def _table(columns: str) -> list[str]:
    return [f"| {columns} |", "|---" * (columns.count("|") + 1) + "|"]


def _row(words: Words, one: architectures.Trained, count: int) -> str:
    cells = [
        f"`{one.model_type}`", str(count or "—"), f"`{one.loaded_as}`", ", ".join(one.layers) or "—",
        words.layouts[one.layout], " ".join(one.adapted), _share(one.reload_diff),
        words.no if one.merge_diff is None else _share(one.merge_diff),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _share(difference: float | None) -> str:
    return "0" if not difference or difference < SHOWN else f"{difference:.0e}"


if __name__ == "__main__":
    for language, path in PAGES.items():
        path.write_text(page(language), encoding="utf-8")
        print(path.relative_to(ROOT))
