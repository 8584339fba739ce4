"""Search for a short program that gives a trained model's answers on every input of a domain.

S-ops grow round by round on a sample of the inputs (`grow.py`), those first that the model holds (`evidence.py`); after
each step the last lines are sought (`solve.py`). What gives all answers of the sample is run on all inputs of the
domain; inputs on which it is wrong join the sample. The search ends with a short program, or when time or steps are
used up, and returns the best program so far.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trade_hf.trained.answers import Answers
from trade_hf.trained.candidate import CELLS_PER_LINE, MOST_LINES, Candidate, Cells, cells_of
from trade_hf.trained.domain import Domain
from trade_hf.trained.evidence import Evidence
from trade_hf.trained.exceptions import LINES, with_exceptions
from trade_hf.trained.grow import Grower
from trade_hf.trained.program import Program
from trade_hf.trained.progress import MOST_PROGRAMS, Progress
from trade_hf.trained.rounds import Rounds
from trade_hf.trained.shorten import shorten
from trade_hf.trained.solve import Solver
from trade_hf.trained.space import Kind, Node, Space
from trade_hf.trained.text import parse
from trade_hf.trained.transformer import Transformer

SECONDS = 60.0  # of CPU time
WALL_TIME = 4.0  # limit of the wall time, unless another is given: so many times that of the CPU time
STEPS = 120_000  # nodes of the space
SAMPLE_PAIRS = 8_000  # of positions, of all inputs of the sample
COUNTEREXAMPLES = 48  # inputs that join the sample at a time
PATIENCE = 4  # steps without a shorter program, once one is equal on all inputs
NEAR = 0.02  # share of inputs on which a program may be wrong and yet be what the model follows, but for errors
FEW_INPUTS = 40  # that a rule is sought on, where the model makes errors
SHORT = 9.0  # a program of this description length is short enough to end the search
TRIED = 12  # candidates of one step that are run on all inputs
CHOICES = 6  # programs that are equal on all inputs, and by how much they may be longer than the shortest
CHOICES_LONGER = 2.0


@dataclass(frozen=True)
class Found:
    """A program and how far it agrees with the model.

    Attributes:
      program: the program.
      wrong: [input] whether one of its answers is not the model's.
    """

    program: Program
    wrong: np.ndarray

    @property
    def agreeing(self) -> int:
        """Inputs on which all answers are the model's."""
        return int((~self.wrong).sum())

    @property
    def length(self) -> float:
        return len(self.program) + self.program.table_cells / CELLS_PER_LINE


