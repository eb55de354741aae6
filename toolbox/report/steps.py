"""The steps of a chain, its pipeline, and the command lines that do all of it again (a report's sections)."""

from toolbox import again, units
from toolbox.chains import Origin
from toolbox.facts import Facts
from toolbox.i18n import _
from toolbox.report import markdown, numbers, pipeline
from toolbox.report.markdown import code, plain
from toolbox.report.publishing import HOME
from toolbox.report.story import Story
from toolbox.report.words import SOURCES, STATES


def drawn(story: Story) -> str:
    """The pipeline, as Mermaid."""
    return markdown.section(_("Pipeline"), markdown.block(pipeline.mermaid(story.graph), "mermaid"))


def steps(story: Story) -> str:
    """What was fetched and what was run, with state, moment and duration."""
    fetched = [
        ("", _("Download"), code(story.hide(origin.name)), plain(_(SOURCES.get(origin.source, origin.source))),
         numbers.minute(origin.fetched_at), "")
        for origin in story.origins
        if origin.fetched_at
    ]  # fmt: skip
    rows = [
        (
            story.named(facts),
            f"**{plain(pipeline.step(facts))}**" if facts.run.id == story.run.id else plain(pipeline.step(facts)),
            code(facts.run.id),
            numbers.unbroken(_(STATES.get(facts.status.state, facts.status.state)).partition(":")[0]),
            numbers.minute(facts.status.started_at) if facts.status.started_at else "",
            units.duration(facts.status.elapsed_s) if facts.status.finished else "",
        )
        for facts in story.chain
    ]
    header = ("#", _("What"), _("Run"), _("State"), _("Begun"), _("Took"))
    return markdown.section(_("Steps of the chain"), markdown.table(header, [*fetched, *rows]))


def repeated(story: Story) -> str:
    """One line that does all of it from this report, and the line of each step."""
    lines = [again.line(*_words(facts)) for facts in story.chain if facts.plan]
    if not lines:
        return ""
    fetched = [_download(origin) for origin in story.origins if origin.repository]
    return markdown.section(
        _("Run it again"),
        _("All of it, from this report, with nothing to edit; every number is compared:"),
        markdown.block(again.line("runs reproduce", "report.md"), "bash"),
        _(
            "Or step by step, decided anew on whatever machine it runs; {home} is the folder that holds everything:"
        ).format(home=code(HOME)),
        markdown.block("\n".join(fetched + lines), "bash"),
    )


def _download(origin: Origin) -> str:
    kind = ["--type", "dataset"] if origin.kind == "dataset" else []
    return again.line("download", origin.repository, *kind, "--source", origin.source, "--revision", origin.revision)


def _words(facts: Facts) -> list[str]:
    """The words of a step; where a merge goes by itself need not be said."""
    words = again.words(facts.verb, facts.plan)
    output = str(facts.plan.get("output", ""))
    if facts.verb == "merge" and output == f"{HOME}/models/merged/{facts.plan.get('run')}":
        return words[: words.index("--output")]
    return words
