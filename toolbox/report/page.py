"""A report as one HTML file that loads nothing: styles and pictures are in it, scripts are none."""

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from toolbox.i18n import _, language
from toolbox.report import charts
from toolbox.report.drawing import drawing
from toolbox.report.pipeline import Graph

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

STYLE = Path(__file__).with_name("page.css")
SVG = "{http://www.w3.org/2000/svg}"
DRAWN = {
    "svg", "g", "title", "desc", "rect", "line", "path", "circle", "ellipse", "polyline", "polygon", "text", "tspan",
}  # fmt: skip
"""What may be in a picture; everything else in one, scripts and links among it, is left out with all it holds."""
SAID = {
    "viewBox", "width", "height", "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "rx", "ry", "d", "points", "class",
    "transform", "text-anchor", "dominant-baseline", "font-size", "font-weight", "opacity", "role",
}  # fmt: skip
"""Its attributes. None of them can name an address or hold a script."""
FOLDED = re.compile(r"<details>\n<summary>([^\n]*)</summary>|(</details>)")
"""The only tags that our Markdown has."""


def page(text: str, graph: Graph, folder: Path) -> str:
    """The report `text`, whose pictures lie below `folder`, as a page; HTML in it stays text."""
    parser = _parser(graph, folder)
    tokens = parser.parse(text)
    title = next((_plain(tokens[place + 1]) for place, token in enumerate(tokens) if token.tag == "h1"), "")
    body = parser.renderer.render(tokens, parser.options, {})
    return (
        f'<!DOCTYPE html>\n<html lang="{"zh-CN" if language() == "zh" else "en"}">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f'<meta name="color-scheme" content="light dark">\n<title>{html.escape(title)}</title>\n'
        f"<style>\n{STYLE.read_text('utf-8')}{charts.STYLE}</style>\n</head>\n<body>\n"
        f"{_contents(tokens)}<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _parser(graph: Graph, folder: Path) -> "MarkdownIt":
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "autolink"])
    parser.core.ruler.push("report", _prepared)
    pictures = _Pictures(folder)

    def fence(self: Any, tokens: Sequence["Token"], place: int, options: Any, env: Any) -> str:
        token = tokens[place]
        if token.info == "mermaid":
            return _figure(drawing(graph))
        return f'<pre tabindex="0"><code>{html.escape(token.content)}</code></pre>\n'

    def image(self: Any, tokens: Sequence["Token"], place: int, options: Any, env: Any) -> str:
        return pictures.of(str(tokens[place].attrs.get("src", "")))

    def raw(self: Any, tokens: Sequence["Token"], place: int, options: Any, env: Any) -> str:
        return tokens[place].content

    for name, rule in (("fence", fence), ("image", image), ("report", raw)):
        parser.add_render_rule(name, rule)
    return parser


def _prepared(state: Any) -> None:
    """Name headings, give tables a caption and a frame that scrolls, and let folded parts fold."""
    tokens, made = state.tokens, []
    heading, number, place = "", 0, 0
    while place < len(tokens):
        token = tokens[place]
        following = tokens[place + 1] if place + 1 < len(tokens) else token
        folded = FOLDED.fullmatch(following.content) if token.type == "paragraph_open" else None
        if folded:  # a paragraph of its own: its opening, its text and its end
            made.append(_raw(_fold(folded)))
            place += 3
            continue
        if token.type == "heading_open":
            number += 1
            token.attrSet("id", f"part-{number}")
            heading = html.escape(_plain(following))
        elif token.type == "th_open":
            token.attrSet("scope", "col")
        made += _framed(token, heading)
        place += 1
    state.tokens = made


def _framed(token: "Token", heading: str) -> list["Token"]:
    """A table's ends with what stands around it; another token as it is."""
    if token.type == "table_open":
        opened = f'<div class="scroll" role="region" aria-label="{heading}" tabindex="0">'
        return [_raw(opened), token, _raw(f"<caption>{heading}</caption>")]
    return [token, _raw("</div>\n")] if token.type == "table_close" else [token]


def _fold(found: re.Match[str]) -> str:
    if found[2]:
        return "</details>\n"
    said = html.escape(found[1], quote=False)
    return "<details><summary>" + re.sub(r"&lt;(/?code)&gt;", r"<\1>", said) + "</summary>\n"


def _raw(content: str) -> "Token":
    from markdown_it.token import Token

    return Token("report", "", 0, content=content, block=True)


def _plain(token: "Token") -> str:
    """The text of an inline token, without its marks."""
    return "".join(child.content for child in token.children or []) if token.children else token.content


def _contents(tokens: "Sequence[Token]") -> str:
    """Links to the sections."""
    links = [
        f'<li><a href="#{token.attrs["id"]}">{html.escape(_plain(tokens[place + 1]))}</a></li>'
        for place, token in enumerate(tokens)
        if token.type == "heading_open" and token.tag == "h2"
    ]
    return f'<nav aria-label="{html.escape(_("Contents"))}"><ul>{"".join(links)}</ul></nav>\n' if links else ""


def _figure(svg: str) -> str:
    return f'<figure tabindex="0">{svg}</figure>\n'


class _Pictures:
    """The charts of a report, put into the page with ids of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder.resolve(), 0

    def of(self, source: str) -> str:
        path = (self._folder / source).resolve()
        if path.suffix != ".svg" or not path.is_relative_to(self._folder):
            return ""
        self._count += 1
        try:
            return _figure(inlined(path.read_text("utf-8"), f"chart-{self._count}"))
        except (OSError, UnicodeDecodeError, ElementTree.ParseError):
            return ""


def inlined(svg: str, name: str) -> str:
    """A picture with nothing but shapes and texts in it, and ids that begin with `name`.

    Its own style is left out: the page has that of all charts. Raises ParseError for what is no XML, or has entities.
    """
    if "<!" in svg.replace("<!--", ""):
        raise ElementTree.ParseError("entities")
    root = ElementTree.fromstring(svg)
    _cleaned(root)
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
    described = [child for child in root if child.tag in ("title", "desc")]
    for child in described:
        child.set("id", f"{name}-{child.tag}")
    root.set("aria-labelledby", " ".join(str(child.get("id")) for child in described))
    return ElementTree.tostring(root, encoding="unicode")


def _cleaned(element: ElementTree.Element) -> None:
    for attribute in set(element.attrib) - SAID:
        del element.attrib[attribute]
    for child in list(element):
        if isinstance(child.tag, str) and child.tag.startswith(SVG) and child.tag.removeprefix(SVG) in DRAWN:
            _cleaned(child)
        else:
            element.remove(child)
