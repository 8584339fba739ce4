"""The figure: what is drawn where, read back from the SVG."""

from xml.etree import ElementTree

import pytest
from cases import CASES, LENGTH, VOCAB

from trade_hf.cli import main
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.transforms import permute, rotate
from trade_hf.drawing import draw_layers
from trade_hf.provenance import Component, LineOrigin, provenance
from trade_hf.rasp.text import parse, to_text

SVG = "{http://www.w3.org/2000/svg}"


def parts_of(root):
    """Middle of each part's box → its class, and the text in it."""
    children = [child for group in root.iterfind(f".//{SVG}g[@data-line]") for child in group]
    parts = {}
    for place, child in enumerate(children):
        if child.tag == f"{SVG}rect" and child.get("class") in ("head", "mlp"):
            middle = float(child.get("y")) + float(child.get("height")) / 2
            parts[middle] = child.get("class"), children[place + 1].text, children[place + 2].text
    return parts


def links_of(root):
    """For each line, by name: its links' ends, and whether they are dashed."""
    links = {}
    for group in root.iterfind(f".//{SVG}g[@class='line']"):
        name = group.find(f".//{SVG}tspan").text
        paths = group.findall(f"{SVG}path")
        links[name] = {float(path.get("d").split()[-1]): "of-select" in path.get("class") for path in paths}
    return links


def units_of(root, mlp_size):
    """The hidden units that each strip marks."""
    strips, start, width = [], 0.0, 0.0
    for rect in root.iterfind(f".//{SVG}rect"):
        if rect.get("class") == "strip":
            strips.append(set())
            start, width = float(rect.get("x")), float(rect.get("width"))
        elif rect.get("class") == "unit":
            first = round((float(rect.get("x")) - start) * mlp_size / width)
            strips[-1].update(range(first, first + round(float(rect.get("width")) * mlp_size / width)))
    return strips


def texts_of(root):
    return ["".join(text.itertext()) for text in root.iterfind(f".//{SVG}text")]


def drawn(program, weights, origins):
    return ElementTree.fromstring(draw_layers(program, weights, origins))


@pytest.mark.parametrize("change", [permute, rotate])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_links_lead_from_each_line_to_its_parts(case, change):
    weights = change(compile_program(case.program, VOCAB, LENGTH), 4)
    origins = provenance(case.program, weights)
    root = drawn(case.program, weights, origins)
    parts, links = parts_of(root), links_of(root)
    for origin in origins:
        found = sorted(parts[end][:2] for end in links[f"v{origin.line + 1}"])
        meant = {(part.kind, f"head {part.head}", len(part.units)) for part in origin.components}
        counted = {1: "1 unit"}
        assert found == sorted(
            (kind, head if kind == "head" else counted.get(size, f"{size} units")) for kind, head, size in meant
        )
        own = f".//{SVG}g[@data-line='v{origin.line + 1}'][@class='line']"
        assert len(root.findall(own)) == 1
        for end, is_dashed in links[f"v{origin.line + 1}"].items():
            assert f"v{origin.line + 1}" in parts[end][2].split()
            assert is_dashed == (case.program.lines[origin.line].op.text == "select")
    units = {part.units for origin in origins for part in origin.components if part.kind == "mlp"}
    assert {tuple(sorted(strip)) for strip in units_of(root, weights.mlp_size)} == units


def test_nothing_overlaps_or_leaves_the_page(samples):
    for seed, sample in enumerate(samples[:20]):
        weights = rotate(sample.compile(), seed)
        root = drawn(sample.spelled, weights, provenance(sample.spelled, weights))
        _, _, width, height = map(float, root.get("viewBox").split())
        code = root.findall(f".//{SVG}g[@class='line']/{SVG}text")
        heights = [float(text.get("y")) for text in code]
        assert all(b - a >= 15 for a, b in zip(heights, heights[1:], strict=False))
        assert max(len("".join(text.itertext())) for text in code) <= 30
        for rect in root.iterfind(f".//{SVG}rect"):
            right = float(rect.get("x", 0)) + float(rect.get("width"))
            assert right <= width and float(rect.get("y", 0)) + float(rect.get("height")) <= height


