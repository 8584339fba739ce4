"""A report in a real browser, from disk, with the network off."""

from contextlib import contextmanager

import pytest
from test_trained_report import REVERSE, of

from trade_hf.certificate import Certificate, recheck
from trade_hf.compiled.compiler import compile_program
from trade_hf.decompiler import decompile
from trade_hf.provenance import provenance
from trade_hf.rasp.text import parse
from trade_hf.report.page import report
from trade_hf.report.trained import report as trained_report

TOKENS = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "plain")
CODE = """v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)
v2 = rasp.SelectorWidth(v1)
v3 = rasp.Select(v2, v2, rasp.Comparison.LT)
v4 = rasp.SelectorWidth(v3)
program = rasp.SequenceMap(lambda x, y: x - y, v2, v4)"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    weights = compile_program(parse(CODE), TOKENS, 4)
    path = tmp_path_factory.mktemp("report") / "report.html"
    result = decompile(weights)
    text = report(result, weights, TOKENS[0], provenance(result.program, weights))
    path.write_text(text, encoding="utf-8")
    return path, weights


@contextmanager
def opened_at(browser, path, width=1440, scheme="light"):
    """The page at a width and in a colour scheme; what it complained of or asked for must be nothing in the end."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page, seen = context.new_page(), []
    page.on("console", lambda message: seen.append(message.text))
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on("dialog", lambda dialog: (seen.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda sent: None if sent.url.startswith(("file:", "data:")) else seen.append(sent.url))
    page.goto(path.as_uri())
    yield page
    context.close()
    assert seen == []


@pytest.fixture
def opened(browser, written, request):
    with opened_at(browser, written[0], *getattr(request, "param", ())) as page:
        yield page


@pytest.fixture(scope="module")
def of_trained(tmp_path_factory):
    result, (model, domain) = of(REVERSE)
    path = tmp_path_factory.mktemp("report") / "trained.html"
    path.write_text(trained_report(result, model, domain, "reverse"), encoding="utf-8")
    return path


SIZES = [(390, "light"), (390, "dark"), (1440, "light"), (1440, "dark")]


@pytest.mark.parametrize("opened", SIZES, indirect=True)
def test_it_fits_narrow_and_wide_windows_in_light_and_dark(opened, request):
    width, scheme = request.node.callspec.params["opened"]
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    assert opened.locator("iframe, [onerror]").count() == 0 and opened.locator("script").count() == 1
    assert opened.locator("h1").inner_text() == f"Decompiled: {TOKENS[0]}"
    background = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    pictures = opened.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert pictures and all(pictures)


def test_everything_is_reached_by_keyboard(opened):
    reached = []
    while "summary" not in reached and len(reached) < 80:
        opened.keyboard.press("Tab")
        reached.append(
            opened.evaluate("document.activeElement.getAttribute('href') ?? document.activeElement.localName")
        )
    assert [target for target in reached if target.startswith("#")] == ["#v1", "#v2", "#v3", "#v4", "#v5"]
    assert reached[-1] == "summary" and reached.count("div") == 7  # boxes that scroll
    assert reached.count("span") == 5  # lines of the code
    opened.keyboard.press("Enter")
    assert opened.locator("details[open] pre").first.is_visible()
    opened.locator("a[href='#v3']").focus()
    opened.keyboard.press("Enter")
    assert "v3 = rasp.Select" in opened.locator(":target").inner_text()


KINDS = {
    "code": "pre .line",
    "data flow": ".graph .node",
    "line beside the layers": ".trade-layers .line",
    "part of a layer": ".trade-layers [data-line]:not(.line)",
    "attention": "figure[data-line]",
    "weights": ".parts path",
    "values": "th > span",
}


def names_of(page, kind=""):
    """The lines of the program that each element of a class is of."""
    found = page.locator(f"[data-line]{kind}").evaluate_all("all => all.map(one => one.dataset.line.split(' '))")
    return [set(names) for names in found]


@pytest.mark.parametrize("opened", SIZES, indirect=True)
@pytest.mark.parametrize("sort", KINDS)
def test_what_is_of_the_same_line_is_marked_together(opened, sort):
    element = opened.locator(f"{KINDS[sort]}[data-line~='v2']").first
    names = set(element.get_attribute("data-line").split())
    element.hover(force=True)
    assert all(opened.locator(f"{other}.lit").count() for other in KINDS.values())
    marked = names_of(opened, ".lit")
    assert marked == [own for own in names_of(opened) if names & own]
    element.click(force=True)
    opened.mouse.move(0, 0)
    assert names_of(opened, ".kept") == marked and not names_of(opened, ".lit")
    opened.keyboard.press("Escape")
    assert not names_of(opened, ".kept")


def test_lines_are_marked_by_keyboard(opened):
    line = opened.locator("pre .line#v2")
    line.focus()
    marked = names_of(opened, ".lit")
    assert len(marked) > 6 and all("v2" in own for own in marked)
    opened.keyboard.press("Enter")
    opened.keyboard.press("Tab")
    assert names_of(opened, ".kept") == marked and all("v3" in own for own in names_of(opened, ".lit"))
    opened.keyboard.press("Enter")
    assert names_of(opened, ".kept") == names_of(opened, ".lit")
    opened.keyboard.press("Enter")
    assert not names_of(opened, ".kept")


def test_the_certificate_that_it_saves_holds(opened, written, tmp_path):
    with opened.expect_download() as download:
        opened.get_by_text("save certificate.json").click()
    download.value.save_as(tmp_path / "certificate.json")
    certificate = Certificate.from_json((tmp_path / "certificate.json").read_text())
    assert recheck(certificate, written[1]).summary == "identical weights"


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_the_lines_of_a_trained_model_are_seen_whole_on_a_wide_page(browser, of_trained, width, scheme):
    with opened_at(browser, of_trained, width, scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == width
        box = page.get_by_role("region", name="where each line is")
        assert box.get_by_role("columnheader").count() == 7 and box.locator("caption").count() == 0
        assert (box.evaluate("box => box.scrollWidth <= box.clientWidth")) or width < 1440
