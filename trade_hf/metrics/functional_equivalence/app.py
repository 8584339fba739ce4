"""The metric's Space: score one program against another in a browser.

Run: python trade_hf/metrics/functional_equivalence/app.py
"""

import os
from dataclasses import asdict
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr

from trade_hf.app.bounds import bounded
from trade_hf.app.settings import MAX_CODE, MAX_LENGTH, MAX_VOCAB, domain
from trade_hf.metrics.scoring import WEIGHTS_SUFFIX, score
from trade_hf.rasp.program import RaspError
from trade_hf.rasp.tables import UnsupportedError

MAX_BODY, SECONDS = 1_000_000, 20.0  # of a request: bytes, and how long they may take to arrive
TITLE = "Functional equivalence of RASP programs"
ABOUT = (
    "Does the predicted program compute what the true one does? Both are run on every input where there are at most "
    f"20,000. Text is parsed, never run. At most {MAX_VOCAB} tokens and inputs of at most {MAX_LENGTH}."
)
TRUE = "v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)\nprogram = rasp.SelectorWidth(v1)"
PREDICTED = TRUE.replace("EQ", "LEQ")


def judge(prediction: str, reference: str, vocab: str, length: float) -> dict[str, Any]:
    """The figures of one pair, with the reason where it is wrong; raises gr.Error, in words, for a wrong reference."""
    try:
        if len(reference) > MAX_CODE:
            raise ValueError(f"expected a true program of at most {MAX_CODE:,} characters, got {len(reference):,}")
        if reference.endswith(WEIGHTS_SUFFIX):  # which `score` would read from this machine's disk
            raise ValueError("expected a true program, got the path of a model")
        return asdict(score(prediction, reference, *domain(vocab, length)))
    except (RaspError, UnsupportedError, ValueError) as error:
        raise gr.Error(str(error), print_exception=False) from None


def build() -> gr.Interface:
    return gr.Interface(
        judge,
        [
            gr.Textbox(PREDICTED, label="Predicted program", lines=8),
            gr.Textbox(TRUE, label="True program", lines=8),
            gr.Textbox("0, 1, 2, 3, 4", label="Vocabulary"),
            gr.Slider(1, MAX_LENGTH, 5, step=1, label="Longest input"),
        ],
        gr.JSON(label="Score"),
        title=TITLE,
        description=ABOUT,
        flagging_mode="never",
        analytics_enabled=False,
    )


if __name__ == "__main__":
    build().launch(app_kwargs=bounded(MAX_BODY, SECONDS))
