"""Colours for the Python that a program is written as. Nothing is executed."""

from __future__ import annotations

import io
import keyword
import re
import tokenize

from trade_hf.report.markup import Html, element, escape, join, scrolling

_NAMES_OF_LINES = re.compile(r"v\d+")


def code_html(code: str, label: str = "program", anchors: bool = False) -> Html:
    """Code in colours.

    With `anchors` the line of v3 has the id `v3`, so that the graph of the program can point at it: once on a page.
    """
    lines = []
    for text in highlighted(code):
        name = re.match(r'<span class="name">(v\d+)</span> ', text)
        lines.append(element("span", text, class_="line", id=name[1] if name and anchors else None))
    return scrolling(element("pre", element("code", join(lines, "\n"))), label)


def highlighted(code: str) -> list[Html]:
    """Lines of code with spans around keywords, names, numbers and strings. Text that is not Python is only escaped."""
    lines = code.rstrip("\n").split("\n")
    marks: list[list[tuple[int, int, str]]] = [[] for _ in lines]
    for token, before in _tokens(code):
        kind = _kind(token, before)
        if kind and token.start[0] == token.end[0]:
            marks[token.start[0] - 1].append((token.start[1], token.end[1], kind))
    return [_marked(line, spans) for line, spans in zip(lines, marks, strict=True)]


def _tokens(code: str) -> list[tuple[tokenize.TokenInfo, str]]:
    """Tokens, each with the text of the one before it."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(code).readline))
    except (tokenize.TokenError, SyntaxError):
        return []
    return list(zip(tokens, ["", *[token.string for token in tokens]], strict=False))


def _kind(token: tokenize.TokenInfo, before: str) -> str | None:
    match token.type:
        case tokenize.STRING:
            return "string"
        case tokenize.NUMBER:
            return "number"
        case tokenize.COMMENT:
            return "comment"
        case tokenize.NAME if keyword.iskeyword(token.string):
            return "keyword"
        case tokenize.NAME if _NAMES_OF_LINES.fullmatch(token.string) or token.string == "program":
            return "name"
        case tokenize.NAME if before == ".":
            return "attribute"
    return None


def _marked(line: str, spans: list[tuple[int, int, str]]) -> Html:
    parts: list[Html] = []
    end = 0
    for start, stop, kind in spans:
        parts += [escape(line[end:start]), element("span", line[start:stop], class_=kind)]
        end = stop
    return join([*parts, line[end:]])
