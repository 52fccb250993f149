"""The runbook as a page: `docs/runbook.md`, with the anchors that alerts and stories link to.

Needs no token: it says nothing of this installation. Links to other pages of the documentation are
left as words, since the service does not serve those.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

HERE = Path(__file__).parent
# In a wheel beside this module, in a checkout where people read it.
PLACES = (HERE / "runbook.md", HERE.parents[1] / "docs" / "runbook.md")


def source() -> str:
    return next(path for path in PLACES if path.exists()).read_text(encoding="utf-8")


@cache
def as_html() -> Markup:
    parser = MarkdownIt("commonmark", {"html": False})
    tokens = parser.parse(source())
    for heading, words in pairwise(tokens):
        if heading.type == "heading_open":
            heading.attrSet("id", slug(words.content))
    for token in tokens:
        token.children = _without_foreign_links(token.children or ())
    rendered: str = parser.renderer.render(tokens, parser.options, {})
    return Markup(rendered)  # noqa: S704 - the project's own page, with HTML in it switched off


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it too."""
    return heading.strip().lower().replace(" ", "-")


def _without_foreign_links(tokens: Sequence[Token]) -> list[Token]:
    kept: list[Token] = []
    foreign = False
    for token in tokens:
        if token.type == "link_open":
            foreign = not str(token.attrGet("href") or "").startswith("#")
        if not (foreign and token.type in ("link_open", "link_close")):
            kept.append(token)
    return kept
