"""The page's right column: an answer's parts in tabs, the input that is shown, and the line that is silenced."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import gradio as gr

from trade_hf.app.examples import EXAMPLES
from trade_hf.app.inputs import FIRST
from trade_hf.app.look import Updates, error_part, part, shown_part
from trade_hf.report.markup import Html, element

PARTS = ("lead", "places", "input", "known", "weights", "tried", "keep")
TABS = (("known", "Proof"), ("weights", "Weights"), ("tried", "Tried"), ("keep", "Keep"))


class Details:
    """The parts by name, each a gr.HTML. Made within a gr.Blocks; all but the lead is hidden until there is an answer.

    `asked` holds the request that is shown, with the program that was found for it.
    """

    def __init__(self) -> None:
        first = EXAMPLES[0]
        self.parts = {"lead": shown_part(element("p", FIRST, class_="note"))}
        self.asked = gr.State({**asdict(first), "found": ""})
        with gr.Column(visible=False) as self.column, gr.Tabs():
            with gr.Tab("Layers"):
                self.parts["places"] = shown_part("")
            with gr.Tab("Attention"):
                label = "Input: tokens, separated by commas"
                self.tokens = gr.Textbox(first.tokens, label=label, submit_btn="Show")
                self.line = gr.Radio([], label="Silence a line's parts on this input")
                self.silence = shown_part("")
                self.parts["input"] = shown_part("")
            for name, title in TABS:
                with gr.Tab(title):
                    self.parts[name] = shown_part("")

    @property
    def outputs(self) -> list[Any]:
        """All that an answer changes; the parts come first, in the order of `PARTS`."""
        return [*(self.parts[name] for name in PARTS), self.column, self.tokens, self.asked, self.line, self.silence]

    def show(self, request: dict[str, Any], answer: dict[str, str]) -> Updates:
        shown = {self.parts[name]: part(Html(answer[name])) for name in PARTS}
        lines = re.findall(r"^(v\d+) = ", answer["found"], re.MULTILINE)
        asked = {self.asked: {**request, "found": answer["found"]}, self.tokens: answer["tokens"]}
        silence = {self.line: gr.Radio(lines, value=None), self.silence: part()}
        return {**shown, **asked, **silence, self.column: gr.Column(visible=True)}

    def refuse(self, words: str) -> Updates:
        return {self.parts["lead"]: error_part(words), self.column: gr.Column(visible=False)}
