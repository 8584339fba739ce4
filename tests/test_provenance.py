"""Each line's heads and hidden units are found in any basis and order, and what is wrong is found out by ablation."""

import json
from dataclasses import replace
from functools import partial

import pytest
from cases import CASES, LENGTH, VOCAB

from dataset_builder.library import library_programs
from dataset_builder.origins import true_places
from trade_hf.cli import main
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.transforms import permute, rotate
from trade_hf.provenance import confirm, provenance
from trade_hf.rasp.text import parse, to_text


def places(origins):
    return {o.line: {(part.kind, part.layer, place) for part in o.components for place in part.places} for o in origins}


def check(program, vocab, max_seq_len, change):
    compiled = compile_program(program, vocab, max_seq_len)
    model, truth = change(compiled), true_places(program, compiled, change)
    origins = provenance(program, model)
    found = places(origins)
    assert {line: found[line] for line in truth} == truth
    assert [origin.line for origin in origins] == program.live_lines
    return model, origins


@pytest.mark.parametrize("change", [permute, rotate])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_table_of_cases(case, change):
    model, origins = check(case.program, VOCAB, LENGTH, partial(change, seed=4))
    assert all(confirm(case.program, model, origins))


def test_random_programs(samples):
    for seed, sample in enumerate(samples[:30]):
        check(sample.spelled, sample.vocab, sample.max_seq_len, partial((permute, rotate)[seed % 2], seed=seed))


@pytest.mark.parametrize("item", [item for item in library_programs() if len(item.program) < 12], ids=lambda i: i.name)
def test_programs_of_the_library(item):
    check(item.program, item.vocab, item.max_seq_len, partial(rotate, seed=1))


def test_exchanged_lines_are_found_out(samples):
    for seed, sample in enumerate(samples[:15]):
        model = rotate(sample.compile(), seed)
        origins = list(provenance(sample.spelled, model))
        own = [n for n, origin in enumerate(origins) if sample.spelled.lines[origin.line].op.text != "select"]
        if len(own) < 2:
            continue
        first, second = own[:2]
        exchanged = {first: origins[second].components, second: origins[first].components}
        for place, components in exchanged.items():
            origins[place] = replace(origins[place], components=components)
        sure = confirm(sample.spelled, model, origins)
        assert not (sure[first] and sure[second])


def test_another_program_is_refused(samples):
    text = to_text(CASES[0].program)
    other = compile_program(CASES[1].program, VOCAB, LENGTH)
    with pytest.raises(ValueError, match="expected .* that correspond|expected two models with the same units"):
        provenance(parse(text), other)


def test_the_command_line_tells_where_lines_are(tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    rotate(compile_program(CASES[1].program, VOCAB, LENGTH), 3).save(path)
    assert main(["decompile", str(path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["lines"]
    assert [row["name"] for row in rows] == ["v1", "v2"]
    assert rows[0]["where"] == "layer 0 head 0" and all(row["confirmed"] for row in rows)
    assert {part["kind"] for part in rows[1]["components"]} == {"head", "mlp"}
    assert main(["decompile", str(path)]) == 0
    assert "# v1  layer 0 head 0" in capsys.readouterr().out
