"""What came of merges and exports: the proof, what was measured before and after, and hashes (a report's sections)."""

from typing import Any

from toolbox import units
from toolbox.i18n import N_, _
from toolbox.report import markdown, numbers, pipeline
from toolbox.report.markdown import code, plain
from toolbox.report.story import Story

ROLES = {"base": N_("Base model"), "adapter": N_("Adapter"), "output": N_("Output")}
"""What the weights of a merge are called."""
BASES = {
    "trained": N_("the base in 4 bits, as in training"),
    "dequantized": N_("the same, dequantised"),
    "original": N_("the original in 16 bits"),
}
"""The bases of an adapter that was trained on 4 bits."""


def proofs(story: Story) -> str:
    """The proof of each merge of the chain, check by check, of exports that merged first too."""
    parts = []
    for facts in story.of_verb("merge", "export"):
        result = facts.result if facts.verb == "merge" else facts.result.get("merge")
        if isinstance(result, dict) and (shown := [part for part in _proof(result) if part]):
            title = _("Step {number}: {run}").format(number=story.named(facts), run=plain(facts.run.id))
            parts += [f"### {title}", *shown]
    return markdown.section(_("Proof of the merge"), *parts)


def _proof(result: dict[str, Any]) -> list[str]:
    checks = [check for check in result.get("proof") or [] if isinstance(check, dict)]
    rows = [
        (plain(check.get("name", "")), "✓" if check.get("passed") else "✗", plain(check.get("detail", "")))
        for check in checks
    ]
    passed = sum(bool(check.get("passed")) for check in checks)
    told = _("{passed} of {count} checks hold.").format(passed=passed, count=len(checks)) if checks else ""
    table = markdown.table((_("Check"), _("Holds"), _("Detail")), rows) if rows else ""
    onto = [row for row in result.get("bases") or [] if isinstance(row, dict)]
    bases = markdown.table(onto_header(), [tuple(map(plain, row)) for row in onto_rows(onto)]) if onto else ""
    return [told, table, bases, _hashes(result.get("hashes"))]


def onto_header() -> tuple[str, ...]:
    return ("", _("Adapter on"), _("Logits differ from training by up to"), _("Perplexity of the rows"))


def onto_rows(bases: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A line for the model as it was trained, and one for each base that the adapter could be merged onto."""
    return [
        (
            "✓" if row.get("chosen") else "",
            _(BASES.get(str(row.get("base")), str(row.get("base")))),
            f"{row.get('max_abs_diff', 0):.3g}",
            f"{row.get('perplexity', 0):.4g}",
        )
        for row in bases
    ]


def exports(story: Story) -> str:
    """Each export of the chain, before and after."""
    parts = []
    for facts in story.of_verb("export"):
        if result := facts.result:
            header, rows = exported(result)
            notes = [f"- {plain(note)}" for note in result.get("notes") or []]
            parts += [f"### {plain(pipeline.step(facts))}", markdown.table(header, rows), "\n".join(notes)]
            parts.append(_hashes(result.get("hashes")))
    return markdown.section(_("Export"), *parts)


def exported(result: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(header, rows) of an export: the model before, and the export as each program that loaded it again found it."""
    header = ("", _("Size"), _("Perplexity"), _("Greedy answers equal"), _("Their tokens equal, from the beginning"))
    readers = [reader for reader in result.get("readers") or [] if isinstance(reader, dict)]
    before = numbers.number(result.get("perplexity_before"))
    rows: list[tuple[str, ...]] = [(_("Before"), units.size(result.get("bytes_before", 0)), before, "", "")]
    rows += [
        (
            _("After, by {reader}").format(reader=plain(str(reader.get("loaded_by", "?")))),
            units.size(result.get("bytes", 0)),
            numbers.number(reader.get("perplexity")),
            f"{reader.get('answers_equal', '?')} / {result.get('prompts', '?')}",
            f"{reader.get('answer_tokens_equal', '?')} / {reader.get('answer_tokens', '?')}",
        )
        for reader in readers
    ]
    return header, rows


def _hashes(hashes: Any) -> str:
    if not isinstance(hashes, dict):
        return ""
    rows = [
        (_(ROLES.get(role, plain(role))), code(name), code(digest))
        for role, digests in hashes.items()
        if isinstance(digests, dict)
        for name, digest in digests.items()
    ]
    table = markdown.table((_("Of"), _("File"), "SHA-256"), rows) if rows else ""
    return markdown.folded(_("Hashes of the weights"), table)
