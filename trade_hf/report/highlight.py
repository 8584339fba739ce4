"""Colours for the Python that a program is written as. Nothing is executed."""

from __future__ import annotations

import re

from pygments import highlight
from pygments.filters import NameHighlightFilter
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from pygments.token import Name

from trade_hf.report.markup import Html, element, join, scrolling

_NAMES_OF_LINES = re.compile(r"\bv\d+\b")
_OPERATIONS = ["Aggregate", "LinearSequenceMap", "Map", "Select", "SelectorWidth", "SequenceMap", "numerical"]
_FORMATTER = HtmlFormatter(nowrap=True)


def code_html(code: str, label: str = "program", anchors: bool = False) -> Html:
    """Code in colours.

    With `anchors` the line of v3 has the id `v3`, so that the graph of the program can point at it, and is marked
    together with all else that is of v3 (`markup.script`): once on a page.
    """
    lines = []
    for text in highlighted(code):
        name = re.match(r'<span class="nv">(v\d+)</span>', text)
        own = {"id": name[1], "data_line": name[1], "tabindex": 0} if name and anchors else {}
        lines.append(element("span", text, class_="line", **own))
    return scrolling(element("pre", element("code", join(lines, "\n"))), label)


def highlighted(code: str) -> list[Html]:
    """Lines of code in spans with Pygments' classes; names of lines are variables (`nv`), operations functions."""
    text = code.rstrip("\n").encode("utf-8", "backslashreplace").decode("utf-8")
    lexer = PythonLexer(stripnl=False, ensurenl=False)
    lexer.add_filter(NameHighlightFilter(names=[*_NAMES_OF_LINES.findall(text), "program"], tokentype=Name.Variable))
    lexer.add_filter(NameHighlightFilter(names=_OPERATIONS, tokentype=Name.Function))
    lines = highlight(text, lexer, _FORMATTER).split("\n")
    return [Html(line) for line in lines[: text.count("\n") + 1]]
