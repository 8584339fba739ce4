"""The transformers pipeline `rasp-decompilation`: compiled weights in, a program with its certificate out.

from transformers import pipeline
decompile = pipeline("rasp-decompilation", model="trade/trade-base", trust_remote_code=True)
decompile("model.safetensors")   # {"code": …, "status": …, "proven": …, "certificate": …, "score": …}

With trade-hf installed and imported no trust is needed: `auto.py` registers the pipeline.
"""

from __future__ import annotations

from typing import Any

from transformers import Pipeline

from trade_hf.compiled.weights import TracrWeights
from trade_hf.decompiler import Decompilation, decompile_with, prepare, to_weights

SEARCH = ("max_candidates", "budget_seconds")


class RaspDecompilationPipeline(Pipeline):
    """Verified decoding of compiled transformers, one after the other.

    An input is one of what `decompile` takes: a safetensors path, its bytes, a dictionary of arrays with its metadata
    (see `read_weights`), a TracrWeights, or a model of the tracr package. A list gives a list. What is none of these
    raises WeightsError, a ValueError of one line.
    """

    _load_processor = _load_tokenizer = _load_feature_extractor = False
    _load_image_processor = _load_video_processor = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        prepare(self.model)

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """A dictionary as `Decompilation.to_dict` gives it, or a list of them.

        Args:
          inputs: see the class.
          max_candidates: how many programs are checked at most, for each input.
          budget_seconds: no further candidate is checked after this time, but for the first 8, for each input.
        """
        return [] if isinstance(inputs, list) and not inputs else super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        unknown = sorted(kwargs.keys() - {*SEARCH})
        if unknown:
            raise ValueError(f"expected the parameters {' and '.join(SEARCH)}, got {', '.join(unknown)}")
        return {}, kwargs, {}

    def preprocess(self, source: Any) -> dict[str, TracrWeights]:
        return {"weights": to_weights(source)}

    def _forward(self, inputs: dict[str, TracrWeights], **search: Any) -> dict[str, Decompilation]:
        return {"result": decompile_with(self.model, inputs["weights"], **search)}

    def postprocess(self, outputs: dict[str, Decompilation]) -> dict[str, Any]:
        return outputs["result"].to_dict()
