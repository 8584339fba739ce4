"""Functional equivalence of RASP programs, as a module of the evaluate library."""

import dataclasses

import datasets
import evaluate

from trade_hf.metrics.scoring import score_all

DESCRIPTION = """Do decompiled RASP programs compute what the true ones do? Each pair is decided on every input of every
length up to the maximum where there are at most 20,000, so that most answers are proofs. Text is parsed, never run."""

INPUTS = """
Args:
    predictions: RASP programs as Python source for the tracr package (any text: what is no program counts as wrong).
    references: the true programs, or paths of compiled models (`*.safetensors`, as `trade compile` writes them).
    vocab: the input tokens; not needed for models.
    max_seq_len: the longest input; not needed for models.
    per_item: also return `items`: for each pair the status, all figures and the reason.
Returns:
    functional_equivalence, exact_match (same canonical program), compiles, proven: shares between 0 and 1.
    edit_distance: mean number of components to change between canonical programs.
"""

CITATION = "Neural Decompiling of Tracr Transformers, arXiv:2410.00061"


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class FunctionalEquivalence(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references, vocab=(0, 1, 2, 3, 4), max_seq_len=5, per_item=False):
        result, scores = score_all(predictions, references, vocab, max_seq_len)
        return result | ({"items": [dataclasses.asdict(score) for score in scores]} if per_item else {})
