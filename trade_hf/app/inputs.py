"""The page's left column: what a visitor gives, a program, a model's file or a trained model's files."""

from __future__ import annotations

import random
from importlib.util import find_spec
from typing import Any

import gradio as gr

from trade_hf.app.examples import EXAMPLES
from trade_hf.app.look import Updates, part, status_part
from trade_hf.app.settings import FILES, MAX_LENGTH, SCRAMBLES, domain
from trade_hf.handler import MAX_BYTES
from trade_hf.rasp.tables import sort_values
from trade_hf.report.markup import element

HAS_SAMPLER = find_spec("dataset_builder") is not None  # it is not on the Space
FILE_COMMAND = "trade compile program.py -o model.safetensors"
FIRST = "The first example is on its way…"


class Inputs:
    """The fields and buttons, with the first example in them. Made within a gr.Blocks."""

    def __init__(self) -> None:
        with gr.Tabs():
            with gr.Tab("A program"):
                self.build_program()
            with gr.Tab("A model file"):
                self.build_file()
            with gr.Tab("A trained model"):
                self.build_trained()
        self.status = gr.HTML(status_part(FIRST), apply_default_css=False, js_on_load=None)

    def build_program(self) -> None:
        first = EXAMPLES[0]
        names = [example.name for example in EXAMPLES]
        self.example = gr.Radio(names, value=first.name, label="Examples")
        self.code = gr.Textbox(
            first.code,
            label="RASP program, written as for tracr; parsed, never run",
            lines=8,
            max_lines=16,
            elem_classes="code",
            buttons=["copy"],
        )
        if HAS_SAMPLER:
            self.random = gr.Button("A random program", size="sm")
        with gr.Row():
            self.vocab = gr.Textbox(first.vocab, label="Vocabulary")
            self.length = gr.Slider(1, 12, first.length, step=1, label="Longest input")
        self.scramble = gr.Radio(
            list(SCRAMBLES),
            value=first.scramble,
            label="Change the weights before decompiling",
            info="permute: directions, hidden units and heads in a random order. rotate, skew: a random basis, "
            "orthogonal or not. compress: only the dimensions that are read.",
        )
        self.start = gr.Button("Compile, scramble, decompile", variant="primary")

    def build_file(self) -> None:
        self.file = gr.File(label=f"Safetensors, up to {MAX_BYTES // 1_000_000} MB", height=160)
        words = ("As ", element("code", FILE_COMMAND), " writes it.")
        gr.HTML(part(element("p", *words, class_="note")), apply_default_css=False, js_on_load=None)
        self.start_file = gr.Button("Decompile the file", variant="primary")

    def build_trained(self) -> None:
        self.files = gr.File(label=", ".join(FILES), file_count="multiple", height=160)
        about = "An ordinary transformer, and in domain.json its inputs and which of its outputs are answers."
        gr.HTML(part(element("p", about, class_="note")), apply_default_css=False, js_on_load=None)
        self.start_trained = gr.Button("Decompile the trained model", variant="primary")

    @property
    def fields(self) -> list[Any]:
        """What a request about a program is made of."""
        return [self.code, self.vocab, self.length, self.scramble]

    def show(self, asked: dict[str, Any]) -> Updates:
        """The fields as they are for a request."""
        length = min(max(asked["length"], 1), MAX_LENGTH)
        return dict(zip(self.fields, (asked["code"], asked["vocab"], length, asked["scramble"]), strict=True))


def random_program(vocab: str, length: float) -> str:
    """A random program as in the corpus, over the tokens that are typed. Raises gr.Error for bad ones."""
    from dataset_builder.sampler import SamplerConfig, sample_programs
    from trade_hf.rasp.text import HEADER, to_text

    try:
        tokens, longest = domain(vocab or "", length)
        seed = random.randrange(2**32)
        sample = next(sample_programs(seed, SamplerConfig(tuple(sort_values(tokens)), longest, 3, 8)))
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from None
    return to_text(sample.spelled).removeprefix(HEADER).strip() + "\n"
