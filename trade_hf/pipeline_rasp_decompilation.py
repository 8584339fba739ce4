"""The transformers pipeline `rasp-decompilation`: compiled weights in, a program with its certificate out.

from transformers import pipeline
decompile = pipeline("rasp-decompilation", model="trade/trade-base", trust_remote_code=True)
decompile("model.safetensors")   # {"code": …, "status": …, "proven": …, "certificate": …, "score": …}

With trade-hf installed and imported no trust is needed: `auto.py` registers the pipeline.
"""

from __future__ import annotations

import os
import types
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from transformers import Pipeline

from trade_hf.compiled.formats import to_weights
from trade_hf.compiled.weights import TracrWeights
from trade_hf.decompiler import Decompilation, decompile_with, prepare
from trade_hf.processing_trade import TraDeProcessor
from trade_hf.tokenization_rasp import build_tokenizer
from trade_hf.with_code import add_code

SEARCH = ("max_candidates", "budget_seconds", "max_steps")


class RaspDecompilationPipeline(Pipeline):
    """Verified decoding of compiled transformers, one after the other.

    An input is one of what `decompile` takes: a path, its bytes, a dictionary of arrays with what they do not tell
    (see `to_weights`), a TracrWeights, or a model of the tracr package. What is none of these raises WeightsError, a
    ValueError of one line. A list gives a list, a generator or a data set an iterator; in these, what cannot be read
    gives `{"code": None, "proven": False, "error": that line}`.
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
          max_candidates, budget_seconds, max_steps: for each input, see `decompile_with`.
        """
        if isinstance(inputs, list) and not inputs:
            return []
        are_several = isinstance(inputs, list | types.GeneratorType | Dataset)
        return super().__call__(inputs, are_several=are_several, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save the model, the processor and their code: a folder for `pipeline` and all `Auto` classes."""
        super().save_pretrained(save_directory, **kwargs)
        TraDeProcessor(build_tokenizer()).save_pretrained(save_directory, with_code=False)
        add_code(Path(save_directory), self.model)

    def _sanitize_parameters(self, are_several: bool = False, **kwargs: Any) -> tuple[dict, dict, dict]:
        unknown = sorted(kwargs.keys() - {*SEARCH})
        if unknown:
            raise ValueError(f"expected the parameters {', '.join(SEARCH)}, got {', '.join(unknown)}")
        return {"are_several": are_several}, kwargs, {}

    def preprocess(self, source: Any, are_several: bool) -> dict[str, TracrWeights | str]:
        try:
            return {"weights": to_weights(source)}
        except (ValueError, OSError) as error:
            if not are_several:
                raise
            return {"error": str(error)}

    def _forward(self, inputs: dict[str, Any], **search: Any) -> dict[str, Decompilation | str]:
        return inputs if "error" in inputs else {"result": decompile_with(self.model, inputs["weights"], **search)}

    def postprocess(self, outputs: dict[str, Any]) -> dict[str, Any]:
        if "error" in outputs:
            return {"code": None, "proven": False, "error": outputs["error"]}
        return outputs["result"].to_dict()
