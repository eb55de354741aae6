"""Suites by name: what a hub has is fetched when first asked for, what none has whole is named with its page.

Addresses are those that EvalScope 1.14 and lm-evaluation-harness 0.4.13 fetch from; files that lie in HOME/suites/NAME*
come first.
"""

import fnmatch
from pathlib import Path

import msgspec

from toolbox.config import Home
from toolbox.errors import NotFoundError
from toolbox.hub import mark_used
from toolbox.i18n import N_, _


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A suite that has a name of its own."""

    title: str
    """A few words for people (N_)."""
    huggingface: str = ""
    modelscope: str = ""
    include: tuple[str, ...] = ()
    """The files of the repository that belong to it, whatever hub it is on."""
    page: str = ""
    """Where its authors have it, where no hub has their own files."""


GITHUB = "https://github.com"
CATALOGUE: dict[str, Entry] = {
    "gsm8k": Entry(
        title=N_("Arithmetic in words, 1319 problems"),
        huggingface="openai/gsm8k",
        modelscope="AI-ModelScope/gsm8k",
        include=("main/test*", "test*"),
    ),
    "humaneval": Entry(
        title=N_("Python functions that pass their tests, 164 tasks"),
        huggingface="openai/openai_humaneval",
        modelscope="opencompass/humaneval",
        include=("*test*.parquet", "*.jsonl", "*.jsonl.gz"),
    ),
    "mbpp": Entry(
        title=N_("Python functions from a sentence and three tests, 500 tasks"),
        huggingface="google-research-datasets/mbpp",
        modelscope="google-research-datasets/mbpp",
        include=("full/test*",),
    ),
    "math": Entry(
        title=N_("Competition problems, 500 of MATH"),
        huggingface="HuggingFaceH4/MATH-500",
        modelscope="AI-ModelScope/MATH-500",
        include=("test*",),
    ),
    "hellaswag": Entry(
        title=N_("How a situation goes on, 10042 endings to choose"),
        huggingface="Rowan/hellaswag",
        modelscope="evalscope/hellaswag",
        include=("*validation*", "*hellaswag_val.jsonl"),
    ),
    "winogrande": Entry(
        title=N_("Whom a blank means, 1267 sentences"),
        huggingface="allenai/winogrande",
        modelscope="AI-ModelScope/winogrande_val",
        include=("winogrande_xl/validation*", "data/validation*"),
    ),
    "boolq": Entry(
        title=N_("Yes or no about a passage, 3270 questions"),
        huggingface="google/boolq",
        modelscope="google/boolq",
        include=("data/validation*",),
    ),
    "arc_challenge": Entry(
        title=N_("Science questions of school, the hard 1172"),
        huggingface="allenai/ai2_arc",
        modelscope="allenai/ai2_arc",
        include=("ARC-Challenge/test*",),
    ),
    "ifeval": Entry(
        title=N_("Instructions that can be checked, 541 prompts"),
        huggingface="google/IFEval",
        modelscope="opencompass/ifeval",
        include=("*.jsonl", "*.parquet"),
    ),
    "truthfulqa": Entry(
        title=N_("Truth against popular errors, 817 questions"),
        huggingface="truthfulqa/truthful_qa",
        modelscope="evalscope/truthful_qa",
        include=("multiple_choice/*",),
    ),
    "mmlu": Entry(
        title=N_("57 subjects in English, 14042 questions"),
        huggingface="cais/mmlu",
        modelscope="cais/mmlu",
        include=("all/test*", "all/dev*"),
    ),
    "ceval": Entry(
        title=N_("52 subjects in Chinese, 1346 questions with public answers"),
        huggingface="ceval/ceval-exam",
        modelscope="evalscope/ceval",
        include=("*/val*", "*/dev*", "*_val.csv", "*_dev.csv"),
    ),
    "bbq": Entry(
        title=N_("Social bias in answers, 58492 questions"),
        huggingface="heegyu/bbq",
        include=("data/*.jsonl",),
    ),
    "cmmlu": Entry(title=N_("67 subjects in Chinese"), page=f"{GITHUB}/haonan-li/CMMLU"),
    "cbbq": Entry(title=N_("Social bias in answers, Chinese"), page=f"{GITHUB}/YFHuangxxxx/CBBQ"),
    "crows_pairs": Entry(title=N_("Stereotypes in pairs of sentences"), page=f"{GITHUB}/nyu-mll/crows-pairs"),
    "winobias": Entry(title=N_("Whom a pronoun means, by profession"), page=f"{GITHUB}/uclanlp/corefBias"),
    "winogender": Entry(
        title=N_("Whom a pronoun means, and labour statistics"), page=f"{GITHUB}/rudinger/winogender-schemas"
    ),
    "stereoset": Entry(title=N_("Stereotypes, and whether it makes sense"), page=f"{GITHUB}/moinnadeem/StereoSet"),
}


class NotFetchedError(NotFoundError):
    """A suite of the catalogue that is not on this machine; `entry` says which hubs have it."""

    def __init__(self, name: str, entry: Entry, home: Home) -> None:
        self.name, self.entry = name, entry
        super().__init__(
            _("The suite {name} is not on this machine.").format(name=name),
            _("Fetch it: {command}").format(command=f"download {entry.huggingface} --type dataset")
            if entry.huggingface
            else _("Take its files from {page}, and name them with --suite, or put them into {folder}.").format(
                page=entry.page, folder=home.path / "suites" / name
            ),
        )


def find(name: str, home: Home) -> Path:
    """Where that suite of the catalogue lies: a file, or a folder whose files are one suite. Raises NotFetchedError."""
    entry = CATALOGUE[name]
    own = sorted(path for path in (home.path / "suites").glob(f"{name}*") if path.name.partition(".")[0] == name)
    if own:
        return own[0]
    folder = home.datasets / entry.huggingface
    found = sorted(path for path in folder.rglob("*") if path.is_file() and _belongs(path, folder, entry))
    if not entry.huggingface or not found:
        raise NotFetchedError(name, entry, home)
    mark_used(folder, home)
    return found[0] if len(found) == 1 else folder


def is_here(name: str, home: Home) -> bool:
    try:
        find(name, home)
    except NotFetchedError:
        return False
    return True


def where(name: str, home: Home) -> str:
    """In a few words (N_): here, on a hub, or with its authors."""
    if is_here(name, home):
        return N_("here")
    return N_("fetched when first used") if CATALOGUE[name].huggingface else N_("with its authors")


def _belongs(path: Path, folder: Path, entry: Entry) -> bool:
    return any(fnmatch.fnmatchcase(path.relative_to(folder).as_posix(), pattern) for pattern in entry.include)
