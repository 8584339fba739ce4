"""The process that computes the demo's answers: it loads the neural model once and forks for each request (handler.py).

Run by `trade_hf.app.page`: python -m trade_hf.app.worker SECONDS
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import IO, Any

import torch

from trade_hf.app import trained
from trade_hf.app.answers import decompile_answer, input_answer, silence_answer
from trade_hf.app.examples import EXAMPLES
from trade_hf.handler import answer_each, stream_of_answers, write

ANSWERS = {"decompile": decompile_answer, "input": input_answer, "silence": silence_answer}
OF_TRAINED = {
    "decompile": trained.decompile_answer,
    "input": trained.input_answer,
    "silence": trained.silence_answer,
}


def main(time_limit: float) -> None:
    answers = stream_of_answers()
    torch.set_num_threads(1)  # threads do not survive a fork
    decompile_answer(asdict(EXAMPLES[0]), str)  # imports and builds what every request needs
    answer_each(_answer, time_limit, sys.stdin.buffer, answers)


def _answer(request: dict[str, Any], answers: IO[bytes]) -> dict[str, Any]:
    try:
        known = OF_TRAINED if "trained" in request else ANSWERS
        return {"result": known[request["asks"]](request, lambda step: write(answers, {"progress": step}))}
    except (ValueError, TypeError, OSError) as error:
        return {"error": " ".join(str(error).split())}


if __name__ == "__main__":
    main(float(sys.argv[1]))
