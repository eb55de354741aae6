"""Reports: every verb, every end, whatever the run directory lacks."""

import re
import socket
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from plans import CPU, demo_facts, finetune_plan, write_jsonl

from toolbox import files, i18n, memory, runs
from toolbox.plan import AnyPlan, EvaluatePlan, MergePlan, ServePlan
from toolbox.report import write_page, write_report, write_reports
from toolbox.runs import Run, State

METRICS = [
    {"step": n, "loss": 3 / n, "learning_rate": 1e-3 / n, "tokens_per_s": 900.0, "memory_bytes": 1 << 27}
    for n in range(1, 9)
]


def merge_plan(home: Path, **changes: Any) -> MergePlan:
    fields: dict[str, Any] = {
        "entry": "toolbox.merging:run", "model": demo_facts(), "device": CPU, "adapter": home / "adapter",
        "output": home / "merged", "dtype": "float32",
    }  # fmt: skip
    return MergePlan(**fields | changes)


def run_of(home: Path, plan: AnyPlan, state: State = "done", **status: Any) -> Run:
    run = runs.create(home / "runs", plan.verb, plan)
    run.write_status(msgspec.structs.replace(run.status(), state=state, updated_at=time.time(), **status))
    return run


def add_metrics(run: Run) -> None:
    lines = b"".join(msgspec.json.encode(line) + b"\n" for line in METRICS)
    (run.path / "metrics.jsonl").write_bytes(lines + b'{"step": 9, "lo')


def report(run: Run) -> str:
    return write_report(run).read_text("utf-8")


def test_a_finetune_run_tells_what_was_done_on_what_and_how_to_do_it_again(home: Path) -> None:
    run = run_of(home, finetune_plan(home), step=8, steps=8)
    add_metrics(run)
    files.write_json(
        run.path / "result.json",
        {"adapter": "/a", "peak_bytes": 1 << 27, "rows": 200, "rows_cut": 3, "rows_dropped": 1},
    )
    text = report(run)
    sha256 = finetune_plan(home).datasets[0].sha256
    for part in (
        "✓ Done",
        "`demo`",
        "demo-persona",
        sha256,
        "3 → 0.375",
        "`LoraConfig.lora_alpha` | `16`",
        "runs reproduce report.md",
        "rows trained on: 200",
    ):
        assert part in text, part
    assert "--model demo --dataset demo-persona --method lora" in text
    assert "128.0 MiB** (50%)" in text
    assert {path.name for path in (run.path / "plots").iterdir()} == {"loss.svg", "learning_rate.svg"}


@pytest.mark.parametrize("state", ["planned", "failed", "interrupted", "lost", "done", "running", "ready"])
def test_every_end_of_every_verb_has_a_report(home: Path, state: State) -> None:
    facts: dict[str, Any] = {"model": demo_facts(), "device": CPU}
    plans: list[AnyPlan] = [
        finetune_plan(home),
        merge_plan(home),
        EvaluatePlan(entry="toolbox.evaluation:run", suites=["demo-qa"], **facts),
        ServePlan(entry="toolbox.serving:run", engine="transformers", **facts, **_serve_fields()),
    ]
    for plan in plans:
        text = report(run_of(home, plan, state))
        assert text.startswith("# ")
        assert "## Run it again" in text


def _serve_fields() -> dict[str, Any]:
    known = {"name": "demo", "python": Path("/usr/bin/python3"), "dtype": "auto"}
    return {name: value for name, value in known.items() if name in ServePlan.__struct_fields__}


def test_a_failure_before_the_first_step_is_reported_with_its_reason(home: Path) -> None:
    error = {"kind": "input", "message": "Row 57 is not JSON.", "remedy": "Mend that row."}
    text = report(run_of(home, finetune_plan(home), "failed", error=error, phase="Reading the data"))
    assert "✗ Failed" in text
    assert "Row 57 is not JSON." in text
    assert "Mend that row." in text
    assert "It was at: Reading the data." in text


