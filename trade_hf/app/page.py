"""The demo's page, in Gradio. What it answers comes from a worker with limits of time and memory (answers.py).

Nothing is sent anywhere: no analytics, no fonts or scripts of others.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from importlib.util import find_spec
from queue import SimpleQueue
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr

from trade_hf.app.bounds import bounded
from trade_hf.app.examples import EXAMPLES, Example
from trade_hf.app.settings import FILES, MAX_LENGTH, SCRAMBLES, STATE, domain
from trade_hf.handler import MAX_BYTES, Worker
from trade_hf.rasp.tables import sort_values
from trade_hf.report.markup import Html, element, style

TIME_LIMIT = 20.0  # seconds that a request may take to arrive, and then to run
MAX_BODY = MAX_BYTES + 100_000  # bytes of a request: a file, and what stands around it
MAX_WAITING = 64  # requests in the queue
HAS_SAMPLER = find_spec("dataset_builder") is not None  # it is not on the Space
PARTS = ("lead", "places", "input", "known", "weights", "tried", "keep")
TITLE = "TraDe: transformers back into programs"
ABOUT = (
    element("a", "RASP", href="https://arxiv.org/abs/2106.06981"),
    " is a small language for what transformers compute. ",
    element("a", "Tracr", href="https://arxiv.org/abs/2301.05062"),
    " compiles RASP programs into transformer weights. TraDe goes the other way: it reads the program out of the "
    "weights, and says how far the two are known to agree. The method follows ",
    element("a", "Neural Decompiling of Tracr Transformers", href="https://arxiv.org/abs/2410.00061"),
    ".",
)
FILE_COMMAND = "trade compile program.py -o model.safetensors"
# Fonts that are there; Gradio's own theme would fetch its from elsewhere.
SANS = ("system-ui", "Segoe UI", "Liberation Sans", "sans-serif")
MONO = ("ui-monospace", "DejaVu Sans Mono", "Menlo", "Consolas", "monospace")
THEME = gr.themes.Default(font=SANS, font_mono=MONO, primary_hue="blue").set(
    block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300"
)
CSS = """<style>
.gradio-container { width: 100%; max-width: 1320px !important; margin: 0 auto !important; }
.gradio-container div.trade { border: 0; padding: 0; background: none; --paper: light-dark(#ffffff, #18181b); }
.step p { margin: 0 2px; }
@media (max-width: 560px) {
  .gradio-container .app { padding: 8px !important; }
  .gradio-container .tab-container button { padding: 0 5px !important; font-size: 14px !important; }
}
.trade.title h1 { margin: 8px 0 4px; font-size: 1.5rem; }
.trade.title p { margin: 0; color: var(--soft); max-width: 46rem; }
.trade button.copy { font: inherit; color: var(--accent); background: none; border: 1px solid var(--line);
  border-radius: 4px; padding: 0 8px; cursor: pointer; }
@media (min-width: 900px) {
  .inputs { position: sticky; top: 0; align-self: flex-start; max-height: 100vh; overflow-y: auto; }
}
.code textarea { font: 13px/1.6 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace !important; }
.trade .beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: 0 28px; }
.trade .beside h2 { margin-top: 16px; }
.gradio-container .trade > h2:first-child { margin-top: 6px; }
</style>"""
# A button with the class `copy` copies the code above it.
SCRIPT = """<script>
document.addEventListener("click", async event => {
  const button = event.target.closest("button.copy");
  if (!button) return;
  await navigator.clipboard.writeText(button.closest(".trade").querySelector("pre").innerText + "\\n");
  button.textContent = "Copied";
});
</script>"""
FIRST = "The first example is on its way…"
READY, REFUSED = "Ready.", "Not done."
Updates = dict[Any, Any]
REFUSALS = (ValueError, TimeoutError, RuntimeError)  # what `Worker.ask` raises


def serve(port: int | None = None, time_limit: float | None = None, host: str | None = None) -> None:
    """Serve the page until interrupted; on 127.0.0.1, unless `host` or GRADIO_SERVER_NAME says otherwise."""
    launch(Demo(time_limit or TIME_LIMIT), port, host, prevent_thread_lock=False)


def launch(demo: Demo, port: int | None = None, host: str | None = None, prevent_thread_lock: bool = True) -> str:
    """Start the server; gives its address."""
    demo.page.queue(max_size=MAX_WAITING, default_concurrency_limit=2, api_open=False)
    _, address, _ = demo.page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        _frontend=False,  # no check that the page answers within three seconds, which it does not on a busy machine
        quiet=prevent_thread_lock,
        share=False,
        ssr_mode=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        max_file_size=MAX_BYTES,
        state_session_capacity=500,
        app_kwargs=bounded(MAX_BODY, demo.time_limit),
        theme=THEME,
        head=str(style()) + CSS + SCRIPT,
    )
    demo.start_worker()  # the page is there meanwhile
    if not prevent_thread_lock:
        demo.page.block_thread()
    return address


class Demo:
    """The page, with the worker behind it, which starts in the meantime, and the examples' answers, once computed."""

    def __init__(self, time_limit: float = TIME_LIMIT) -> None:
        self.time_limit = time_limit
        self.starting: Future[Worker] = Future()
        self.ready: dict[str, dict[str, str]] = {}
        self.page = self.build()

    def start_worker(self) -> None:
        """Start the process that answers, without waiting for it."""
        threading.Thread(target=self._start, daemon=True).start()

    def _start(self) -> None:
        command = [sys.executable, "-m", "trade_hf.app.worker", str(self.time_limit)]
        try:
            self.starting.set_result(Worker(command, "the demo"))
        except RuntimeError as error:
            self.starting.set_exception(error)

    @property
    def worker(self) -> Worker:
        """The process that answers, once it has started. Raises RuntimeError where it could not be started."""
        return self.starting.result()

    def close(self) -> None:
        self.page.close()
        self.worker.close()

    def ask(self, request: dict[str, Any], asks: str = "decompile") -> Generator[str, None, Any]:
        """Yields the names of the steps while the worker takes them; returns its answer. Raises as `Worker.ask`."""
        heard: SimpleQueue[str | None] = SimpleQueue()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(lambda: self.worker.ask({**request, "asks": asks}, heard.put))
            answer.add_done_callback(lambda _: heard.put(None))
            while (step := heard.get()) is not None:
                yield step
        return answer.result()

    # ------------------------------------------------------------ the page

    def build(self) -> gr.Blocks:
        first = EXAMPLES[0]
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as page:
            title = part(element("h1", TITLE), element("p", *ABOUT), kind="trade title")
            gr.HTML(title, apply_default_css=False, js_on_load=None)
            with gr.Row(equal_height=False):
                with gr.Column(scale=4, min_width=320, elem_classes="inputs"):
                    self.build_inputs(first)
                with gr.Column(scale=5, min_width=320):
                    self.parts = {"lead": shown_part(element("p", FIRST, class_="note"))}
                    self.build_details(first)
            self.connect(page)
        return page

    def build_inputs(self, first: Example) -> None:
        with gr.Tabs():
            with gr.Tab("A program"):
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
            with gr.Tab("A model file"):
                self.file = gr.File(label=f"Safetensors, up to {MAX_BYTES // 1_000_000} MB", height=160)
                words = ("As ", element("code", FILE_COMMAND), " writes it.")
                gr.HTML(part(element("p", *words, class_="note")), apply_default_css=False, js_on_load=None)
                self.start_file = gr.Button("Decompile the file", variant="primary")
            with gr.Tab("A trained model"):
                self.files = gr.File(label=", ".join(FILES), file_count="multiple", height=160)
                about = "An ordinary transformer, and in domain.json its inputs and which of its outputs are answers."
                gr.HTML(part(element("p", about, class_="note")), apply_default_css=False, js_on_load=None)
                self.start_trained = gr.Button("Decompile the trained model", variant="primary")
        self.status = gr.HTML(status_part(FIRST), apply_default_css=False, js_on_load=None)

    def build_details(self, first: Example) -> None:
        self.asked = gr.State({**asdict(first), "found": ""})
        with gr.Column(visible=False) as self.details, gr.Tabs():
            with gr.Tab("Layers"):
                self.parts["places"] = shown_part("")
            with gr.Tab("Attention"):
                label = "Input: tokens, separated by commas"
                self.tokens = gr.Textbox(first.tokens, label=label, submit_btn="Show")
                self.parts["input"] = shown_part("")
            for name, title in (("known", "Proof"), ("weights", "Weights"), ("tried", "Tried"), ("keep", "Keep")):
                with gr.Tab(title):
                    self.parts[name] = shown_part("")

    def connect(self, page: gr.Blocks) -> None:
        fields = [self.code, self.vocab, self.length, self.scramble]
        outputs = [*self.parts.values(), self.details, self.tokens, self.asked, self.status]
        show: dict[str, Any] = {"show_progress": "hidden", "concurrency_id": "worker"}
        self.start.click(self.on_program, [*fields, self.tokens], outputs, api_name="decompile", **show)
        self.start_file.click(self.on_file, [self.file, self.tokens], outputs, api_name="decompile_file", **show)
        self.start_trained.click(self.on_trained, [self.files], outputs, api_name="decompile_trained", **show)
        of_example = [*fields, *outputs]
        self.example.input(self.on_example, self.example, of_example, api_visibility="private", **show)
        page.load(self.on_load, None, [self.example, *of_example], api_visibility="private", **show)
        if HAS_SAMPLER:
            domain_fields = [self.vocab, self.length]
            self.random.click(random_program, domain_fields, self.code, api_visibility="private", queue=False)
        shown = [self.parts["input"], self.status]
        self.tokens.submit(self.on_input, [self.asked, self.tokens], shown, api_visibility="private", **show)

    # ------------------------------------------------------------ events

    def on_program(self, code: str, vocab: str, length: float, scramble: str, tokens: str) -> Iterator[Updates]:
        request = {"code": code or "", "vocab": vocab or "", "length": length, "scramble": scramble, "tokens": tokens}
        yield from self.answered(request)

    def on_file(self, file: str | None, tokens: str) -> Iterator[Updates]:
        if file is None:
            yield self.refused("expected a safetensors file, got none: drop one above")
        else:
            yield from self.answered({"file": file, "tokens": tokens})

    def on_trained(self, files: list[str] | None) -> Iterator[Updates]:
        if not files:
            yield self.refused(f"expected the files {', '.join(FILES)}, got none: drop them above")
        else:
            yield from self.answered({"trained": files})

    def on_example(self, name: str) -> Iterator[Updates]:
        example = next(example for example in EXAMPLES if example.name == name)
        yield self.fields(asdict(example))
        if name not in self.ready:
            try:
                self.ready[name], _ = yield from self.told(asdict(example), "decompile")
            except REFUSALS as error:
                yield self.refused(str(error))
                return
        yield self.updates(asdict(example), self.ready[name]) | {self.status: status_part(READY)}

    def on_load(self, request: gr.Request) -> Iterator[Updates]:
        """What a link holds, or the first example."""
        given = dict(request.query_params)
        if "code" not in given:
            yield from self.on_example(EXAMPLES[0].name)
            return
        first = asdict(EXAMPLES[0])
        asked: dict[str, Any] = {name: str(given.get(name, first[name])) for name in STATE}
        asked["length"] = int(asked["length"]) if asked["length"].isdecimal() else first["length"]
        asked["scramble"] = asked["scramble"] if asked["scramble"] in SCRAMBLES else first["scramble"]
        yield self.fields(asked) | {self.example: None, self.tokens: asked["tokens"]}
        yield from self.answered(asked)

    def fields(self, asked: dict[str, Any]) -> Updates:
        """The left column as it is for a request."""
        length = min(max(asked["length"], 1), MAX_LENGTH)
        return {
            self.code: asked["code"],
            self.vocab: asked["vocab"],
            self.length: length,
            self.scramble: asked["scramble"],
        }

    def on_input(self, asked: dict[str, Any], tokens: str) -> Iterator[Updates]:
        try:
            answer, done = yield from self.told({**asked, "tokens": tokens}, "input")
            yield {self.parts["input"]: part(Html(answer))} | done
        except REFUSALS as error:
            yield {self.parts["input"]: error_part(str(error)), self.status: status_part(REFUSED)}

    def answered(self, request: dict[str, Any]) -> Iterator[Updates]:
        try:
            answer, done = yield from self.told(request, "decompile")
            yield self.updates(request, answer) | done
        except REFUSALS as error:
            yield self.refused(str(error))

    def told(self, request: dict[str, Any], asks: str) -> Generator[Updates, None, tuple[Any, Updates]]:
        """Shows each step; returns the answer, and the status to show together with it."""
        start = time.monotonic()
        yield {self.status: status_part("Waiting for others…")}
        steps = self.ask(request, asks)
        while True:
            try:
                yield {self.status: status_part(f"{next(steps)}…")}
            except StopIteration as end:
                return end.value, {self.status: status_part(f"Done in {time.monotonic() - start:.2f} s.")}

    def updates(self, request: dict[str, Any], answer: dict[str, str]) -> Updates:
        shown = {self.parts[name]: part(Html(answer[name])) for name in PARTS}
        asked = {**request, "found": answer["found"]}
        return {**shown, self.tokens: answer["tokens"], self.asked: asked, self.details: gr.Column(visible=True)}

    def refused(self, words: str) -> Updates:
        lead = {self.parts["lead"]: error_part(words), self.status: status_part(REFUSED)}
        return {**lead, self.details: gr.Column(visible=False)}


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


def part(*content: object, kind: str = "trade") -> Html:
    return element("div", *content, class_=kind)


def shown_part(content: str) -> gr.HTML:
    return gr.HTML(part(Html(content)), apply_default_css=False, js_on_load=None)


def status_part(words: str) -> Html:
    """What is being done."""
    return part(element("p", words, class_="note", role="status"), kind="trade step")


def error_part(words: str) -> Html:
    return part(element("p", element("strong", "Not done"), " ", words, class_="verdict refuted", role="alert"))
