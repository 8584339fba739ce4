"""What a page's server takes of a request: a body of bounded size, within bounded time, and no address to fetch.

Gradio bounds the files of an upload alone: other fields and JSON go into memory whole, a body may take for ever, and
what has come of a file whose sender goes away stays on the disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import gradio as gr
from gradio import processing_utils
from starlette.formparsers import MultiPartException
from starlette.middleware import Middleware

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]


def bounded(max_bytes: int, seconds: float) -> dict[str, Any]:
    """What a page's `launch` is given as `app_kwargs`."""
    processing_utils.async_ssrf_protected_download = refuse_address
    return {"middleware": [Middleware(BodyLimit, max_bytes=max_bytes, seconds=seconds)]}


async def refuse_address(url: str, cache_dir: str) -> str:
    """In the place of what fetches, whatever its size, a file that a request names by its address on the web."""
    raise gr.Error("expected a file that was uploaded, got an address", print_exception=False)


class BodyLimit:
    """ASGI middleware that refuses bodies of more than `max_bytes`, and those that do not come whole within `seconds`.

    What is too large is read and thrown away, so that the client gets to see the answer. A refusal is raised as what
    Gradio's own parser raises: Gradio then removes the file that it has begun and answers 413 or 400.
    """

    def __init__(self, app: Any, max_bytes: int, seconds: float) -> None:
        self.app, self.max_bytes, self.seconds = app, max_bytes, seconds

    async def __call__(self, scope: Message, receive: Receive, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            announced = dict(scope["headers"]).get(b"content-length", b"0")
            receive = self.bounded(receive, int(announced))
        await self.app(scope, receive, send)

    def bounded(self, receive: Receive, announced: int) -> Receive:
        end = asyncio.get_running_loop().time() + self.seconds
        is_whole, taken = False, 0

        async def receive_bounded() -> Message:
            nonlocal is_whole, taken
            if is_whole:  # all that can follow is that the client goes away
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
                    taken += len(message.get("body", b""))
                    is_too_large = max(announced, taken) > self.max_bytes
                    while is_too_large and message.get("more_body"):
                        message = await receive()
            except TimeoutError:
                raise MultiPartException(f"The body did not come within {self.seconds:g} s.") from None
            if is_too_large:
                raise MultiPartException(f"The body exceeded the maximum allowed size of {self.max_bytes:,} bytes.")
            if message["type"] == "http.disconnect":
                raise MultiPartException("The body ended early.")
            is_whole = not message.get("more_body")
            return message

        return receive_bounded
