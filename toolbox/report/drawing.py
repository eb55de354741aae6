"""The pipeline drawn as SVG, for pages that load no script: what comes first stands on top (`runs report --html`)."""

import itertools
from collections.abc import Sequence

from toolbox.i18n import _
from toolbox.report.charts import WIDTH, clean, width_of
from toolbox.report.pipeline import Graph, Node

HEIGHT, GAP, MARGIN, BETWEEN, PADDING = 60, 38, 12, 20, 34
"""Of a box, between rows, around all, between boxes, and inside a box beside its text; in pixels."""
SMALLEST = 0.7
"""To which share of its size a narrow screen shrinks it; below that it scrolls."""
NARROW, ROOM = 4.0, 620
"""What an edge takes of a row that it passes, and how wide the boxes of a row may be together."""
ROUND = {"run": 6, "made": 30, "origin": 14, "data": 14}
"""Corners tell apart what colours do too."""


def drawing(graph: Graph) -> str:
    """The graph with its classes; colours are the page's."""
    rows, chains = _rows(graph)
    places: dict[str, tuple[float, float, float]] = {}
    for number, row in enumerate(rows):
        widths = [_width(node) for node in row]
        x = (WIDTH - sum(widths) - BETWEEN * (len(row) - 1)) / 2
        for node, width in zip(row, widths, strict=True):
            places[node.id] = (x, MARGIN + number * (HEIGHT + GAP), width)
            x += width + BETWEEN
    height = MARGIN * 2 + len(rows) * (HEIGHT + GAP) - GAP
    left = min((x for x, _y, _width in places.values()), default=0.0) - MARGIN
    width = WIDTH - 2 * left  # rows are centred
    parts = [_edge([places[id] for id in chain]) for chain in chains]
    parts += [_box(node, places[node.id]) for row in rows for node in row if node.lines]
    names = {node.id: node.lines[0] for node in graph.nodes}
    told = "; ".join(f"{names[before]} → {names[after]}" for before, after in graph.edges)
    return (
        f'<svg class="pipeline" viewBox="{left:.0f} 0 {width:.0f} {height}" width="{width:.0f}" '
        f'height="{height}" style="min-width:{width * SMALLEST:.0f}px" role="img" '
        f'aria-labelledby="pipeline-title pipeline-desc"><title id="pipeline-title">{clean(_("Pipeline"))}</title>'
        f'<desc id="pipeline-desc">{clean(told)}</desc>{"".join(parts)}</svg>'
    )


def _rows(graph: Graph) -> tuple[list[list[Node]], list[list[str]]]:
    """The nodes row by row, and each edge as the nodes that it goes through.

    An edge over several rows has a narrow place of its own in each of them, so that it passes beside the boxes.
    """
    rank = _ranks(graph)
    levels: list[list[Node]] = [[] for _level in range(max(rank.values(), default=-1) + 1)]
    for node in graph.nodes:
        levels[rank[node.id]].append(node)
    above: dict[str, list[str]] = {}
    chains = []
    for number, (before, after) in enumerate(graph.edges):
        passed = [f"e{number}-{level}" for level in range(rank[before] + 1, rank[after])]
        for level, id in enumerate(passed, rank[before] + 1):
            levels[level].append(Node(id, "run", ()))
        chains.append([before, *passed, after])
        for one, other in itertools.pairwise(chains[-1]):
            above.setdefault(other, []).append(one)
    place: dict[str, float] = {}
    for row in levels:
        row.sort(key=lambda node: _pull(above.get(node.id, []), place))
        place |= {node.id: (number + 1) / (len(row) + 1) for number, node in enumerate(row)}
    return levels, chains


def _ranks(graph: Graph) -> dict[str, int]:
    """The row of each node: below all that lead to it; what nothing leads to stands just above its first use, and a row
    that is too wide gives its last nodes to a row of their own."""
    rank: dict[str, int] = {}
    for node in graph.nodes:  # in the order of the work, so that what leads to a node comes before it
        before = [rank[source] for source, target in graph.edges if target == node.id and source in rank]
        level = max(before, default=-1) + 1
        while sum(map(_width, [node, *(other for other in graph.nodes if rank.get(other.id) == level)])) > ROOM:
            level += 1
        rank[node.id] = level
    for node in graph.nodes:
        if all(target != node.id for _source, target in graph.edges):
            after = [rank[target] for source, target in graph.edges if source == node.id]
            rank[node.id] = max(rank[node.id], min(after, default=rank[node.id] + 1) - 1)
    return rank


def _pull(above: list[str], place: dict[str, float]) -> float:
    """Where a node wants to stand: in the middle of what leads to it."""
    known = [place[id] for id in above if id in place]
    return sum(known) / len(known) if known else 0.5


def _width(node: Node) -> float:
    if not node.lines:
        return NARROW
    return min(WIDTH - 2 * MARGIN, max(112.0, PADDING + max(width_of(line) for line in node.lines)))


def _box(node: Node, place: tuple[float, float, float]) -> str:
    x, y, width = place
    lines = node.lines[:3]
    first = y + HEIGHT / 2 + 4.5 - 8.5 * (len(lines) - 1)
    texts = "".join(
        f'<text x="{x + width / 2:.1f}" y="{first + 17 * number:.1f}" text-anchor="middle" '
        f'class="{"value" if number else "label"}">{clean(line)}</text>'
        for number, line in enumerate(lines)
    )
    box = f'<rect class="{node.kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{HEIGHT}" '
    return f'{box}rx="{ROUND[node.kind]}"/>{texts}'


def _edge(places: Sequence[tuple[float, float, float]]) -> str:
    """A curve from the bottom of a box to the top of another, straight down beside those between, with its head."""
    x, y = places[0][0] + places[0][2] / 2, places[0][1] + HEIGHT
    drawn = f"M{x:.1f} {y:.1f}"
    for place in places[1:]:
        to, top = place[0] + place[2] / 2, place[1]
        middle = (y + top) / 2
        drawn += f" C{x:.1f} {middle:.1f} {to:.1f} {middle:.1f} {to:.1f} {top:.1f}"
        x, y = to, top + HEIGHT
        if place is not places[-1]:
            drawn += f" L{x:.1f} {y:.1f}"
    top = places[-1][1] - 1
    return f'<path class="edge" d="{drawn} M{x - 4:.1f} {top - 6:.1f} L{x:.1f} {top:.1f} L{x + 4:.1f} {top - 6:.1f}"/>'
