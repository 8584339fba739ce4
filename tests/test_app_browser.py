"""The demo in a real browser: by mouse and by keyboard, narrow and wide, light and dark; nothing is asked of others."""

from contextlib import contextmanager, suppress

import pytest
from playwright.sync_api import TimeoutError

from trade_hf.app.examples import EXAMPLES
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.transforms import permute
from trade_hf.rasp.text import parse

START = "Compile, scramble, decompile"
TABS = ("Layers", "Attention", "Proof", "Weights", "Tried", "Keep")


@pytest.fixture
def opened(browser, demo, request):
    """The page at a width and in a colour scheme; what it complained of or asked others for must be nothing in the
    end."""
    width, scheme = getattr(request, "param", (1440, "light"))
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(120_000)
    page, seen = context.new_page(), []
    page.on("console", lambda message: seen.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on("request", lambda sent: None if sent.url.startswith((demo, "data:", "blob:")) else seen.append(sent.url))
    page.goto(demo)
    ready = page.get_by_role("status").get_by_text("Ready.")
    ready.wait_for(timeout=300_000)  # until then the first example may take the place of what is typed
    yield page
    context.close()
    assert seen == []


def lead(page):
    return page.locator(".verdict").first


@contextmanager
def waited(page):
    """Until what was begun within is done, or refused."""
    page.evaluate("document.querySelector('[role=status]').textContent = ''")
    yield
    page.wait_for_function("/^(Done|Not done)/.test(document.querySelector('[role=status]').textContent)")


def show_heads(page, tokens):
    """On a busy machine the answer's own tokens may still come in after these were typed, and take their place."""
    shown = page.get_by_text(f"What the heads attend to on [{tokens}]")
    for _ in range(4):
        page.get_by_label("Input: tokens").fill(tokens)
        page.get_by_role("button", name="Show").click()
        with suppress(TimeoutError):
            return shown.wait_for(timeout=10_000)
    raise AssertionError(f"the heads were never shown on [{tokens}]")


SIZES = [(390, "light"), (390, "dark"), (1440, "light"), (1440, "dark")]


@pytest.mark.parametrize("opened", SIZES, indirect=True)
def test_it_fits_narrow_and_wide_windows_in_light_and_dark(opened, request):
    width, scheme = request.node.callspec.params["opened"]
    assert "identical weights" in lead(opened).inner_text()
    for tab in TABS:
        opened.get_by_role("tab", name=tab).click()
        assert opened.evaluate("document.documentElement.scrollWidth") == width, tab
    color = opened.evaluate("getComputedStyle(document.querySelector('.trade pre')).color")
    assert (color == "rgb(28, 32, 36)") == (scheme == "light")
    assert opened.evaluate("[...document.images].every(image => image.naturalWidth)")


@pytest.mark.parametrize("opened", SIZES, indirect=True)
def test_a_line_is_marked_in_all_tabs(opened):
    line = opened.locator("pre .line#v2")
    line.hover()
    for own in (".graph .node", ".trade-layers .line", ".trade-layers g:has(.head)", ".trade-layers g:has(.mlp)"):
        assert opened.locator(f"{own}.lit[data-line]").count(), own
    assert opened.locator(".lit:not([data-line~=v2])").count() == 0
    opened.locator(".graph .node[data-line=v3]").hover()
    assert opened.locator("pre .line.lit").get_attribute("id") == "v3"
    line.click()
    for tab, own in (("Attention", "figure"), ("Attention", "th > span"), ("Weights", ".parts path")):
        opened.get_by_role("tab", name=tab).click()
        opened.locator(f"{own}[data-line~=v2].kept").first.wait_for()
        assert opened.locator(f"{own}.kept:not([data-line~=v2])").count() == 0
    opened.get_by_label("Histogram").check()
    opened.locator("pre", has_text="program = v2").first.wait_for()
    opened.locator(".kept").first.wait_for(state="detached")  # they were lines of another program


@pytest.mark.parametrize("opened", SIZES, indirect=True)
def test_weights_are_large_enough_to_read_and_scroll_in_their_own_box(opened, request):
    opened.get_by_role("tab", name="Weights").click()
    boxes = opened.locator(".maps .scroll")
    boxes.first.wait_for()
    found = boxes.evaluate_all(
        "all => all.map(box => [box.clientWidth, box.scrollWidth, box.clientHeight, box.scrollHeight,"
        "box.querySelector('img').width / box.querySelector('img').naturalWidth])"
    )
    assert min(cell for *_, cell in found) >= 12
    width = request.node.callspec.params["opened"][0]
    assert all(wide < width and high <= 720 for wide, _, high, *_ in found)
    assert any(wide < whole for wide, whole, *_ in found) == (width == 390)
    assert opened.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("opened", SIZES, indirect=True)
def test_a_line_is_silenced(opened, request):
    opened.get_by_role("tab", name="Attention").click()
    opened.get_by_label("v2", exact=True).check()
    opened.get_by_text("v2 is layer 0 head 0").wait_for()
    box = opened.get_by_role("region", name="the output with v2 silenced")
    assert box.locator("tbody tr").count() == 4 and box.get_by_text("≠").count() > 0
    assert opened.evaluate("document.documentElement.scrollWidth") == request.node.callspec.params["opened"][0]
    opened.get_by_label("Input: tokens").fill("2, 2")
    opened.get_by_role("button", name="Show").click()
    opened.get_by_text("the model's output on [2, 2]").wait_for()
    opened.get_by_label("v1", exact=True).check()
    opened.get_by_text("v1 has no part of its own").wait_for()
    assert box.count() == 0


def test_an_example_is_there_at_once_and_a_scramble_decompiles(opened):
    opened.get_by_label("Histogram").check()
    opened.wait_for_function("document.querySelector('.trade pre').innerText.includes('program = v2')")
    opened.get_by_label("none").check()
    with waited(opened):
        opened.get_by_role("button", name=START).click()
    opened.locator(".verdict", has_text="identical weights").first.wait_for()
    opened.get_by_role("tab", name="Weights").click()
    opened.get_by_text("After the scramble").wait_for(state="detached")
    opened.get_by_label("permute").check()
    with waited(opened):
        opened.get_by_role("button", name=START).click()
    opened.get_by_text("After the scramble").wait_for()
    opened.get_by_role("tab", name="Attention").click()
    show_heads(opened, "4, 4, 2")
    opened.get_by_label("Input: tokens").fill("7")
    opened.get_by_role("button", name="Show").click()
    opened.get_by_text("expected tokens of 0, 1, 2, 3, 4, got 7").wait_for()


@pytest.mark.parametrize("opened", [(390, "light"), (1440, "dark")], indirect=True)
def test_a_link_holds_program_and_settings(opened, demo):
    opened.get_by_label("Vocabulary").fill("a, b, c")
    opened.get_by_label("rotate").check()
    with waited(opened):
        opened.get_by_role("button", name=START).click()
    opened.get_by_role("tab", name="Keep").click()
    opened.get_by_role("link", name="link with this program").click()
    opened.wait_for_url("**/?code=*")
    opened.get_by_role("status").get_by_text("Done in").wait_for()
    assert opened.get_by_label("Vocabulary").input_value() == "a, b, c"
    assert opened.get_by_label("rotate").is_checked()


def test_a_random_program_is_decompiled(opened):
    lead(opened).wait_for()
    before = opened.locator("textarea").first.input_value()
    opened.get_by_role("button", name="A random program").click()
    opened.wait_for_function("before => document.querySelector('textarea').value !== before", arg=before)
    with waited(opened):
        opened.get_by_role("button", name=START).click()
    opened.locator(".verdict", has_text="Proven").first.wait_for()


def test_the_program_is_copied(opened):
    opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
    lead(opened).wait_for()
    opened.get_by_role("button", name="Copy the program").click()
    opened.get_by_role("button", name="Copied").wait_for()
    assert opened.evaluate("navigator.clipboard.readText()").startswith("from tracr.rasp import rasp\n")


def test_the_left_column_stays_in_sight(opened):
    lead(opened).wait_for()
    opened.get_by_role("tab", name="Weights").click()
    opened.mouse.move(1000, 400)
    opened.mouse.wheel(0, 600)
    opened.wait_for_function("window.scrollY > 200")
    assert opened.get_by_role("button", name=START).bounding_box()["y"] > 0


def test_files_good_and_bad(opened, tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04hello")
    permute(compile_program(parse(EXAMPLES[1].code), ("a", "b"), 4), 0).save(tmp_path / "good.safetensors")
    opened.get_by_role("tab", name="A model file").click()
    for name, words in (("bad", "a pickle or an archive, which is never opened"), ("good", "identical weights")):
        opened.locator("input[type=file]").set_input_files(tmp_path / f"{name}.safetensors")
        opened.get_by_text(f"{name}").first.wait_for()
        with waited(opened):
            opened.get_by_role("button", name="Decompile the file").click()
        opened.locator(".verdict", has_text=words).first.wait_for()
        assert opened.get_by_role("tab", name="Proof").is_visible() == (name == "good")
        if name == "bad":
            opened.get_by_label("Clear").click()


def test_everything_is_done_by_keyboard(opened):
    def tab_to(wanted):
        for _ in range(40):
            opened.keyboard.press("Tab")
            if opened.evaluate(f"(document.activeElement.{wanted[0]} || '').includes('{wanted[1]}')"):
                return
        raise AssertionError(f"not reached: {wanted}")

    tab_to(("value", "rasp.Select"))
    opened.keyboard.press("Control+A")
    opened.keyboard.type("program = rasp.Map(lambda x: x + 1, rasp.tokens)")
    tab_to(("innerText", START))
    with waited(opened):
        opened.keyboard.press("Enter")
    opened.locator(".trade pre", has_text="rasp.Map(lambda x: x + 1, rasp.tokens)").first.wait_for()
    tab_to(("innerText", "Layers"))
    tab_to(("innerText", "Attention"))
    opened.keyboard.press("Enter")
    tab_to(("value", "3, 1, 0, 4"))
    opened.keyboard.press("Control+A")
    opened.keyboard.type("2, 2")
    opened.keyboard.press("Enter")
    opened.get_by_text("What the heads attend to on [2, 2]").wait_for()
