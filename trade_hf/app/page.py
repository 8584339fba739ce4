"""The demo's page, in Gradio. What it answers comes from a worker with limits of time and memory (answers.py).

Nothing is sent anywhere: no analytics, no fonts or scripts of others.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from queue import SimpleQueue
from typing import Any

import gradio as gr

from trade_hf.app.bounds import bounded
from trade_hf.app.details import Details
from trade_hf.app.examples import EXAMPLES
from trade_hf.app.inputs import HAS_SAMPLER, Inputs, random_program
from trade_hf.app.look import ABOUT, THEME, TITLE, Updates, error_part, head, part, status_part
from trade_hf.app.settings import FILES, SCRAMBLES, STATE
from trade_hf.handler import MAX_BYTES, Worker
from trade_hf.report.markup import Html, element

TIME_LIMIT = 20.0  # seconds that a request may take to arrive, and then to run
MAX_BODY = MAX_BYTES + 100_000  # bytes of a request: a file, and what stands around it
MAX_WAITING = 64  # requests in the queue
READY, REFUSED = "Ready.", "Not done."
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
        head=head(),
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
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as page:
            title = part(element("h1", TITLE), element("p", *ABOUT), kind="trade title")
            gr.HTML(title, apply_default_css=False, js_on_load=None)
            with gr.Row(equal_height=False):
                with gr.Column(scale=4, min_width=320, elem_classes="inputs"):
                    self.inputs = Inputs()
                with gr.Column(scale=5, min_width=320):
                    self.details = Details()
            self.status = self.inputs.status
            self.connect(page)
        return page

    def connect(self, page: gr.Blocks) -> None:
        inputs, details = self.inputs, self.details
        outputs = [*details.outputs, self.status]
        show: dict[str, Any] = {"show_progress": "hidden", "concurrency_id": "worker"}
        inputs.start.click(self.on_program, [*inputs.fields, details.tokens], outputs, api_name="decompile", **show)
        of_file = [inputs.file, details.tokens]
        inputs.start_file.click(self.on_file, of_file, outputs, api_name="decompile_file", **show)
        inputs.start_trained.click(self.on_trained, [inputs.files], outputs, api_name="decompile_trained", **show)
        show["api_visibility"] = "private"
        of_example = [*inputs.fields, *outputs]
        inputs.example.input(self.on_example, inputs.example, of_example, **show)
        page.load(self.on_load, None, [inputs.example, *of_example], **show)
        if HAS_SAMPLER:
            of_random = [inputs.vocab, inputs.length]
            inputs.random.click(random_program, of_random, inputs.code, api_visibility="private", queue=False)
        shown = [details.parts["input"], self.status]
        silenced, given = [details.silence, self.status], [details.asked, details.tokens, details.line]
        submitted = details.tokens.submit(self.on_input, [details.asked, details.tokens], shown, **show)
        submitted.then(self.on_silence, given, silenced, **show)
        details.line.input(self.on_silence, given, silenced, **show)

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
        yield self.inputs.show(asdict(example))
        if name not in self.ready:
            try:
                self.ready[name], _ = yield from self.told(asdict(example), "decompile")
            except REFUSALS as error:
                yield self.refused(str(error))
                return
        yield self.details.show(asdict(example), self.ready[name]) | {self.status: status_part(READY)}

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
        yield self.inputs.show(asked) | {self.inputs.example: None, self.details.tokens: asked["tokens"]}
        yield from self.answered(asked)

    def on_input(self, asked: dict[str, Any], tokens: str) -> Iterator[Updates]:
        yield from self.shown_in(self.details.parts["input"], {**asked, "tokens": tokens}, "input")

    def on_silence(self, asked: dict[str, Any], tokens: str, line: str | None) -> Iterator[Updates]:
        if line is None:
            yield {self.details.silence: part()}
        else:
            yield from self.shown_in(self.details.silence, {**asked, "tokens": tokens, "line": line}, "silence")

    def shown_in(self, place: gr.HTML, request: dict[str, Any], asks: str) -> Iterator[Updates]:
        """Shows an answer, or why there is none, in one place of the page."""
        try:
            answer, done = yield from self.told(request, asks)
            yield {place: part(Html(answer))} | done
        except REFUSALS as error:
            yield {place: error_part(str(error)), self.status: status_part(REFUSED)}

    def answered(self, request: dict[str, Any]) -> Iterator[Updates]:
        try:
            answer, done = yield from self.told(request, "decompile")
            yield self.details.show(request, answer) | done
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

    def refused(self, words: str) -> Updates:
        return self.details.refuse(words) | {self.status: status_part(REFUSED)}
