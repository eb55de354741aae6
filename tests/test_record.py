"""The record of a report: it survives what people do to texts, says no place of a machine, and hostile ones end."""

import html
import os
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest
from plans import finetune_run

from toolbox import files, plan
from toolbox.errors import InputError
from toolbox.facts import Facts
from toolbox.report import record, tolerances
from toolbox.report.tolerances import Machine

RESULT = {
    "steps": 6, "rows": 40, "train_loss": 0.25, "eval_loss": 0.5, "peak_bytes": 1 << 28, "elapsed_s": 2.5,
    "tokens_per_s": 100.5, "adapter": "/somewhere/adapter", "hashes": {"output": {"adapter.safetensors": "a" * 64}},
    "measured": {"tokens": 12, "time_s": 3.5}, "divergence": float("inf"),
}  # fmt: skip


@pytest.fixture
def chain(home: Path, tmp_path: Path) -> list[Facts]:
    """A run on a file of a person's own and on the embedded data, that left a result and a curve."""
    own = tmp_path / "secret folder" / "mine.jsonl"
    own.parent.mkdir()
    own.write_text('{"instruction": "a", "output": "b"}\n' * 20)
    run = finetune_run(home, str(own) + "#10", "demo-persona", tensorboard=tmp_path / "elsewhere")
    files.write_json(run.path / "result.json", RESULT)
    lines = b"".join(b'{"step": %d, "loss": %f}\n' % (step, 1 / step) for step in range(1, 101))
    (run.path / "metrics.jsonl").write_bytes(lines)
    return [Facts.of(run)]


def as_read(path: Path, text: str) -> record.Found:
    path.write_bytes(text.encode())
    return record.read(path)


def changed(text: str, change: Any) -> str:
    """The report with its record as `change` makes it."""
    head, _fence, rest = text.partition("```json\n")
    plain = msgspec.json.decode(rest.partition("\n```")[0])
    return (
        f"{head}```json\n{msgspec.json.format(msgspec.json.encode(change(plain) or plain), indent=1).decode()}\n```\n"
    )


def test_what_is_written_is_read_again_whatever_a_text_goes_through(chain: list[Facts], tmp_path: Path) -> None:
    above = "# 报告\n\nIt learnt.\n\n"
    block = record.block(chain, above)
    assert str(tmp_path) not in block
    assert os.sep + "somewhere" not in block
    path, text = tmp_path / "report.md", above + block + "\n"
    found = as_read(path, text)
    assert not found.edited
    step = found.record.steps[0]
    assert [data.name for data in step.datasets] == ["mine.jsonl#10", "demo-persona"]
    assert step.numbers["exact"] == {"steps": 6, "rows": 40}
    assert step.numbers["hash"] == {"hashes.output.adapter.safetensors": "a" * 64}
    assert step.numbers["loss"]["train_loss"] == 0.25
    assert step.numbers["loss"]["loss at step 100"] == 0.01
    assert len(step.numbers["loss"]) == 2 + 20
    assert set(step.numbers["time"]) == {"elapsed_s", "tokens_per_s", "measured.tokens", "measured.time_s"}
    for other in ("\ufeff" + text.replace("\n", "\r\n"), text.replace("\n", "  \n"), text.rstrip(),
                  "".join(f"> {line}\n" for line in text.splitlines()).replace("> ", "   ")):  # fmt: skip
        again = as_read(path, other)
        assert (again.record, again.edited) == (found.record, False)
    json = html.escape(text.partition("json\n")[2]).replace("```", "</code></pre>")
    assert as_read(path, f'<!DOCTYPE html>\n<pre><code class="language-json">{json}').record == found.record
    assert as_read(path, text.replace("It learnt.", "It learnt a lot.")).edited


