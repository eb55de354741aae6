"""The parameters that mattered: what differs from the defaults first, the rest folded away (a report's section)."""

from collections.abc import Iterator
from typing import Any

import msgspec

from toolbox import stages
from toolbox.facts import Facts
from toolbox.i18n import _
from toolbox.limits import Limits
from toolbox.recipe import Training
from toolbox.report import markdown, pipeline
from toolbox.report.markdown import code, plain
from toolbox.report.story import Story

OF_A_VERB = {
    "finetune": ("recipe", "why", "eval_rows", "chat_template"),
    "merge": ("dtype", "quantization", "onto", "mixture"),
    "export": ("format", "type", "dtype", "quantization", "settings"),
    "evaluate": ("dtype", "quantization", "metrics", "limit", "compare", "backend", "endpoint", "judge"),
    "serve": ("engine", "engine_why", "dtype"),
}
"""Fields of a plan that say how the work was to be done, beside its blocks."""
USUAL = {"quantization": "none", "onto": "dequantized", "compare": True}
BLOCKS = ("training", "options", "LoraConfig", "BitsAndBytesConfig", "limits")
LONGEST = 300


def parameters(story: Story) -> str:
    """For each run of the chain a table; defaults are folded away below it."""
    parts = []
    for facts in story.chain:
        changed, usual = split(facts)
        if changed or usual:
            parts.append(f"### {plain(f'{story.named(facts)}. {pipeline.step(facts)}')}")
            parts += [_table(changed), markdown.folded(_("As by default"), _table(usual))]
    return markdown.section(_("Parameters"), *parts)


def split(facts: Facts) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    """(name, value) of what differs from its default, or has none, and of what does not."""
    changed: list[tuple[str, Any]] = []
    usual: list[tuple[str, Any]] = []
    for name, value, default in _stated(facts):
        (usual if value == default else changed).append((name, value))
    return changed, usual


def _stated(facts: Facts) -> Iterator[tuple[str, Any, Any]]:
    """(name, value, default or NODEFAULT) of all that a plan states, in the libraries' own names."""
    plan = facts.plan
    for name in OF_A_VERB.get(facts.verb, ()):
        if plan.get(name) not in (None, "", [], {}):
            yield name, plan[name], USUAL.get(name, 0)
    others = plan.get("blocks")
    blocks = {name: plan.get(name) for name in BLOCKS} | (others if isinstance(others, dict) else {})
    for block, values in blocks.items():
        defaults = _defaults(block, values)
        for key, value in values.items() if isinstance(values, dict) else ():
            if value is not None and (block, key) != ("options", "stage"):
                yield f"{block}.{key}", value, defaults.get(key, msgspec.NODEFAULT)
    if "seed" in plan:
        yield "seed", plan["seed"], 42


def _defaults(block: str, values: Any) -> dict[str, Any]:
    """Of our own blocks; what goes to a library's class is stated only where it was chosen."""
    kinds: dict[str, Any] = {"training": Training, "limits": Limits}
    if block == "options" and isinstance(values, dict):
        kinds["options"] = stages.OPTIONS.get(str(values.get("stage")))
    fields = msgspec.structs.fields(kinds[block]) if kinds.get(block) else ()
    return {
        field.name: field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        for field in fields
    }


def _table(rows: list[tuple[str, Any]]) -> str:
    if not rows:
        return ""
    return markdown.table((_("Parameter"), _("Value")), [(code(name), _written(value)) for name, value in rows])


def _written(value: Any) -> str:
    """A value in few characters; sentences are no code."""
    if isinstance(value, dict):
        text = ", ".join(f"{key}={item}" for key, item in value.items())
    else:
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    text = text if len(text) <= LONGEST else text[:LONGEST] + "…"
    return plain(text) if " " in text and not isinstance(value, dict | list) else code(text)
