"""Shared, made once: a tiny checkpoint that knows nothing, and sampled programs."""

import itertools
import os
import shutil

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


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium, driven by Playwright. Tests that need it are skipped where it is missing, or fail there if
    TRADE_NEEDS_BROWSER is set, as `.ci/run` does."""
    chromium = shutil.which("chromium")
    if chromium is None and not os.environ.get("TRADE_NEEDS_BROWSER"):
        pytest.skip("no chromium on this machine: apt-get install chromium")
    assert chromium, "expected chromium on the path: apt-get install chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's own sandbox does not start for root, as whom CI's containers run.
        yield playwright.chromium.launch(executable_path=chromium, chromium_sandbox=os.geteuid() != 0)
