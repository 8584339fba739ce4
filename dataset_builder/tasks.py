"""Tasks that small transformers are trained on: what each asks at every position, and of which inputs.

A task is a rule over a finite domain, so that a trained model can be compared with it on every input. Three sources:
- rules over short lists of numbers, among them the tasks of Learning Transformer Programs (arXiv:2306.01128);
- regular and Dyck languages, where the answer is the set of tokens that may come next (as in arXiv:2602.08857);
- random programs of the sampler, whose output at every position is the answer.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataset_builder.rejection import Rejected
from dataset_builder.sampler import Sample
from trade_hf.rasp.evaluate import evaluate
from trade_hf.rasp.program import Type
from trade_hf.rasp.tables import tabulate
from trade_hf.rasp.text import to_text

PAD = -1  # a token after the end of an input, and an answer where none is asked for
MOST_INPUTS = 8_000
MOST_COLUMNS = 24  # of a program's output

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """A rule over a finite domain.

    Attributes:
      name, about: a short name, and what is asked, for people.
      inputs: [input, position] tokens, PAD after the end of an input.
      d_vocab: how many tokens the embedding holds, BOS among them.
      columns: how many columns the unembedding has.
      answers: argmax: [input, position] the right column, PAD where none is asked for; positive: [input, position,
        column] 1 for each column above 0, 0 for the others, PAD where none is asked for.
      is_causal: whether an answer follows from the tokens up to its position.
      domain: what `domain.json` of a model's folder says: inputs, and how answers are read.
      program: the program that the answers are of, as text; None for a rule.
    """

    name: str
    about: str
    inputs: np.ndarray
    d_vocab: int
    columns: int
    answers: np.ndarray
    is_causal: bool
    domain: dict[str, Any]
    program: str | None = None

    def __post_init__(self) -> None:
        if self.answers.shape[:2] != self.inputs.shape:
            raise ValueError(f"{self.name}: answers {self.answers.shape} do not fit inputs {self.inputs.shape}")

    @property
    def reads(self) -> str:
        return self.domain["answer"]["reads"]

    @property
    def is_of_here_alone(self) -> bool:
        """Whether every answer follows from the token and the position: such a task needs no attention."""
        seen: dict[tuple[int, int], Any] = {}
        asked = self.answers if self.reads == "argmax" else self.answers[..., 0]
        for row, place in zip(*np.nonzero(asked != PAD), strict=True):
            answer = self.answers[row, place].tolist()
            if seen.setdefault((int(self.inputs[row, place]), int(place)), answer) != answer:
                return False
        return True


# ---------------------------------------------------------------- rules over lists


@dataclass(frozen=True)
class Rule:
    """What is asked of a list of tokens: one answer at each position.

    `answers` takes the tokens and gives the right column at each position; `columns` is how many columns there are.
    """

    name: str
    about: str
    columns: int
    answers: Callable[[Tokens], Sequence[int]]
    is_causal: bool = False


VOCAB, LENGTH, BOS = 5, 5, 5  # tokens 0 to 4; inputs of 1 to 5 of them, after BOS


def _everywhere(compute: Callable[[Tokens], int]) -> Callable[[Tokens], Sequence[int]]:
    return lambda x: [compute(x)] * len(x)


def _here(compute: Callable[[Tokens, int], int]) -> Callable[[Tokens], Sequence[int]]:
    return lambda x: [compute(x, i) for i in range(len(x))]


def _most_frequent(x: Tokens) -> int:
    counts = Counter(x)
    return min(counts, key=lambda token: (-counts[token], token))


def _first_unique(x: Tokens) -> int:
    return next((token for token in x if x.count(token) == 1), VOCAB)


def _induction(x: Tokens, i: int) -> int:
    earlier = [j for j in range(i) if x[j] == x[i]]
    return x[earlier[-1] + 1] if earlier else 0


def _sign(number: int) -> int:
    return 0 if number < 0 else 1 if number == 0 else 2


def _run_length(x: Tokens, i: int) -> int:
    start = i
    while start and x[start - 1] == x[i]:
        start -= 1
    return i - start


RULES = (
    Rule("length", "the length of the input", 6, _everywhere(len)),
    Rule("hist", "how often the token here occurs", 6, _here(lambda x, i: x.count(x[i]))),
    Rule(
        "double_hist",
        "how many distinct tokens occur as often as the one here",
        6,
        _here(lambda x, i: sum(x.count(t) == x.count(x[i]) for t in set(x))),
    ),
    Rule("reverse", "the input backwards", 5, lambda x: x[::-1]),
    Rule("sort", "the input in ascending order", 5, sorted),
    Rule("sort_down", "the input in descending order", 5, lambda x: sorted(x, reverse=True)),
    Rule("shift", "the token one position before; 0 at the first", 5, lambda x: (0, *x[:-1]), True),
    Rule("shift_two", "the token two positions before; 0 at the first two", 5, lambda x: (0, 0, *x)[: len(x)], True),
    Rule("next", "the token one position on; 0 at the last", 5, lambda x: (*x[1:], 0)),
    Rule("prefix_max", "the largest token so far", 5, _here(lambda x, i: max(x[: i + 1])), True),
    Rule("prefix_min", "the smallest token so far", 5, _here(lambda x, i: min(x[: i + 1])), True),
    Rule("suffix_max", "the largest token from here on", 5, _here(lambda x, i: max(x[i:]))),
    Rule("maximum", "the largest token", 5, _everywhere(max)),
    Rule("minimum", "the smallest token", 5, _everywhere(min)),
    Rule(
        "second_largest",
        "the second largest token, repetitions counted; 5 where there is one token",
        6,
        _everywhere(lambda x: sorted(x)[-2] if len(x) > 1 else 5),
    ),
    Rule("range", "the largest token less the smallest", 5, _everywhere(lambda x: max(x) - min(x))),
    Rule(
        "count_smaller",
        "how many tokens are smaller than the one here",
        5,
        _here(lambda x, i: sum(t < x[i] for t in x)),
    ),
    Rule(
        "count_larger", "how many tokens are larger than the one here", 5, _here(lambda x, i: sum(t > x[i] for t in x))
    ),
    Rule("count_zero", "how many tokens are 0", 6, _everywhere(lambda x: x.count(0))),
    Rule(
        "count_even",
        "how many tokens are even, up to here",
        6,
        _here(lambda x, i: sum(t % 2 == 0 for t in x[: i + 1])),
        True,
    ),
    Rule("is_duplicate", "1 where the token here occurs again, else 0", 2, _here(lambda x, i: int(x.count(x[i]) > 1))),
    Rule(
        "is_first",
        "1 where the token here did not occur before, else 0",
        2,
        _here(lambda x, i: int(x[i] not in x[:i])),
        True,
    ),
    Rule("previous_count", "how often the token here occurred before", 5, _here(lambda x, i: x[:i].count(x[i])), True),
    Rule("distinct", "how many distinct tokens there are", 6, _everywhere(lambda x: len(set(x)))),
    Rule(
        "distinct_so_far",
        "how many distinct tokens there are up to here",
        6,
        _here(lambda x, i: len(set(x[: i + 1]))),
        True,
    ),
    Rule("first_plus", "(first token + token here) modulo 5", 5, _here(lambda x, i: (x[0] + x[i]) % 5), True),
    Rule("last_plus", "(last token + token here) modulo 5", 5, _here(lambda x, i: (x[-1] + x[i]) % 5)),
    Rule(
        "previous_plus",
        "(token before + token here) modulo 5; the token itself at the first",
        5,
        _here(lambda x, i: (x[i - 1] + x[i]) % 5 if i else x[0]),
        True,
    ),
    Rule(
        "equals_last", "1 where the token here equals the last one, else 0", 2, _here(lambda x, i: int(x[i] == x[-1]))
    ),
    Rule(
        "equals_previous",
        "1 where the token here equals the one before, else 0",
        2,
        _here(lambda x, i: int(i > 0 and x[i] == x[i - 1])),
        True,
    ),
    Rule(
        "rises",
        "1 where the token here is larger than the one before, else 0",
        2,
        _here(lambda x, i: int(i > 0 and x[i] > x[i - 1])),
        True,
    ),
    Rule(
        "run_length", "for how many positions before this one the token has been the same", 5, _here(_run_length), True
    ),
    Rule(
        "majority_one",
        "1 where more than half of the tokens are 1, else 0",
        2,
        _everywhere(lambda x: int(2 * x.count(1) > len(x))),
    ),
    Rule("reverse_hist", "the histogram backwards", 6, lambda x: [x.count(t) for t in x][::-1]),
    Rule(
        "is_sorted",
        "1 where the input is in ascending order, else 0",
        2,
        _everywhere(lambda x: int(list(x) == sorted(x))),
    ),
    Rule(
        "is_palindrome",
        "1 where the input reads the same backwards, else 0",
        2,
        _everywhere(lambda x: int(x == x[::-1])),
    ),
    Rule("most_frequent", "the most frequent token, the smaller one on ties", 5, _everywhere(_most_frequent)),
    Rule("first_unique", "the first token that occurs once; 5 where there is none", 6, _everywhere(_first_unique)),
    Rule("position_of_maximum", "the position of the first largest token", 5, _everywhere(lambda x: x.index(max(x)))),
    Rule(
        "induction",
        "what followed the last earlier occurrence of the token here; 0 where there is none",
        5,
        _here(_induction),
        True,
    ),
    Rule(
        "cumulative_sign",
        "the sign of the sum of (token - 2) up to here: 0 below, 1 at, 2 above 0",
        3,
        _here(lambda x, i: _sign(sum(t - 2 for t in x[: i + 1]))),
        True,
    ),
    Rule("sum_mod_3", "the sum of all tokens modulo 3", 3, _everywhere(lambda x: sum(x) % 3)),
    Rule(
        "first_equals_last",
        "1 where the first token equals the last, else 0",
        2,
        _everywhere(lambda x: int(x[0] == x[-1])),
    ),
    Rule(
        "first_largest",
        "1 where the token here is the first largest one, else 0",
        2,
        _here(lambda x, i: int(i == x.index(max(x)))),
    ),
)


def rule_task(rule: Rule, vocab: int = VOCAB, length: int = LENGTH) -> Task:
    """The task of a rule, over all inputs of 1 to `length` tokens after BOS."""
    lists = [x for n in range(1, length + 1) for x in itertools.product(range(vocab), repeat=n)]
    inputs = _padded([(vocab, *x) for x in lists], length + 1)
    answers = _padded([(PAD, *rule.answers(x)) for x in lists], length + 1)
    domain = {
        "task": rule.about,
        "rule": f"BOS ({vocab}), then every sequence of 1 to {length} tokens from 0 to {vocab - 1}",
        "exhaustive": True,
        "tokens": {f"0…{vocab - 1}": f"0 … {vocab - 1}", str(vocab): "BOS"},
        "answer": {"positions": {"from": 1}, "reads": "argmax", "columns": rule.columns},
        "enumerate": {"prefix": [vocab], "vocab": list(range(vocab)), "suffix": [], "lengths": [1, length]},
    }
    return Task(rule.name, rule.about, inputs, vocab + 1, rule.columns, answers, rule.is_causal, domain)


def program_task(sample: Sample, name: str) -> Task:
    """The task of a sampled program. Raises Rejected for one whose output is a number, is not defined on every input or
    has too many values."""
    vocab, length = sample.vocab, sample.max_seq_len
    program = sample.spelled
    if program.type_of(len(program.lines) - 1) is Type.NUMERICAL:
        raise Rejected("numerical output")
    lists = [x for n in range(1, length + 1) for x in itertools.product(range(len(vocab)), repeat=n)]
    if len(lists) > MOST_INPUTS:
        raise Rejected("too many inputs")
    meant = evaluate(tabulate(program, vocab, length), _padded(lists, length))
    if not meant.valid.all() or (meant.codes < 0)[meant.real].any():
        raise Rejected("not defined on every input")
    used, codes = np.unique(meant.codes[meant.real], return_inverse=True)
    if not 2 <= len(used) <= MOST_COLUMNS:
        raise Rejected("constant output" if len(used) < 2 else "too many values")
    answers = np.full(meant.codes.shape, PAD)
    answers[meant.real] = codes
    assert meant.values is not None
    values = [meant.values[code] for code in used.tolist()]
    task = rule_task(Rule(name, f"a program of {len(program.lines)} lines", len(used), lambda x: x), len(vocab), length)
    answers = np.concatenate([np.full((len(lists), 1), PAD), answers], 1)
    domain = task.domain | {"columns": {str(number): repr(value) for number, value in enumerate(values)}}
    return Task(name, task.about, task.inputs, task.d_vocab, len(used), answers, False, domain, to_text(program))


# ---------------------------------------------------------------- languages


@dataclass(frozen=True)
class Language:
    """A language over a few letters, by a finite automaton.

    Attributes:
      moves: state → the next state by letter; a letter that is missing leads out of the language for good.
      accepting: the states in which a string may end.
      longest: of the prefixes that are asked about.
    """

    name: str
    about: str
    letters: str
    start: Any
    moves: Callable[[Any], dict[int, Any]]
    accepting: Callable[[Any], bool]
    longest: int


def _table(moves: dict[Any, dict[int, Any]]) -> Callable[[Any], dict[int, Any]]:
    return lambda state: moves[state]


def _brackets(kinds: int, depth: int) -> Callable[[Any], dict[int, Any]]:
    """Letters 0 to kinds - 1 open, kinds to 2 kinds - 1 close; a state holds what is open."""

    def moves(state: Tokens) -> dict[int, Tokens]:
        found = {letter: (*state, letter) for letter in range(kinds)} if len(state) < depth else {}
        return found | ({kinds + state[-1]: state[:-1]} if state else {})

    return moves


def _no_three(state: tuple[int, int]) -> dict[int, tuple[int, int]]:
    last, run = state
    return {letter: (letter, run + 1 if letter == last else 1) for letter in (0, 1) if letter != last or run < 2}


def _counted(counts: tuple[int, ...]) -> Callable[[Any], dict[int, Any]]:
    """Blocks of letters in order, as many of each as of the first, which is at most `counts[0]`."""

    def moves(state: tuple[int, int, int]) -> dict[int, tuple[int, int, int]]:
        letter, seen, first = state
        if letter == 0:
            more = {0: (0, seen + 1, first + 1)} if first < counts[0] else {}
            return more | ({1: (1, 1, first)} if first else {})
        if seen < first:
            return {letter: (letter, seen + 1, first)}
        return {letter + 1: (letter + 1, 1, first)} if letter + 1 < len(counts) else {}

    return moves


LANGUAGES = (
    Language("only_a", "any number of a", "ab", 0, _table({0: {0: 0}}), lambda s: True, 8),
    Language("ab_repeated", "(ab)*", "ab", 0, _table({0: {0: 1}, 1: {1: 0}}), lambda s: s == 0, 12),
    Language("aab_repeated", "(aab)*", "ab", 0, _table({0: {0: 1}, 1: {0: 2}, 2: {1: 0}}), lambda s: s == 0, 12),
    Language(
        "a_then_b",
        "any number of a, then any number of b",
        "ab",
        0,
        _table({0: {0: 0, 1: 1}, 1: {1: 1}}),
        lambda s: True,
        10,
    ),
    Language(
        "even_a_then_b",
        "an even number of a, then any number of b",
        "ab",
        0,
        _table({0: {0: 1, 1: 2}, 1: {0: 0}, 2: {1: 2}}),
        lambda s: s != 1,
        10,
    ),
    Language("no_three_equal", "no three equal letters in a row", "ab", (-1, 0), _no_three, lambda s: True, 9),
    Language(
        "no_three_a",
        "no three a in a row",
        "ab",
        0,
        _table({0: {0: 1, 1: 0}, 1: {0: 2, 1: 0}, 2: {1: 0}}),
        lambda s: True,
        8,
    ),
    Language(
        "starts_and_ends_alike",
        "the first letter is the last one too",
        "ab",
        "",
        lambda s: {0: (s or "a")[0] + "a", 1: (s or "b")[0] + "b"},
        lambda s: bool(s) and s[0] == s[-1],
        8,
    ),
    Language(
        "ends_in_ab",
        "the last two letters are ab",
        "ab",
        0,
        _table({0: {0: 1, 1: 0}, 1: {0: 1, 1: 2}, 2: {0: 1, 1: 0}}),
        lambda s: s == 2,
        8,
    ),
    Language(
        "b_after_each_a",
        "every a is followed by b, letters abc",
        "abc",
        0,
        _table({0: {0: 1, 1: 0, 2: 0}, 1: {1: 0}}),
        lambda s: s == 0,
        7,
    ),
    Language(
        "abc_in_order",
        "a, then b, then c, any number of each",
        "abc",
        0,
        _table({0: {0: 0, 1: 1, 2: 2}, 1: {1: 1, 2: 2}, 2: {2: 2}}),
        lambda s: True,
        9,
    ),
    Language(
        "one_c",
        "exactly one c among a and b",
        "abc",
        0,
        _table({0: {0: 0, 1: 0, 2: 1}, 1: {0: 1, 1: 1}}),
        lambda s: s == 1,
        6,
    ),
    Language(
        "as_many_b",
        "as many b as a, after them, at most 6",
        "ab",
        (0, 0, 0),
        _counted((6, 6)),
        lambda s: s[1] == s[2] and (s[0] == 1 or s[2] == 0),
        12,
    ),
    Language(
        "as_many_b_and_c",
        "as many b and c as a, at most 4",
        "abc",
        (0, 0, 0),
        _counted((4, 4, 4)),
        lambda s: s[1] == s[2] and (s[0] == 2 or s[2] == 0),
        12,
    ),
    Language("brackets_2", "balanced brackets, depth at most 2", "()", (), _brackets(1, 2), lambda s: not s, 10),
    Language("brackets_3", "balanced brackets, depth at most 3", "()", (), _brackets(1, 3), lambda s: not s, 10),
    Language(
        "two_brackets_2",
        "balanced brackets of two kinds, depth at most 2",
        "([)]",
        (),
        _brackets(2, 2),
        lambda s: not s,
        7,
    ),
)


def language_task(language: Language) -> Task:
    """The task of a language: after each prefix of one of its strings, which letters may come next, and END where the
    string may end. One input for each prefix, one answer, at its last position."""
    bos, end = len(language.letters), len(language.letters) + 1
    prefixes, allowed = [], []
    for prefix, state in _prefixes(language):
        row = np.zeros(end + 1, int)
        row[list(language.moves(state))] = 1
        row[end] = language.accepting(state)
        prefixes.append((bos, *prefix))
        allowed.append(row)
    inputs = _padded(prefixes, language.longest + 1)
    answers = np.full((*inputs.shape, end + 1), PAD)
    lengths = np.array([len(prefix) for prefix in prefixes])
    answers[np.arange(len(inputs)), lengths - 1] = np.array(allowed)
    domain = {
        "task": f"after each prefix of a string of the language ({language.about}): which tokens may come next",
        "rule": f"BOS ({bos}), then every prefix of a string of the language, of length 0 to {language.longest}",
        "exhaustive": True,
        "tokens": {**{str(n): letter for n, letter in enumerate(language.letters)}, str(bos): "BOS", str(end): "END"},
        "answer": {"positions": [-1], "reads": "positive", "columns": end + 1},
        "inputs": [list(prefix) for prefix in prefixes],
    }
    return Task(language.name, language.about, inputs, end + 1, end + 1, answers, True, domain)


def _prefixes(language: Language) -> Iterator[tuple[Tokens, Any]]:
    """Prefixes of the language's strings and the states after them, short ones first."""
    level: list[tuple[Tokens, Any]] = [((), language.start)]
    for length in range(language.longest + 1):
        yield from level
        if length < language.longest:
            level = [
                ((*prefix, letter), after)
                for prefix, state in level
                for letter, after in sorted(language.moves(state).items())
            ]


def _padded(lists: Sequence[Sequence[int]], length: int) -> np.ndarray:
    rows = np.full((len(lists), length), PAD)
    for row, values in zip(rows, lists, strict=True):
        row[: len(values)] = values
    return rows