class Search:
    """The search for one model.

    Args:
      model: the transformer.
      domain: inputs and answers.
      answers: the model's.
      seconds: of CPU time after which it ends, so that a busy machine finds the same.
      steps: nodes after which it ends.
      progress: called with a line of text now and then.
      seed: of the sample.
      wall_seconds: of wall time after which it ends; default: WALL_TIME times `seconds`.
      begun: what an earlier search has done.
      keep: called with what is done, whenever that is more.
    """

    def __init__(
        self,
        model: Transformer,
        domain: Domain,
        answers: Answers,
        seconds: float = SECONDS,
        steps: int = STEPS,
        progress: Callable[[str], None] | None = None,
        seed: int = 0,
        wall_seconds: float | None = None,
        begun: Progress | None = None,
        keep: Callable[[Progress], None] | None = None,
    ) -> None:
        self.model, self.domain, self.answers = model, domain, answers
        self.done, self._save = begun or Progress(""), keep or (lambda done: None)
        self.end_of_cpu_time = time.process_time() + seconds
        self.end = time.monotonic() + (WALL_TIME * seconds if wall_seconds is None else wall_seconds)
        self.steps = steps
        self.progress = progress or (lambda text: None)
        self.best: Found | None = None
        self.equal: dict[Program, Found] = {}  # programs of at most MOST_LINES lines that are equal on all inputs
        self.sample = self._first_sample(np.random.RandomState(seed))
        self._drawn = len(self.sample)  # inputs of it that are no counterexamples
        known = np.array(self.done.counterexamples, np.int64)
        self.sample = np.concatenate([self.sample, np.setdiff1d(known[known < len(domain)], self.sample)])
        # Where the answers are at the last position alone, which sees everything, RASP's own selectors will do.
        at_last = np.array_equal(domain.is_answer, np.arange(domain.tokens.shape[1]) == domain.lengths[:, None] - 1)
        self.space = Space(domain.tokens[self.sample], model.config.attention_dir == "causal" and not at_last)
        self.grower = Grower(self.space, self.is_over)
        self.rounds = Rounds(self.space, self.grower, Evidence(model, domain.rows(self.sample)))
        self._solver = self.solver()

    def is_over(self) -> bool:
        is_late = time.process_time() > self.end_of_cpu_time or time.monotonic() > self.end
        return is_late or len(self.space.lines) > self.steps

    def run(self) -> Found:
        """The best program that was found."""
        since = 0  # steps since the best program so far was found
        for text in self.done.programs:
            self.keep(self.check(parse(text)))
        for number, step in enumerate(() if self.done.is_over else self.rounds.steps()):
            if number < self.done.steps:  # its s-ops are needed; what follows from them was sought
                continue
            self.progress(f"{step}: {len(self.space.lines):,} s-ops and selectors")
            before = self.best
            self.solve()
            if not self.is_whole():
                self.solve_loosely(since)
            since = since + 1 if self.best is before else 0
            if not self.is_over():
                self.save(steps=number + 1)
            if self.is_over() or self.is_short_enough(since):
                break
            if self.is_near() and since >= PATIENCE:
                break
        if not self.is_whole():
            self.approximate()
            self.list_exceptions()
        assert self.best is not None
        self.save(is_over=not self.is_over())
        return self.best

    def save(self, **changes: Any) -> None:
        """Has what is done kept: the best program first."""
        programs = [] if self.best is None else [self.best.program]
        programs += [found.program for found in self.equal.values() if found is not self.best]
        texts = tuple(program.code for program in programs[:MOST_PROGRAMS])
        self.done = replace(
            self.done, programs=texts, counterexamples=tuple(self.sample[self._drawn :].tolist()), **changes
        )
        self._save(self.done)

    def choices(self) -> list[Found]:
        """Programs that are about as short as the best one and equal on all inputs, the shortest first; else the best
        one alone."""
        assert self.best is not None
        most = self.best.length + CHOICES_LONGER
        found = sorted([f for f in self.equal.values() if f.length <= most], key=lambda f: (f.length, f.program.code))
        return found[:CHOICES] or [self.best]

    def is_whole(self) -> bool:
        """Whether a program of at most MOST_LINES lines is equal on all inputs."""
        return self.best is not None and not self.best.wrong.any() and len(self.best.program) <= MOST_LINES

    def is_short_enough(self, since: int) -> bool:
        """Whether no shorter program is sought, `since` steps after the last one: the longer it is, the more steps."""
        if self.best is None or not self.is_whole():
            return False
        return self.best.length <= SHORT or since >= PATIENCE * (1 + self.best.length // MOST_LINES)

    def is_near(self) -> bool:
        """Whether a short program is wrong on so few inputs that these can be listed."""
        return (
            self.best is not None
            and self.best.wrong.mean() <= NEAR
            and len(self.best.program) + LINES <= MOST_LINES
            and self.best.program.table_cells + self.best.wrong.sum() <= self._solver.cells.most_cells
        )

    # ------------------------------------------------------------ solving

    def solver(self) -> Solver:
        """A solver of the sample as it is."""
        at = ~np.isnan(self.answers.values[self.sample])
        rows, places = np.nonzero(at)
        answers = self.answers.values[self.sample][rows, places]
        return Solver(self.space, cells_of(rows, places, answers, self.answers.are_sets, self.domain.answers))

    def solve(self) -> None:
        """Looks for last lines; a wrong candidate's inputs join the sample, and it is looked again."""
        for _ in range(6):
            candidates = sorted(self._candidates())
            if not candidates:
                return
            counterexamples = self._try(candidates[:TRIED])
            if counterexamples is None:
                return
            self.sample = np.concatenate([self.sample, counterexamples])
            self.space.extend(self.domain.tokens[counterexamples])
            self._solver = self.solver()

    def solve_loosely(self, number: int) -> None:
        """Looks for programs that give the answers of a few inputs, so that a model's own errors elsewhere do not hide
        the rule that it follows else."""
        if number >= 2 * PATIENCE or len(self.sample) < 2 * FEW_INPUTS:
            return
        rng = np.random.RandomState(len(self.space.lines))
        cells = self._solver.cells
        chosen = np.isin(cells.rows, rng.permutation(len(self.sample))[:FEW_INPUTS])
        few = Cells(cells.rows[chosen], cells.places[chosen], cells.answers[chosen], cells.are_sets, cells.most_cells)
        if len(np.unique(few.answers)) < 2:
            return
        solver = Solver(self.space, few)
        for candidate in sorted(solver.solutions(self._usable()))[:TRIED]:
            self.keep(self.check(candidate.program(self.space)))

    def _usable(self) -> list[Node]:
        nodes = [n for n, kind in self.space.kinds.items() if kind is not Kind.SELECTOR]
        return [n for n in nodes if self.space.cost(n) < MOST_LINES + 3]

    def _candidates(self) -> Iterator[Candidate]:
        best = self.best.length if self.is_whole() and self.best else np.inf
        for candidate in self._solver.solutions(self._usable()):
            if candidate.length < best + 4 * self.space.causal:
                yield candidate
            if self.is_over():
                return

    def _try(self, candidates: list[Candidate]) -> np.ndarray | None:
        """None if a candidate is right on all inputs; else inputs on which the first one is wrong."""
        first: np.ndarray | None = None
        most = np.inf
        for candidate in candidates:
            if candidate.length > most:
                break
            found = self.check(candidate.program(self.space))
            self.keep(found)
            if not found.wrong.any():
                most = min(most, candidate.length + CHOICES_LONGER)
            elif first is None:
                fresh = np.setdiff1d(np.flatnonzero(found.wrong), self.sample)
                first = fresh[np.linspace(0, len(fresh) - 1, min(COUNTEREXAMPLES, len(fresh))).astype(int)]
        return first if most == np.inf and first is not None and len(first) else None

    def check(self, program: Program) -> Found:
        """A program with the inputs on which it is wrong."""
        return Found(program, np.asarray(self.answers.differ(program.evaluate(self.domain.tokens)).any(1)))

    def keep(self, found: Found) -> None:
        """Takes a program as the best so far if it is."""
        if not found.wrong.any():
            found = shorten(found.program, self.check)
        fits = len(found.program) <= MOST_LINES
        if fits and not found.wrong.any():
            self.equal[found.program] = found
        rank = (fits, found.agreeing, -found.length)
        if self.best is None or rank > (len(self.best.program) <= MOST_LINES, self.best.agreeing, -self.best.length):
            self.best = found
            self.save()
            self.progress(f"{found.agreeing:,} of {len(found.wrong):,} inputs, {len(found.program)} lines")

    def list_exceptions(self) -> None:
        """Lists the inputs on which the best program is wrong, where they are few."""
        assert self.best is not None
        most = self._solver.cells.most_cells
        program = with_exceptions(self.best.program, self.domain, self.answers, most)
        if program is not None and len(program) <= MOST_LINES:
            self.keep(self.check(program))

    def approximate(self) -> None:
        """The best tables, where nothing gives all answers."""
        list(self._solver.add(self._usable()))
        for candidate in self._solver.nearest():
            self.keep(self.check(candidate.program(self.space)))

    def _first_sample(self, rng: np.random.RandomState) -> np.ndarray:
        """Inputs of all lengths, most of them long."""
        most = max(60, SAMPLE_PAIRS // self.domain.tokens.shape[1] ** 2)
        if len(self.domain) <= most:
            return np.arange(len(self.domain))
        lengths = self.domain.lengths
        chosen: list[np.ndarray] = []
        values = np.unique(lengths)
        for place, length in enumerate(values):
            rows = np.flatnonzero(lengths == length)
            share = (most - sum(map(len, chosen))) // (len(values) - place)
            chosen.append(rng.permutation(rows)[:share])
        return np.sort(np.concatenate(chosen))
