"""Duplicates, contamination, names and memory: what `data check` rests on."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from toolbox import DatasetHub, datasets
from toolbox.config import Home
from toolbox.datasets import checking, contents, registry
from toolbox.datasets.checking import Finding, Wanted
from toolbox.datasets.duplicates import ALIKE, Held, Sketches, shingles, similarity, sketch
from toolbox.errors import InputError

GENERATOR = random.Random(7)
WORDS = ["".join(GENERATOR.choices("abcdefghijklmnop", k=GENERATOR.randint(2, 8))) for _ in range(500)]


def text(words: int = 80) -> str:
    return " ".join(GENERATOR.choices(WORDS, k=words))


def changed(original: str, letters: int) -> str:
    said = list(original)
    for _ in range(letters):
        said[GENERATOR.randrange(len(said))] = GENERATOR.choice("xyz")
    return "".join(said)


def jaccard(one: str, other: str) -> float:
    a, b = set(shingles(one).tolist()), set(shingles(other).tolist())
    return len(a & b) / len(a | b)


def test_the_estimate_is_right_to_a_few_hundredths() -> None:
    pairs = [(one := text(), changed(one, GENERATOR.randint(0, 30))) for _ in range(200)]
    errors = [float(similarity(sketch(a), sketch(b))) - jaccard(a, b) for a, b in pairs]
    assert abs(sum(errors) / len(errors)) < 0.02
    assert sum(error * error for error in errors) / len(errors) < 0.05**2


def test_near_duplicates_are_found_and_others_are_not() -> None:
    """Of pairs alike to 0.9 and more all are found; of those under 0.65 none; the false rates between are measured."""
    originals = [text() for _ in range(400)]
    copies = [changed(original, GENERATOR.randint(0, 25)) for original in originals]
    sketches = Sketches()
    for said in [*originals, *copies]:
        sketches.add(said)
    found = {duplicate.index: duplicate for duplicate in sketches.duplicates()}
    alike = [jaccard(*pair) for pair in zip(originals, copies, strict=True)]
    missed = [share for index, share in enumerate(alike) if share >= 0.9 and 400 + index not in found]
    wrong = [share for index, share in enumerate(alike) if share < 0.65 and 400 + index in found]
    assert min(alike) < 0.65 < 0.9 < max(alike)
    assert (missed, wrong) == ([], [])
    assert not [index for index in found if index < 400], "texts that have nothing to do with each other"
    assert all(found[index].first == index - 400 for index in found)


def test_exact_duplicates_are_told_from_near_ones_and_name_the_first() -> None:
    sketches = Sketches()
    one = text()
    for said in (one, "short", one + "!", one, "short", "Short."):
        sketches.add(said)
    told = [(d.index, d.first, d.similarity == 1.0) for d in sketches.duplicates()]
    assert told == [(2, 0, False), (3, 0, True), (4, 1, True)]


def test_a_test_row_is_found_inside_a_longer_text() -> None:
    questions = [text(20) for _ in range(50)]
    held = Held(questions)
    assert [index for index, share in held.found_in(f"{text()} {questions[7].upper()}?! {text()}")] == [7]
    assert held.found_in(text()) == []
    assert all(share >= ALIKE for _index, share in held.found_in(changed(questions[3], 2)))


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def found_in(path: Path, **wanted: Any) -> list[Finding]:
    found: list[Finding] = []
    checking.examine(contents.look([path], {}), Wanted(**wanted), found.append)
    return found


def test_every_problem_is_told_with_its_row(tmp_path: Path, home: Path) -> None:
    question = "Which of the two trains arrives first in the town by the river?"
    path = write(
        tmp_path / "data.jsonl",
        {"prompt": "1+1?", "response": "2"},
        {"prompt": "1+1?", "response": " "},
        {"prompt": "1+1?", "response": "2"},
        {"prompt": "Say it.", "response": "Say it."},
        {"prompt": f"Please: {question}", "response": "The second one."},
        {"prompt": "long", "response": "x" * 500},
    )
    test = write(tmp_path / "test.jsonl", {"prompt": question, "response": "No."})
    against = datasets.load(datasets.resolve(str(test), Home(home)))
    told = [(f.number, f.problem) for f in found_in(path, against=against, max_length=400)]
    assert told == [(2, "unusable"), (4, "repeated"), (5, "contained"), (6, "long"), (3, "duplicate")]


def test_calls_of_different_tools_are_no_duplicates(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Order a pizza."}, {"role": "assistant", "content": "I can't."}]
    rows = [{"messages": turns, "tools": [{"name": name}]} for name in ("news", "weather", "news")]
    assert [f.number for f in found_in(write(tmp_path / "data.jsonl", *rows))] == [3]


def test_the_registry_names_enough_and_every_column_map_is_one() -> None:
    names = {registry.key(named.name) for named in registry.shipped()}
    assert len(names) >= 200
    assert all(named.modelscope or named.huggingface for named in registry.shipped())
    assert {named.task for named in registry.shipped()} <= set(registry.TASKS)


@pytest.mark.parametrize(
    ("words", "name"), [(["zh", "pretrain"], "SkyPile-150B"), (["alpaca", "de"], "alpaca-gpt4_de")]
)
def test_named_sets_are_searched_by_name_language_and_task(home: Path, words: list[str], name: str) -> None:
    assert name in {named.name for named in registry.search(words, Home(home))}


def test_a_function_s_rows_have_a_name_here_and_in_other_processes(home: Path) -> None:
    rows = [{"prompt": str(number), "response": "a"} for number in range(3)]
    DatasetHub.register(name="counted", dataset_fn=lambda: rows, task_type="sft")
    hub = DatasetHub("Counted")
    assert (len(hub), [row.number for row in hub]) == (3, [1, 2, 3])
    rows.append({"prompt": "3", "response": "b"})
    assert len(DatasetHub("counted")) == 4
    with pytest.raises(InputError, match="can't have the task"):
        DatasetHub.register(name="x", dataset_fn=list, task_type="magic")
    with pytest.raises(InputError, match="no name"):
        DatasetHub.register(name="../x", dataset_fn=list)


def test_importing_the_hub_takes_neither_torch_nor_numpy() -> None:
    code = "import sys; from toolbox import DatasetHub; print({'torch', 'numpy', 'pyarrow'} & set(sys.modules))"
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("layout", ["jsonl", "list"])
def test_reading_takes_memory_for_a_row_not_for_the_file(tmp_path: Path, layout: str) -> None:
    """60 MB are resolved and streamed with less than 30 MB more than the interpreter takes."""
    row = json.dumps({"prompt": "p" * 300, "response": "r" * 700})
    path = tmp_path / "data.json"
    with path.open("w") as file:
        file.write("[" if layout == "list" else "")
        for number in range(60_000):
            file.write((",\n" if number and layout == "list" else "") + row + ("\n" if layout == "jsonl" else ""))
        file.write("]" if layout == "list" else "")
    code = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from toolbox import datasets\nfrom toolbox.config import Home\n"
        "begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "spec = datasets.resolve(sys.argv[1], Home(Path('none')))\n"
        "assert sum(1 for row in datasets.stream(spec)) == spec.rows == 60000\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begun)"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 30e6
