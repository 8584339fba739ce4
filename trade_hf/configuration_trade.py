"""TraDeConfig: sizes of the encoder–decoder."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

REMOTE_CODE = ("auto_map", "custom_pipelines")


class TraDeConfig(PreTrainedConfig):
    """Sizes of a TraDe model.

    `vocab_size` counts the tokens of the RASP tokenizer, `max_lines` what can be decoded; `unit_loss` is the weight in
    training of what the encoder says of single units (variable, function, value) beside the program itself;
    `lines_before` up to how many lines training pretends to stand before a program (see
    `TraDeForConditionalGeneration.forward`). `encoder` is `circuit` (products, in no basis), `units` (vectors' dot
    products and cosines) or `flat` (pieces of the flattened weights, as in arXiv:2410.00061).
    """

    model_type = "trade"

    encoder: str = "units"
    vocab_size: int = 128
    d_model: int = 160
    encoder_layers: int = 8
    decoder_layers: int = 3
    num_heads: int = 5
    message_size: int = 32
    ffn_size: int = 400
    dropout: float = 0.0
    unit_loss: float = 0.5
    max_lines: int = 32
    lines_before: int = 0
    line_size: int = 4
    feature_size: int = 8
    integer_features: int = 3
    unit_types: int = 8
    max_layers: int = 32
    value_buckets: int = 64
    piece_size: int = 256
    parameter_kinds: int = 16
    is_encoder_decoder: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    decoder_start_token_id: int | None = 1
    tie_word_embeddings: bool = True

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Where the package is installed it is the code: what a file from the Hub says of code beside it is left out.

        Otherwise the pipeline would still ask for trust, and a copy saved from here would name files that it lacks.
        """
        if __package__ == "trade_hf":
            config_dict = {key: value for key, value in config_dict.items() if key not in REMOTE_CODE}
        return super().from_dict(config_dict, **kwargs)