HOSTILE = {
    "an entry": lambda r: r["steps"][0].update(entry="os:system"),
    "an entry in its settings": lambda r: r["steps"][0]["settings"].update(trust_remote_code=True),
    "a path upwards": lambda r: r["steps"][0]["datasets"][0].update(name="../../etc/passwd"),
    "a path from the root": lambda r: r["steps"][0]["datasets"][0].update(name="/etc/passwd"),
    "a folder below a local name": lambda r: r["steps"][0]["datasets"][0].update(name="a/b.jsonl"),
    "a file of a model upwards": lambda r: r["steps"][0]["model"]["files"].update({"../x.json": "a" * 64}),
    "a hash that is none": lambda r: r["steps"][0]["datasets"][0].update(sha256="abc"),
    "a verb that is none": lambda r: r["steps"][0].update(verb="uninstall"),
    "plugins": lambda r: r["steps"][0].update(plugins=["evil.py"]),
    "plugins in its settings": lambda r: r["steps"][0]["settings"].update(plugins=[{"path": "evil.py", "sha256": "a"}]),
    "an interpreter": lambda r: r["steps"][0]["settings"].update(python="evil/python"),
    "a way out": lambda r: r["steps"][0]["settings"].update(fetches=True),
    "a step after it": lambda r: r["steps"][0].update(model={"from": "step", "step": 1, "path": "adapter"}),
    "a path in a setting": lambda r: r["steps"][0]["settings"]["LoraConfig"].update(x="/root/.ssh/id_rsa"),
    "an address in a setting": lambda r: r["steps"][0]["settings"].update(recipe="http://169.254.169.254/"),
    "a run that is a path": lambda r: r["steps"][0].update(run="../../etc"),
    "another version": lambda r: r.update(schema="yichuidingyin-record/9"),
    "no steps": lambda r: r.update(steps=[]),
    "1000 steps": lambda r: r.update(steps=r["steps"] * 1000),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_record_is_refused(kind: str, chain: list[Facts], tmp_path: Path) -> None:
    text = changed("text\n\n" + record.block(chain), HOSTILE[kind])
    with pytest.raises(InputError, match=r"line|version|larger"):
        as_read(tmp_path / "report.md", text)


def test_what_is_no_record_is_told_with_its_line(chain: list[Facts], tmp_path: Path) -> None:
    path, text = tmp_path / "report.md", "one\n\n" + record.block(chain)
    bombs = {
        "0 records": 'schema: &a ["yichuidingyin-record/1"]\nb: [*a, *a]\n',
        "2 records": text + "\n" + text,
        r"line 11: .*malformed": text.replace('"run":', "run:"),
        "nested too deeply": text.replace('"settings": {', '"settings": {"x": ' + "[" * 100000 + "]" * 100000 + ",", 1),
        "larger than": text + "x" * (5 << 20),
    }
    for told, bomb in bombs.items():
        with pytest.raises(InputError, match=told):
            as_read(path, bomb)
    path.write_bytes(b"one\n\xff\xfe")
    with pytest.raises(InputError, match="line 2"):
        record.read(path)


def test_no_plan_has_a_place_that_a_record_might_set() -> None:
    """Who gives plans a new field with a path has to decide it on each machine, as `portable` and `repeating` do."""
    kinds = (plan.FinetunePlan, plan.MergePlan, plan.ExportPlan, plan.EvaluatePlan, plan.ServePlan)
    places = {field for kind in kinds for field, hint in get_type_hints(kind).items() if "Path" in str(hint)}
    assert places
    assert places <= record.ELSEWHERE


SETTINGS = frozenset({
    "BitsAndBytesConfig", "LoraConfig", "adapter_only", "allow_4bit", "allow_shorter", "blocks", "callbacks",
    "chat_template", "compare", "config", "dtype", "engine", "eval_rows", "format", "held_out", "limit",
    "log_contents", "method", "metrics", "mixture", "name", "onto", "options", "quantization", "recipe", "samples",
    "seed", "settings", "stage", "training", "tune", "type",
})  # fmt: skip
"""Fields of plans that may come from a stranger's record: they choose no program, no server, no place."""


def test_every_field_of_a_plan_is_a_setting_or_said_otherwise() -> None:
    """A new field is put in one of both: does it name a program, a server, a network or a place?"""
    kinds = (plan.FinetunePlan, plan.ExactPlan, plan.MergePlan, plan.ExportPlan, plan.EvaluatePlan, plan.ServePlan)
    assert {field for kind in kinds for field in kind.__struct_fields__} == SETTINGS | (record.ELSEWHERE - {"verb"})
    assert not SETTINGS & record.ELSEWHERE


def test_numbers_hold_as_their_kind_says() -> None:
    judge = tolerances.judge
    assert judge("loss", 0.5, 0.5, same_bits=True) == "held"
    assert judge("loss", 0.5, 0.5000001, same_bits=True) == "differed"
    assert judge("loss", 0.5, 0.51, same_bits=False) == "held"
    assert judge("loss", 0.5, 0.6, same_bits=False) == "differed"
    assert judge("exact", 100, 101, same_bits=False) == "differed"
    assert judge("exact", True, None, same_bits=False) == "differed"
    assert judge("hash", "a", "b", same_bits=False) == "reported"
    assert judge("hash", "a", "b", same_bits=True) == "differed"
    assert judge("time", 1.0, 9.0, same_bits=True) == "reported"
    assert judge("metric", 0.73046418, 0.73046419, same_bits=True) == "held"
    assert judge("metric", 0.73046418, 0.73047, True, (0.5, 0.9)) == "differed"
    assert judge("metric", 0.79, 0.71, False, (0.52, 0.92)) == "held"
    assert judge("metric", 0.79, 0.4, False, (0.52, 0.92)) == "differed"
    here = Machine(kind="cpu", name="A", threads=2, simd="avx2", versions={"torch": "2.13.0"})
    assert tolerances.alike(here, here)
    for change in ({"threads": 1}, {"simd": "avx512f"}, {"kind": "cuda"}, {"versions": {"torch": "2.14.0"}}):
        assert not tolerances.alike(here, msgspec.structs.replace(here, **change))
