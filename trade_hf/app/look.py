"""What the demo's page looks like: its words, fonts, style and scripts, and the small parts that it is made of."""

from __future__ import annotations

from typing import Any

import gradio as gr

from trade_hf.report.markup import Html, element, script, style

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
Updates = dict[Any, Any]  # what an event shows, by component


def head() -> str:
    """What all parts need, once on a page."""
    return f"{style()}{CSS}{SCRIPT}<script>{script()}</script>"


def part(*content: object, kind: str = "trade") -> Html:
    return element("div", *content, class_=kind)


def shown_part(content: str) -> gr.HTML:
    """A place for HTML, and what stands there first."""
    return gr.HTML(part(Html(content)), apply_default_css=False, js_on_load=None)


def status_part(words: str) -> Html:
    """What is being done."""
    return part(element("p", words, class_="note", role="status"), kind="trade step")


def error_part(words: str) -> Html:
    return part(element("p", element("strong", "Not done"), " ", words, class_="verdict refuted", role="alert"))
