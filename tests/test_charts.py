"""Charts: well-formed SVG whatever the labels and the numbers are."""

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolbox.report.charts import MOST_POINTS, WIDTH, Category, Series, dumbbell_chart, line_chart

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '</title><script>alert("x")</script>&\x00\x1b[31m 护士'


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_a_curve_has_a_title_labels_ticks_and_a_legend() -> None:
    svg = line_chart("损失", [Series("训练", [(1, 2.0), (100, 0.5)]), Series("验证", [(9, 1.0)])], "步", "交叉熵")
    assert {"损失", "训练", "验证", "步", "交叉熵"} <= set(texts(svg))
    root = ElementTree.fromstring(svg)
    assert root.find(f"{SVG}title").text == "损失"  # type: ignore[union-attr]
    assert root.find(f"{SVG}desc").text == "训练: 2 → 0.5; 验证: 1 → 1"  # type: ignore[union-attr]
    assert root.get("role") == "img"


def test_hostile_labels_stay_text() -> None:
    charts = [
        line_chart(HOSTILE, [Series(HOSTILE, [(1, 1)])], HOSTILE, HOSTILE),
        dumbbell_chart(HOSTILE, [Category(HOSTILE, 0.1, 0.2, 0.3, HOSTILE)], HOSTILE, HOSTILE, HOSTILE),
    ]
    for svg in charts:
        root = ElementTree.fromstring(svg)
        assert not list(root.iter(f"{SVG}script"))
        assert any("<script>" in text for text in texts(svg))


def test_what_is_not_finite_is_left_out() -> None:
    svg = line_chart(
        "t", [Series("a", [(1, math.nan), (2, math.inf), (3, 1.0)]), Series("b", [(1, math.nan)])], "x", "y"
    )
    assert "nan" not in svg
    assert "inf" not in svg
    assert "b" not in texts(svg)


def test_without_any_point_there_is_still_a_chart() -> None:
    assert texts(line_chart("t", [], "x", "y"))[-1]
    assert "t" in texts(dumbbell_chart("t", [], "before", "after"))


def test_long_curves_are_thinned_and_keep_their_end() -> None:
    svg = line_chart("t", [Series("a", [(step, float(step)) for step in range(100_001)])], "x", "y")
    points = re.search(r'<path d="M([^"]+)"', svg).group(1).split()  # type: ignore[union-attr]
    assert len(points) <= MOST_POINTS + 1
    assert points[-1].startswith(f"{WIDTH - 24:.1f},")


def test_a_dumbbell_goes_from_before_to_after() -> None:
    svg = dumbbell_chart("t", [Category("nurse", 0.9, 0.5), Category("driver", 0.1)], "before", "after", reference=0.5)
    circles = [c for c in ElementTree.fromstring(svg).iter(f"{SVG}circle") if c.get("cy", "").startswith(("9", "1"))]
    before, after, alone = (float(circle.get("cx", "")) for circle in circles)
    assert alone < after < before
    assert "nurse: 90% → 50%; driver: 10%" in svg


@given(st.lists(st.tuples(st.floats(0, 1e9), st.floats(allow_nan=True)), max_size=30), st.text())
@settings(max_examples=400, deadline=None)
def test_any_numbers_give_well_formed_svg_inside_its_frame(points: list[tuple[float, float]], name: str) -> None:
    svg = line_chart(name, [Series(name, points)], name, name)
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        pairs = [tuple(map(float, pair.split(","))) for pair in path.get("d", "")[1:].split()]
        assert all(0 <= x <= WIDTH and 0 <= y <= 420 for x, y in pairs)


@pytest.mark.parametrize("values", [(0.5, 0.5), (0.0, 0.0), (-3.0, 1e-12), (-1e308, 1e308)])
def test_an_axis_of_any_span_has_ticks(values: tuple[float, float]) -> None:
    svg = line_chart("t", [Series("a", [(1, values[0]), (2, values[1])])], "x", "y")
    assert len(texts(svg)) >= 6
