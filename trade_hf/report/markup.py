"""HTML and SVG as text. Whatever is not `Html` is escaped, so that tokens, names and reasons can hold anything."""

from __future__ import annotations

import base64
import functools
from collections.abc import Iterable
from pathlib import Path

import markupsafe
from markupsafe import Markup

from trade_hf.rasp.functions import Value

_VOID = ("col", "img", "link", "meta")
MAX_SHOWN = 24  # characters of a value that are shown


Html = Markup  # text that is HTML or SVG already


def escape(value: object) -> Html:
    """Text as HTML; lone surrogates, which no file can hold, as `\\ud800`."""
    if isinstance(value, Html):
        return value
    return markupsafe.escape(str(value).encode("utf-8", "backslashreplace").decode("utf-8"))


def join(parts: Iterable[object], by: str = "") -> Html:
    """Parts in a row, each escaped unless it is Html."""
    return Html(by).join(map(escape, parts))


def element(name: str, /, *children: object, **attributes: object) -> Html:
    """`<name attributes>children</name>`, escaped. `class_` is written class, `aria_label` aria-label; None is left
    out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{given}>" + ("" if name in _VOID else f"{join(children)}</{name}>"))


def table(
    head: Iterable[object], rows: Iterable[Iterable[object]], caption: object = None, label: str = "table"
) -> Html:
    """A table in a box that scrolls; the first cell of each row is its heading. Of one without a caption, `label` names
    the box."""
    body = []
    for first, *others in rows:
        body.append(element("tr", element("th", first, scope="row"), *[element("td", cell) for cell in others]))
    heading = element("thead", element("tr", *[element("th", cell, scope="col") for cell in head]))
    return scrolling(
        element("table", *([element("caption", caption)] if caption else []), heading, element("tbody", *body)),
        str(caption or label),
    )


def scrolling(content: Html, label: str) -> Html:
    """A box that scrolls sideways where the page is narrow, by keyboard too."""
    return element("div", content, class_="scroll", tabindex=0, role="region", aria_label=label)


def definitions(pairs: Iterable[tuple[object, object]]) -> Html:
    """Terms, each with what it is."""
    return element("dl", *[element("div", element("dt", term), element("dd", what)) for term, what in pairs])


def shown(value: Value | None, limit: int = MAX_SHOWN) -> str:
    """A token or value as a short label: strings without quotes, what cannot be printed as escapes."""
    text = repr(value)[1:-1] if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def listed(values: Iterable[Value | None]) -> str:
    """Values as a Python list, each cut to `MAX_SHOWN`; fractions to four places."""
    return "[" + ", ".join(short(value) for value in values) + "]"


def short(value: Value | None) -> str:
    """A value in Python, cut to `MAX_SHOWN`; fractions to four places."""
    text = f"{round(value, 4) + 0.0:g}" if isinstance(value, float) else repr(value)  # + 0.0: no -0
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def download(content: str | bytes, name: str, kind: str) -> Html:
    """A link that saves a text or bytes."""
    content = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    data = base64.b64encode(content).decode()
    return element("a", f"save {name}", download=name, href=f"data:{kind};base64,{data}")


@functools.cache
def style() -> Html:
    """The style sheet that all parts need, once on a page."""
    return Html(f"<style>{Path(__file__).with_name('style.css').read_text(encoding='utf-8')}</style>")


@functools.cache
def script() -> str:
    """The script that marks elements of the same line together, once on a page: those with `data_line`, the names of
    lines with spaces between (`link.js`)."""
    return Path(__file__).with_name("link.js").read_text(encoding="utf-8")


def block(*children: object) -> Html:
    """A part that stands alone, in a notebook say: with its style."""
    return element("div", style(), *children, class_="trade")
