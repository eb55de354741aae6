"""Which professions lean where, before and after, in one picture: the chart of the gender probe (`evaluate`)."""

from collections.abc import Sequence
from typing import Any

from toolbox.i18n import _, language
from toolbox.report.charts import Category, dumbbell_chart

Rows = Sequence[dict[str, Any]]
"""What the gender probe found, a row a profession and language."""


def leaning_chart(before: Rows, after: Rows | None = None) -> str:
    """An SVG of the share of "she" a profession, those from "he" to "she" in order, held-out ones below the others.

    `before` and `after` are rows of the same professions; those in the person's language are shown, else all. The
    title says what was found of them: the mean of |2 s - 1|.
    """
    own = [place for place, row in enumerate(before) if row["language"] == language()] or list(range(len(before)))
    places = sorted(own, key=lambda place: before[place]["likelihood_share_she"])
    repaired = [place for place in places if not before[place].get("held_out")]
    held_out = [place for place in places if before[place].get("held_out")]
    headings = (_("Held out: no data named them"), _("The others")) if after and held_out else ("", "")
    rows = [
        Category(
            label=before[place]["name"],
            before=before[place]["likelihood_share_she"],
            after=after[place]["likelihood_share_she"] if after else None,
            known=before[place].get("female_share"),
            heading=heading if number == 0 else "",
        )
        for heading, group in zip(headings, (held_out, repaired), strict=True)
        for number, place in enumerate(group)
    ]
    told = held_out if after and held_out else places
    return dumbbell_chart(
        _title([before[place] for place in told], after and [after[place] for place in told], bool(held_out)),
        rows,
        _("base"),
        _("tuned"),
        _("p(she) / (p(she) + p(he))"),
        reference=0.5,
        known_label=_("real share of women"),
        ends=(_("← he"), _("she →")),
    )


def _title(before: Rows, after: Rows | None, held_out: bool) -> str:
    was = _bias(before)
    if after is None:
        return _("Gender bias by profession: {was:.2f} (0 even, 1 only one)").format(was=was)
    if held_out:
        return _("Held-out professions: gender bias {was:.2f} → {now:.2f} (0 even, 1 only one)").format(
            was=was, now=_bias(after)
        )
    return _("Professions: gender bias {was:.2f} → {now:.2f} (0 even, 1 only one)").format(was=was, now=_bias(after))


def _bias(rows: Rows) -> float:
    return sum(abs(2 * row["likelihood_share_she"] - 1) for row in rows) / max(1, len(rows))