def test_what_can_go_on_says_how(home: Path) -> None:
    run = run_of(home, finetune_plan(home), "interrupted", resumable=True)
    assert f"runs resume {run.id}" in report(run)


@pytest.mark.parametrize("name", ["plan.yaml", "status.json", "env.json", "metrics.jsonl", "result.json"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"\xff\xfe", b'{"a": {"b": [null]}}'])
def test_no_part_is_needed(home: Path, name: str, content: bytes | None) -> None:
    run = run_of(home, finetune_plan(home))
    if content is None:
        (run.path / name).unlink(missing_ok=True)
    else:
        (run.path / name).write_bytes(content)
    assert report(run).startswith("# ")


HOSTILE = (
    'x|y `z` <script>alert(1)</script> [a](javascript:b) ![i](https://e.example/i.svg) "q" #\n# Big\n| c |\n</details>'
)
PICTURE = """<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><title id="title">t</title>
<script>alert(1)</script><a href="javascript:alert(1)"><text>a</text></a><foreignObject><p>f</p></foreignObject>
<style>@import "https://e.example"</style><rect class="paper" onclick="alert(1)" style="fill:url(https://e.example)"/>
<text>kept</text></svg>"""
INERT = {
    "html", "head", "meta", "title", "style", "body", "nav", "ul", "li", "a", "main", "h1", "h2", "h3", "p",
    "strong", "em", "code", "pre", "blockquote", "details", "summary", "div", "table", "caption", "thead", "tbody",
    "tr", "th", "td", "figure", "svg", "desc", "rect", "path", "text", "line", "g", "circle",
}  # fmt: skip


