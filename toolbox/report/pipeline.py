"""The pipeline of a chain, one graph of what was made of what: as Mermaid for GitHub, as SVG for HTML."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from toolbox import runs
from toolbox.chains import Origin
from toolbox.facts import Facts
from toolbox.i18n import _
from toolbox.report.publishing import Mask
from toolbox.report.words import SOURCES, STATES, VERBS

Kind = Literal["origin", "data", "run", "made"]
LONGEST = 34
"""Characters of a line in a node."""
SAFE = " ._/-+·→×%…"
"""What may stand in a Mermaid label as it is, beside letters and digits; all else is written as its number."""
STYLES = {
    "origin": "fill:#ddf4ff,stroke:#0969da,color:#1f2328",
    "data": "fill:#fff8c5,stroke:#9a6700,color:#1f2328",
    "run": "fill:#f6f8fa,stroke:#57606a,color:#1f2328",
    "made": "fill:#dafbe1,stroke:#1a7f37,color:#1f2328",
}
SHAPES = {"origin": ("[(", ")]"), "data": ("[(", ")]"), "run": ("[", "]"), "made": ("([", "])")}


class Node(msgspec.Struct, frozen=True):
    """A run, or what goes into one or comes out of it; `lines`: its name, and what it is."""

    id: str
    kind: Kind
    lines: tuple[str, ...]


class Graph(msgspec.Struct, frozen=True):
    """Nodes in the order of the work, and edges between their ids."""

    nodes: list[Node]
    edges: list[tuple[str, str]]


def graph(told: Sequence[Facts], chain: Sequence[Facts], origins: Sequence[Origin], hide: Mask) -> Graph:
    """The graph of a chain. `told`: its facts as they are, to follow paths by; `chain`: the same to be shown."""
    nodes, edges = [], []
    made: dict[str, str] = {}
    for place, origin in enumerate(origins):
        kind: Kind = "origin" if origin.kind == "model" else "data"
        nodes.append(Node(f"o{place}", kind, _lines(hide(origin.name), _(SOURCES.get(origin.source, origin.source)))))
    for place, (facts, shown) in enumerate(zip(told, chain, strict=True)):
        run = f"r{place}"
        if suites := [Path(str(name)).name.removesuffix(".jsonl") for name in shown.plan.get("suites") or []]:
            nodes.append(Node(f"s{place}", "data", _lines(_some(suites), _("suites"))))
            edges.append((f"s{place}", run))
        edges += [(source, run) for source in _sources(facts, told, origins, made)]
        nodes.append(Node(run, "run", _lines(f"{place + 1}. {step(shown)}", *_state(shown))))
        if product := _product(shown):
            nodes.append(Node(f"m{place}", "made", product))
            edges.append((run, f"m{place}"))
        made[facts.run.id] = f"m{place}" if product else run
    used = {id for edge in edges for id in edge}
    return Graph([node for node in nodes if node.id in used or node.kind == "run"], edges)


def step(facts: Facts) -> str:
    """What a run did, in a few words: `Fine-tune · SFT · lora`."""
    plan = facts.plan
    if facts.verb == "finetune":
        parts = [plan.get("stage", "").upper(), plan.get("method", ""), plan.get("quantization", "")]
    else:
        parts = [plan.get("format", ""), plan.get("type", ""), plan.get("engine", "")]
    said = [str(part) for part in parts if part and part != "none"]
    return " · ".join([_(VERBS.get(facts.verb, facts.verb)) or _("Run"), *said])


def _state(facts: Facts) -> tuple[str, ...]:
    """The run's name, and its state where that is not the usual one."""
    state = facts.status.state
    return (runs.undated(facts.run.id), *([_(STATES[state]).partition(":")[0]] if state != "done" else []))


def _product(facts: Facts) -> tuple[str, ...]:
    """What a run made, by name and kind; nothing where it only measured, or has not ended."""
    result = facts.result
    if facts.verb == "finetune" and (adapter := result.get("adapter") or result.get("model")):
        return _lines(_("adapter") if result.get("adapter") else Path(str(adapter)).name, runs.undated(facts.run.id))
    if facts.verb in ("merge", "export") and result.get("output"):
        what = _("merged model") if facts.verb == "merge" else " ".join((_("export"), str(facts.plan.get("type", ""))))
        return _lines(runs.undated(Path(str(result["output"])).name), what)
    return ()


def _sources(facts: Facts, told: Sequence[Facts], origins: Sequence[Origin], made: dict[str, str]) -> list[str]:
    """The nodes that a run's plan builds on, each once; `made`: what earlier runs left, by their ids."""
    found: dict[str, None] = {}
    for path in _paths(facts.plan):
        maker = next((other for other in told if other.run.id in made and _holds(other, path)), None)
        place = next((place for place, origin in enumerate(origins) if origin.path == path), None)
        if maker:
            found[made[maker.run.id]] = None
        elif place is not None:
            found[f"o{place}"] = None
    named = Path(str(facts.plan.get("run") or "")).name
    if named in made and not {made[named]} & found.keys():
        found[made[named]] = None
    return list(found)


def _holds(facts: Facts, path: Path) -> bool:
    """Whether a run made what lies at `path`."""
    output = facts.plan.get("output")
    folder = (facts.run.path.parent.name, facts.run.id)
    inside = folder in zip(path.parts, path.parts[1:], strict=False)
    return inside or bool(output and path.is_relative_to(str(output)))


def _paths(plan: dict[str, Any]) -> Iterator[Path]:
    """Of the models, adapters and rows that a plan reads."""
    for name in ("model", "base"):
        if isinstance(plan.get(name), dict) and plan[name].get("path"):
            yield Path(str(plan[name]["path"]))
    if plan.get("adapter"):
        yield Path(str(plan["adapter"]))
    mixture = plan.get("mixture")
    yield from map(Path, map(str, mixture.get("adapters") or []) if isinstance(mixture, dict) else ())
    for name in ("adapters", "datasets", "eval_datasets", "calibration"):
        specs = plan.get(name)
        for spec in specs if isinstance(specs, list) else []:
            if isinstance(spec, dict) and spec.get("path"):
                yield Path(str(spec["path"]))


def _some(names: Sequence[str], most: int = 2) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} + {len(names) - most}"


def _lines(*lines: str) -> tuple[str, ...]:
    return tuple(_cut(" ".join(str(line).split())) for line in lines if str(line).strip())


def _cut(text: str) -> str:
    """The end of a long name tells more than its middle."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2 - 1]}…{text[-LONGEST // 2 :]}"


def mermaid(graph: Graph) -> str:
    """The graph as a Mermaid flowchart; whatever the names hold, it stays text."""
    lines = ["flowchart TD"]
    for node in graph.nodes:
        opens, closes = SHAPES[node.kind]
        label = "<br/>".join(map(_quoted, node.lines))
        lines.append(f'  {node.id}{opens}"{label}"{closes}:::{node.kind}')
    lines += [f"  {before} --> {after}" for before, after in graph.edges]
    kinds = dict.fromkeys(node.kind for node in graph.nodes)
    return "\n".join([*lines, *(f"  classDef {kind} {STYLES[kind]}" for kind in kinds)])


def _quoted(text: str) -> str:
    """`text` for a quoted Mermaid label: what could be read as syntax, Markdown or HTML becomes `#NUMBER;`.

    A number with a point, or a dash, before a space begins a list, which Mermaid refuses.
    """
    safe = "".join(char if char.isalnum() or char in SAFE else f"#{ord(char)};" for char in text)
    for mark in ".-+":
        safe = safe.replace(f"{mark} ", f"#{ord(mark)}; ")
    return safe
