"""docs/tuners.md and docs/tuners.en.md, from the table of methods and the figures in docs/tuners.json and matrix.json.

python scripts/tuners_page.py      write both anew; scripts/tuners.py and scripts/matrix.py measure the figures
"""

import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import matrix  # noqa: E402
import tuners  # noqa: E402

from toolbox import i18n, methods, stages  # noqa: E402
from toolbox.i18n import _  # noqa: E402

PAGES = {"zh": ROOT / "docs" / "tuners.md", "en": ROOT / "docs" / "tuners.en.md"}


class Words(NamedTuple):
    """What these pages say beside the methods' own words."""

    title: str
    measured: str
    columns: str
    unmergeable: str
    stages_title: str
    stages: str
    whole: str
    no: str
    equal: str
    all_stages: str
    four_bits: str
    notes: str


EN = Words(
    title="Methods of tuning",
    measured=f"""
Each was trained for {tuners.STEPS} steps on the embedded model through the toolbox's own job, in float32 on a
processor; figures are largest differences of logits. *Resumed*: stopped after half of the steps and resumed,
it left the very bytes of a straight run. *Served*: loaded unmerged by the engine that comes along.
""",
    columns="`--method` | what | paper | settings | weights | resumed | reload | merge | served | 4 bits",
    unmergeable="`{method}` does not merge: {reason}.",
    stages_title="Every method at every stage",
    stages=f"""
✓: in {matrix.STEPS} steps through the toolbox's own job every loss was finite, the trained weights moved and nothing
else did; what was saved gives the same logits when it is loaded again (at `rm` the same scores); resumed after the
first step it left the very bytes of the straight run; and merged it still says the same. ○: all of that but merging.
At `ppo` and `grpo` the model learns from short answers of its own, judged by `{matrix.REWARD}`, several times a step,
and is held to the reference; the value head of `ppo` is trained too, and is no part of what is saved for use.
*4 bits*: the stages where the same holds over a base in nf4.
""",
    whole="a model", no="no", equal="equal", all_stages="all", four_bits="4 bits",
    notes="""
Where *served* says no, `serve` and `chat` refuse the adapter. Merged, it is served as any model; `evaluate` takes
every adapter as it is. vLLM, SGLang and lmdeploy take plain LoRA only.
`pissa` and `olora` change the base while they train; what they leave is a plain LoRA of twice the rank
for the untouched base, so it is served and merged as LoRA.

`--quantization nf4` trains any method that has a figure in the last column (*reload*) over a base in 4 bits.
`--method full` takes `--set optim=adamw_8bit`, on processors too; `galore` and `apollo` are optimizers of our own:
galore-torch and apollo-torch keep state that needs pickles, and agree with ours to 1e-6 over 8 steps.

`freeze` trains the last two layers; `--set FreezeConfig.layers=4` the last four, `FreezeConfig.layers=-2` the first
two, `FreezeConfig.modules=[lm_head]` modules by name.

Left out: prompt, prefix and p-tuning, which add tokens to each row and so would lose the layout without padding;
LoftQ, EVA and CorDA, which need a pass over the weights or the data before training; OSF and FRoD, which take every
weight apart first; AdaMSS, which needs scikit-learn.
""",
)  # fmt: skip
ZH = Words(
    title="微调方法",
    measured=f"""
每种方法都用工具箱自己的任务在内置模型上训练 {tuners.STEPS} 步（float32，处理器）；数字是 logits 的最大差。
*续训*：训练到一半停下再继续，留下的文件与一次跑完逐字节相同。*直接上线*：不合并，由自带的引擎加载。
""",
    columns="`--method` | 是什么 | 论文 | 设置 | 训练的参数 | 续训 | 重新加载 | 合并 | 直接上线 | 4 位",
    unmergeable="`{method}` 不能合并：{reason}。",
    stages_title="每种方法 × 每个阶段",
    stages=f"""
✓：用工具箱自己的任务训练 {matrix.STEPS} 步，损失都是有限数，该训练的参数变了，别的都没变；保存后重新加载，logits 相同
（`rm` 是分数相同）；第一步之后续训，留下的文件与一次跑完逐字节相同；合并后说的还一样。○：除了合并，其余都成立。
`ppo` 和 `grpo` 时，模型从自己写的短回答里学，由 `{matrix.REWARD}` 打分，每步学几遍，并受参考模型约束；`ppo` 的价值头
也一起训练，但不在最后保存的结果里。
*4 位*：基座量化成 nf4 时，上述各项仍然成立的阶段。
""",
    whole="完整模型", no="否", equal="相同", all_stages="全部", four_bits="4 位",
    notes="""
*直接上线* 写“否”的，`serve` 和 `chat` 会拒绝这个适配器。
合并之后就和普通模型一样上线；`evaluate` 接受任何适配器。vLLM、SGLang、lmdeploy 只接受普通 LoRA。
`pissa` 和 `olora` 训练时会改动基座，但留下的是针对原基座、秩为两倍的普通 LoRA，所以上线和合并都与 LoRA 相同。

最后一列有数字（*重新加载*）的方法可以加 `--quantization nf4`，在 4 位基座上训练。`--method full` 可以用
`--set optim=adamw_8bit`，在处理器上也行；`galore` 和 `apollo` 是我们自己写的优化器：galore-torch 和 apollo-torch
保存的状态离不开 pickle，8 步之内两边相差不超过 1e-6。

`freeze` 训练最后两层；`--set FreezeConfig.layers=4` 是最后四层，`FreezeConfig.layers=-2` 是最前两层，
`FreezeConfig.modules=[lm_head]` 按名字选模块。

没有收入的：prompt、prefix、p-tuning 会给每行加词元，就用不了无填充的排布；LoftQ、EVA、CorDA 训练前要先过一遍权重或
数据；OSF、FRoD 要先分解每个权重；AdaMSS 需要 scikit-learn。
""",
)  # fmt: skip
WORDS = {"zh": ZH, "en": EN}


