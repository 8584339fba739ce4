"""What people see of a result: colours where there are any, long repetitions cut."""

import io

import pytest

from trade_hf.terminal import WIDEST, code_in_colour, headline, without_repetition
from trade_hf.verification import Status, Verdict


class Terminal(io.StringIO):
    def isatty(self):
        return True


PROVEN = Verdict(Status.EQUIVALENT, 5, 5)
REFUTED = Verdict(Status.REFUTED, 1, 5, counterexample=(2, 0), expected=(1, 1), got=(1, 0))
SAMPLED = Verdict(Status.AGREES, 3, 5)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.parametrize(
    ("verdict", "line", "colour"),
    [
        (PROVEN, "PROVEN: equivalent on all 5 inputs", 32),
        (REFUTED, "NOT THE MODEL'S PROGRAM: refuted by [2, 0]", 31),
        (SAMPLED, "NOT PROVEN: agrees on 3 of 5 inputs", 33),
    ],
    ids=["proven", "refuted", "sampled"],
)
def test_each_verdict_has_a_word_and_a_colour(verdict, line, colour):
    assert headline(verdict, io.StringIO()) == line
    assert headline(verdict, Terminal()) == f"\033[1;{colour}m{line}\033[0m"


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_can_be_switched_off(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert headline(PROVEN, Terminal()) == "PROVEN: equivalent on all 5 inputs"
    assert code_in_colour("program = v1\n", Terminal()) == "program = v1\n"


def test_code_has_colours_on_a_terminal_alone():
    assert code_in_colour("v1 = 2\n", io.StringIO()) == "v1 = 2\n"
    assert "\033[" in code_in_colour("v1 = 2\n", Terminal())


def test_lines_that_differ_in_names_alone_are_shown_once():
    lines = [f"v{i} = rasp.Map(lambda x: x, v{i - 1})" for i in range(2, 8)]
    code = "\n".join(["v1 = rasp.Map(lambda x: -x, rasp.tokens)", *lines, "program = v7", ""])
    shown = without_repetition(code).splitlines()
    assert shown == [code.splitlines()[0], lines[0], "# … 5 more lines like this one", "program = v7"]
    assert without_repetition("v1 = a\nv2 = a\nv3 = a\n") == "v1 = a\nv2 = a\nv3 = a\n"


def test_long_lines_are_cut():
    [line] = without_repetition("v1 = " + "1" * 1000).splitlines()
    assert len(line) < WIDEST + 30 and line.endswith("… # 1,005 characters")