def test_it_is_told_in_words(samples):
    sample = samples[0]
    weights = rotate(sample.compile(), 1)
    origins = provenance(sample.spelled, weights)
    root = drawn(sample.spelled, weights, origins)
    assert root.get("role") == "group" and root[0].tag == f"{SVG}title" and root[1].tag == f"{SVG}desc"
    for origin in origins:
        assert f"v{origin.line + 1}: {origin}." in root[1].text


def test_heads_and_units_of_no_line_are_counted():
    program = CASES[2].program  # four layers: 12, 30, 10 and no hidden units of 30; a head in the first and the last
    weights = compile_program(program, VOCAB, LENGTH)
    rests = [text for text in texts_of(drawn(program, weights, provenance(program, weights))) if text.startswith("+ ")]
    assert rests == ["+ 18 units", "+ 1 head", "+ 1 head, 20 units", "+ 30 units"]
    rests = [text for text in texts_of(drawn(program, weights, [])) if text.startswith("+ ")]
    assert rests == ["+ 1 head, 30 units"] * 4


def test_tokens_that_look_like_markup_or_code_stay_text():
    table = {"<script>": "a, b", "rasp.x": "]]>", "\ud800\u2028": "&amp;", "'\"lambda x: ": "\x00"}
    program = parse(f"v1 = rasp.Map(lambda x: {table!r}.get(x), rasp.tokens)\nprogram = v1\n")
    weights = compile_program(program, tuple(table), 2)
    root = drawn(program, weights, provenance(program, weights))
    assert not [element for element in root.iter() if element.tag == f"{SVG}script"]
    shown = "".join("".join(text.itertext()) for text in root.findall(f".//{SVG}g[@class='line']/{SVG}text"))
    assert "'<script>': 'a, b'" in shown and "'rasp.x': ']]>'" in shown and "= Map(lambda x:" in shown


@pytest.mark.parametrize(
    "origin, message",
    [
        (LineOrigin(2, ()), "expected origins of lines 0 to 1, got line 2"),
        (LineOrigin(0, (Component(1, "head", head=0),)), "line 1: layer 1 head 0: no part of a model of 1 layers"),
        (LineOrigin(1, (Component(0, "mlp", units=(0, 99)),)), "line 2: layer 0 MLP units 0, 99: no part of a model"),
    ],
)
def test_parts_that_are_not_there_are_refused(origin, message):
    weights = compile_program(CASES[1].program, VOCAB, LENGTH)
    with pytest.raises(ValueError, match=message):
        draw_layers(CASES[1].program, weights, [origin])


def test_the_command_line_writes_it(tmp_path, capsys):
    model, figure = tmp_path / "model.safetensors", tmp_path / "layers.svg"
    program = CASES[1].program
    rotate(compile_program(program, VOCAB, LENGTH), 3).save(model)
    assert main(["decompile", str(model), "--figure", str(figure)]) == 0
    assert to_text(program) in capsys.readouterr().out
    assert set(links_of(ElementTree.fromstring(figure.read_text()))) == {"v1", "v2"}


def test_a_program_that_is_not_the_models_own_is_not_drawn(tmp_path, tiny_checkpoint, spoiled, capsys):
    model, figure = tmp_path / "model.safetensors", tmp_path / "layers.svg"
    spoiled.save(model)
    command = ["decompile", str(model), "--checkpoint", str(tiny_checkpoint), "--figure", str(figure)]
    assert main(command) == 1  # this checkpoint knows nothing
    printed = capsys.readouterr()
    assert "NOT THE MODEL'S PROGRAM" in printed.out and not figure.exists()
    assert printed.err.startswith(f"trade: {figure}: not drawn: ") and printed.err.count("\n") == 1