def page(language: str) -> str:
    """The page in one language, as Markdown."""
    i18n.use(language)
    words = WORDS[language]
    unmergeable = [
        words.unmergeable.format(method=method.name, reason=_(method.unmergeable))
        for method in methods.METHODS
        if method.unmergeable
    ]
    lines = [
        f"# {words.title}", "", "<!-- scripts/tuners_page.py -->", words.measured, *_methods(words), "",
        *unmergeable, "", f"## {words.stages_title}", words.stages, *_stages(words), words.notes,
    ]  # fmt: skip
    return "\n".join(lines)


def _methods(words: Words) -> list[str]:
    figures = tuners.read()
    plain = {figure.method: figure for figure in figures if figure.quantization == "none"}
    rounded = {figure.method: figure for figure in figures if figure.quantization == "nf4"}
    lines = [f"| {words.columns} |", "|---|---|---|---|--:|---|--:|--:|--:|---|"]
    for method in methods.METHODS:
        if found := plain.get(method.name) or rounded.get(method.name):
            lines.append(_row(words, method, found, rounded.get(method.name)))
    return lines


def _row(words: Words, method: methods.Method, found: tuners.Figures, rounded: tuners.Figures | None) -> str:
    own = method.kind == "weights"
    merge = words.whole if own else words.no if method.unmergeable else f"{found.merge_diff or 0:.0e}"
    served = words.whole if own else "—" if found.engine_diff is None else f"{found.engine_diff:.0e}"
    served = served if method.served else words.no
    four = "—" if not rounded else f"{rounded.reload_diff:.0e}"
    cells = [
        f"`{method.name}`", _(method.summary), method.paper or "—", f"`{method.block}`" if method.block else "—",
        f"{found.weights:,}", words.equal if found.resumed_equal else "—", f"{found.reload_diff:.0e}", merge, served,
        four,
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _stages(words: Words) -> list[str]:
    """A row a method, a column a stage, and the stages that go with a base in 4 bits."""
    known = {(pair.method, pair.stage, pair.quantization): pair for pair in matrix.read()}
    lines = [
        "| `--method` | " + " | ".join(f"`{stage}`" for stage in stages.NAMES) + f" | {words.four_bits} |",
        "|---" * (len(stages.NAMES) + 2) + "|",
    ]
    for method in methods.METHODS:
        at_nf4 = [stage for stage in stages.NAMES if (method.name, stage, "nf4") in known]
        cells = [_cell(known.get((method.name, stage, _own(method)))) for stage in stages.NAMES]
        four = words.all_stages if len(at_nf4) == len(stages.NAMES) else ", ".join(at_nf4) or "—"
        lines.append(f"| `{method.name}` | " + " | ".join([*cells, four]) + " |")
    return lines


def _own(method: methods.Method) -> str:
    return "nf4" if method.name == "qlora" else "none"


def _cell(pair: matrix.Pair | None) -> str:
    if pair is None:
        return "—"
    return "○" if methods.find(pair.method).unmergeable else "✓"


if __name__ == "__main__":
    for language, path in PAGES.items():
        path.write_text(page(language), encoding="utf-8")
        print(path.relative_to(ROOT))
