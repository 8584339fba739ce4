"""Serve a model folder's handler.py on this machine, as Inference Endpoints does: POST JSON, get JSON or a 400.

Run: python scripts/export_checkpoint.py trade_hf/assets/trade-base hub/trade-base --remote-code
     python scripts/serve_endpoint.py hub/trade-base --port 8080
     curl localhost:8080 -d "{\"inputs\": \"$(base64 -w0 model.safetensors)\"}"

Answers as Hugging Face's inference toolkit (webservice_starlette.py): what the handler raises is a 400 with
{"error": "<one line>"}. Requests that are too large, too slow, packed or too many are refused before they reach it.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

MAX_BODY = 24_000_000  # bytes: what the handler takes, in base64
MAX_REQUESTS = 32  # at a time
BODY_LIMIT = 20.0  # seconds that sending a body may take

Handler = Callable[[Any], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="as scripts/export_checkpoint.py --remote-code writes it")
    parser.add_argument("--port", type=int, default=8080)
    args = parser.parse_args()
    uvicorn.run(application(load_handler(args.folder)), port=args.port, log_level="info")


def load_handler(folder: Path, **limits: Any) -> Any:
    """The EndpointHandler of a folder, found as the toolkit finds it. Raises FileNotFoundError where there is none."""
    path = folder / "handler.py"
    spec = importlib.util.spec_from_file_location("handler", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"{folder}: expected a folder with a handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler(str(folder), **limits)


def application(handler: Handler, body_limit: float = BODY_LIMIT) -> Starlette:
    """The web application: GET says that it is there, POST asks the handler.

    Args:
      handler: what is asked, in a thread of its own.
      body_limit: seconds that sending a body may take.
    """
    places = asyncio.Semaphore(MAX_REQUESTS)

    async def ready(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def answer(request: Request) -> JSONResponse:
        if places.locked():
            raise HTTPException(503, f"busy: {MAX_REQUESTS} requests are under way")
        async with places:
            asked = parsed(request, await body(request, body_limit))
            try:
                return JSONResponse(await run_in_threadpool(handler, asked))
            except (ValueError, TimeoutError, RuntimeError) as error:
                raise HTTPException(400, str(error)) from None

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code)

    routes = [Route("/{path:path}", ready, methods=["GET"]), Route("/{path:path}", answer, methods=["POST"])]
    return Starlette(routes=routes, exception_handlers={HTTPException: refused})


async def body(request: Request, limit: float) -> bytes:
    """What the client sends. One too large is read and thrown away, so that the client gets to see the answer."""
    parts: list[bytes] = []
    length = 0
    try:
        async with asyncio.timeout(limit):
            async for part in request.stream():
                length += len(part)
                if length <= MAX_BODY:
                    parts.append(part)
    except TimeoutError:
        if length <= MAX_BODY:
            raise HTTPException(408, f"the body did not come within {limit:g} s") from None
    if length > MAX_BODY:
        raise HTTPException(413, f"expected at most {MAX_BODY:,} bytes, got more")
    return b"".join(parts)


def parsed(request: Request, content: bytes) -> Any:
    """The JSON of a body."""
    packed = request.headers.get("content-encoding", "identity")
    if packed != "identity":
        raise HTTPException(415, f"expected a plain body, got one in {packed}")
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise HTTPException(400, "expected JSON") from None


@contextmanager
def serving(handler: Handler, body_limit: float = BODY_LIMIT) -> Iterator[int]:
    """The port of a server that runs in a thread."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(application(handler, body_limit), log_level="error"))
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


if __name__ == "__main__":
    main()