class Tags(HTMLParser):
    """All tags of a page, and all attributes with their values."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attributes]


def test_names_and_errors_stay_text(home: Path) -> None:
    plan = finetune_plan(home, model=msgspec.structs.replace(demo_facts(), id=HOSTILE), why=HOSTILE)
    run = run_of(home, plan, "failed", error={"message": HOSTILE, "remedy": HOSTILE})
    run.log_path.write_text(f"{HOSTILE}\nValueError: {HOSTILE}\n")
    files.write_text(run.path / "plots" / "odd.svg", PICTURE)
    path = write_page(run)
    text = re.sub(r"(?ms)^(```+)\w*$.*?^\1$", "", (run.path / "report.md").read_text("utf-8"))
    outside_code = re.sub(r"(?<!\\)(`+)(?!`).*?(?<!`)\1(?!`)", "", text)
    assert "<script>" not in outside_code
    assert not re.search(r"(?<!\\)\]\((javascript|https)", outside_code)
    assert "\n# Big" not in text
    assert {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("| ")} <= {3, 4, 5, 7}
    page = path.read_text("utf-8")
    found = Tags(page)
    assert found.tags <= INERT, found.tags - INERT
    assert not [name for name, _value in found.attributes if name.startswith("on") or name == "src"]
    styles = {value for name, value in found.attributes if name == "style"}
    assert all(re.fullmatch(r"text-align:right|min-width:\d+px", style) for style in styles)
    assert all(value.startswith("#part-") for name, value in found.attributes if name == "href")
    assert "&lt;script&gt;" in page
    assert "@import" not in page
    assert ">kept</text>" in page
    assert ">a</text>" not in page


def test_a_pipeline_can_hold_no_syntax_but_its_own(home: Path) -> None:
    plan = finetune_plan(home, model=msgspec.structs.replace(demo_facts(), id=HOSTILE))
    (text,) = re.findall(r"(?ms)^```mermaid\n(.*?)^```$", report(run_of(home, plan)))
    label = r"(?:[\w ./+·→×%…-]|#\d+;|<br/>)*"
    node = rf'  \w+(\[\(|\[|\(\[)"{label}"(\)\]|\]|\]\)):::\w+'
    lines = re.compile(rf"flowchart TD|{node}|  \w+ --> \w+|  classDef \w+ [\w:#,]+")
    assert [line for line in text.splitlines() if not lines.fullmatch(line)] == []
    assert "#60;script#62;" in text


def test_nothing_of_this_machine_is_published(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node-17")
    (home.parent / "my data").mkdir()
    rows = write_jsonl(home.parent / "my data" / "rows of a customer.jsonl", [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 20)  # fmt: skip
    error = f"{rows} on node-17 can't be read; see /opt/somewhere/else/log.txt and http://10.1.2.3:8000/v1"
    first = run_of(home, finetune_plan(home, str(rows)), "failed", error={"message": error, "remedy": error})
    first.log_path.write_text(f"Traceback\n  File {rows}\nFileNotFoundError: {rows}\n")
    output = home / "models" / "merged" / "m"
    merged = run_of(home, merge_plan(home, run=first.id, adapter=first.adapter, output=output))
    files.write_json(merged.path / "result.json", {"output": str(output), "proof": []})
    at = msgspec.structs.replace(demo_facts(), id=str(output), path=output)
    served = run_of(home, ServePlan(**{**vars_of_a_server(), "model": at}))
    files.write_json(served.path / "result.json", {"url": "http://10.1.2.3:8000"})
    page = write_page(merged).read_text("utf-8")
    for text in (page, (merged.path / "report.md").read_text("utf-8")):
        for hidden in (str(home), "my data", "node-17", "10.1.2.3", "/opt/somewhere"):
            assert hidden not in text
        assert "rows of a customer.jsonl" in text


def vars_of_a_server() -> dict[str, Any]:
    return {"entry": "e", "device": CPU, "engine": "transformers", **_serve_fields()}


def test_what_mattered_comes_before_the_defaults(home: Path) -> None:
    text = report(run_of(home, finetune_plan(home, weight_decay=0.25)))
    folded = text.index("<summary>As by default</summary>")
    assert text.index("| `training.weight_decay` | `0.25` |") < folded < text.index("`training.max_grad_norm`")


def test_methods_on_the_same_rows_are_compared(home: Path) -> None:
    for method, loss in (("lora", 0.5), ("full", 0.25), ("lora", 0.75)):
        run = run_of(home, finetune_plan(home, method=method))
        files.write_json(run.path / "result.json", {"train_loss": loss, "peak_bytes": 1 << 28, "tokens_per_s": 10.0})
    run_of(home, finetune_plan(home, "demo-heldout"))
    table = report(run).partition("## Methods compared")[2].partition("##")[0]
    assert table.count("| full,") == 1
    assert "**0.25**" in table
    assert f"→ `{run.id}`" in table
    assert len([line for line in table.splitlines() if line.startswith("|")]) == 5


def test_keys_never_appear(home: Path) -> None:
    plan = ServePlan(entry="e", model=demo_facts(), device=CPU, engine="transformers", **_serve_fields())
    error = {"message": "refused canary_key-123 and sk-abcdefghijklmnop0123", "remedy": "hf_ABCDEFGHIJKLMNOP1234"}
    run = run_of(home, plan, "failed", error=error)
    files.write_json(run.path / "result.json", {"url": "http://127.0.0.1:1", "api_key": "canary_key-123"})
    text = report(run)
    assert "canary" not in text
    assert "abcdefghijklmnop" not in text.lower()
    assert "http://127.0.0.1:1" in text


def test_a_finetune_run_names_what_was_made_from_it(home: Path) -> None:
    first = run_of(home, finetune_plan(home))
    merged = run_of(home, merge_plan(home, run=first.id, adapter=first.adapter))
    by_path = run_of(
        home, EvaluatePlan(entry="e", model=demo_facts(), device=CPU, adapter=first.adapter, suites=["demo-qa"])
    )
    other = run_of(home, merge_plan(home, run="another"))
    write_reports(merged)
    text = (first.path / "report.md").read_text("utf-8")
    order = [text.index(f"`{run.id}`", text.index("## Steps")) for run in (first, merged, by_path)]
    assert order == sorted(order)
    assert other.id not in text


def test_an_evaluation_sets_base_and_tuned_side_by_side(home: Path) -> None:
    run = run_of(home, EvaluatePlan(entry="e", model=demo_facts(), device=CPU, run="r", suites=["demo-qa"]))
    row = {"suite": "demo-qa", "metric": "exact_match", "n": 120}
    rows = [
        {**row, "model": "base", "value": 0.98, "low": 0.94, "high": 0.99},
        {**row, "model": "tuned", "value": 0.97, "low": 0.93, "high": 0.99},
    ]
    files.write_json(run.path / "result.json", {"results": rows})
    files.write_text(run.path / "plots" / "3-demo-bias.svg", '<svg><title id="title">Share of “she”</title></svg>')
    text = report(run)
    assert "| demo-qa | exact match ↑ | 120 | 0.98 [0.94, 0.99] | 0.97 [0.93, 0.99] |" in text.replace("\u00a0", " ")
    assert "![Share of “she”](plots/3-demo-bias.svg)" in text


def test_a_merge_shows_its_proof_and_its_hashes(home: Path) -> None:
    run = run_of(home, merge_plan(home))
    files.write_json(run.path / "result.json", {
        "output": "/out", "proof": [{"name": "Logits", "passed": True, "detail": "1e-05"}],
        "hashes": {"output": {"model.safetensors": "ab" * 32}},
    })  # fmt: skip
    text = report(run)
    assert "| Logits | ✓ | 1e-05 |" in text
    assert "ab" * 32 in text


def test_an_evaluations_pictures_are_drawn_again_in_the_persons_language(home: Path) -> None:
    run = run_of(home, EvaluatePlan(entry="e", model=demo_facts(), device=CPU, suites=["demo-bias"]))
    row = {"name": "nurse", "likelihood_share_she": 0.9, "language": "en"}
    both = {"base": [row], "tuned": [row | {"likelihood_share_she": 0.5}]}
    category = {"category": "gender", "metric": "crows_pairs", "value": 60.0}
    files.write_json(run.path / "evaluation" / "1-demo-bias.json", {"kind": "gender", "rows": both})
    files.write_json(run.path / "evaluation" / "2-c.json", {"kind": "crows_pairs", "categories": {"base": [category]}})
    for number, odd in enumerate(('{"kind": "gender", "rows": {"base": [{}]}}', '{"kind": "gender"}', "[]", "{")):
        files.write_text(run.path / "evaluation" / f"{number + 3}-odd.json", odd)
    files.write_json(run.path / "result.json", {"results": [
        {"suite": "demo-bias", "metric": "likelihood_bias", "model": "base", "value": 0.8, "low": 0.7, "high": 0.9},
    ], "repair": {"checks": []}})  # fmt: skip
    drawn = {}
    for language in ("en", "zh"):
        i18n.use(language)
        assert "plots/1-demo-bias.svg" in report(run)
        drawn[language] = {path.name: path.read_text("utf-8") for path in (run.path / "plots").iterdir()}
    assert drawn["en"].keys() == {"1-demo-bias.svg", "2-c.svg", "repair.svg"}
    assert "she →" in drawn["en"]["1-demo-bias.svg"]
    if list(i18n._LOCALE.glob("zh/LC_MESSAGES/*.mo")):
        assert all("she →" not in svg and svg != drawn["en"][name] for name, svg in drawn["zh"].items())


def test_the_report_speaks_the_persons_language(home: Path) -> None:
    plan = finetune_plan(home)
    parts = msgspec.structs.replace(plan.estimate, parts_bytes=dict.fromkeys(memory.PARTS, 1 << 20))
    run = run_of(home, msgspec.structs.replace(plan, estimate=parts))
    english = report(run)
    assert all(f"| {part} | 1.0 MiB |" in english for part in memory.PARTS.values())
    i18n.use("zh")
    if not list(i18n._LOCALE.glob("zh/LC_MESSAGES/*.mo")):
        pytest.skip("the catalogue is not compiled")
    assert report(run) != english
