"""Shared, made once: a tiny checkpoint that knows nothing, and sampled programs."""

import itertools

import pytest
import torch

from dataset_builder.sampler import sample_programs
from trade_hf.configuration_trade import TraDeConfig
from trade_hf.modeling_trade import TraDeForConditionalGeneration
from trade_hf.processing_trade import TraDeProcessor
from trade_hf.tokenization_rasp import VOCABULARY, build_tokenizer


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    config = TraDeConfig(
        vocab_size=len(VOCABULARY),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        num_heads=2,
        message_size=8,
        ffn_size=32,
    )
    folder = tmp_path_factory.mktemp("tiny")
    TraDeForConditionalGeneration(config).save_pretrained(folder)
    TraDeProcessor(build_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def samples():
    return list(itertools.islice(sample_programs("tests"), 60))
