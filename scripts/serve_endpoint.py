"""Serve a model folder's handler.py on this machine, as Inference Endpoints does: POST JSON, get JSON or a 400.

Run: python scripts/export_checkpoint.py trade_hf/assets/trade-base hub/trade-base --remote-code
     python scripts/serve_endpoint.py hub/trade-base --port 8080
     curl localhost:8080 -d "{\"inputs\": \"$(base64 -w0 model.safetensors)\"}"

Answers as Hugging Face's inference toolkit (webservice_starlette.py): what the handler raises is a 400 with
{"error": "<one line>"}. Requests that are too large, too slow, packed or too many are refused before they reach it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import BoundedSemaphore, Thread
from typing import Any

MAX_BODY = 24_000_000  # bytes: what the handler takes, in base64
MAX_DISCARDED = 500_000_000  # bytes of a body too large that are read, so that the client gets to see the answer
MAX_REQUESTS = 32  # at a time
BODY_LIMIT = 20.0  # seconds that sending a body may take
CHUNK = 2**16

Handler = Callable[[Any], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="as scripts/export_checkpoint.py --remote-code writes it")
    parser.add_argument("--port", type=int, default=8080)
    args = parser.parse_args()
    server = Server(load_handler(args.folder), args.port)
    print(f"http://127.0.0.1:{server.server_port}")
    server.serve_forever()


def load_handler(folder: Path, **limits: Any) -> Any:
    """The EndpointHandler of a folder, found as the toolkit finds it. Raises FileNotFoundError where there is none."""
    path = folder / "handler.py"
    spec = importlib.util.spec_from_file_location("handler", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"{folder}: expected a folder with a handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler(str(folder), **limits)


class Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, handler: Handler, port: int = 0, body_limit: float = BODY_LIMIT) -> None:
        super().__init__(("127.0.0.1", port), partial(Connection, handler, body_limit, BoundedSemaphore(MAX_REQUESTS)))


@contextmanager
def serving(handler: Handler, body_limit: float = BODY_LIMIT) -> Iterator[int]:
    """The port of a server that runs in a thread."""
    with Server(handler, 0, body_limit) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


class Connection(BaseHTTPRequestHandler):
    """One connection, with one request."""

    wbufsize = -1

    def __init__(self, handler: Handler, body_limit: float, places: BoundedSemaphore, *args: Any) -> None:
        self.handler, self.body_limit, self.places = handler, body_limit, places
        self.timeout = body_limit  # of the socket, for the head of the request too
        super().__init__(*args)

    def do_GET(self) -> None:  # noqa: N802
        self.answer(200, {"status": "ok"})

    def do_POST(self) -> None:  # noqa: N802
        if not self.places.acquire(blocking=False):
            return self.answer(503, {"error": f"busy: {MAX_REQUESTS} requests are under way"})
        try:
            self.answer(200, self.handler(self.parsed_body()))
        except Refusal as refusal:
            self.answer(refusal.status, {"error": str(refusal)})
        except (ValueError, TimeoutError, RuntimeError) as error:
            self.answer(400, {"error": str(error)})
        finally:
            self.places.release()

    def parsed_body(self) -> Any:
        if self.headers.get("Content-Encoding", "identity") != "identity":
            raise Refusal(415, f"expected a plain body, got one in {self.headers['Content-Encoding']}")
        try:
            return json.loads(self.body())
        except (ValueError, RecursionError):
            raise Refusal(400, "expected JSON") from None

    def body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            raise Refusal(411, "expected a Content-Length")
        if int(length) > MAX_BODY:
            for _ in self.chunks(min(int(length), MAX_DISCARDED)):
                pass
            raise Refusal(413, f"expected at most {MAX_BODY:,} bytes, got {int(length):,}")
        return b"".join(self.chunks(int(length)))

    def chunks(self, length: int) -> Iterator[bytes]:
        """What the client sends, up to `length` bytes; Refusal when that takes too long."""
        end = time.monotonic() + self.body_limit
        while length:
            self.connection.settimeout(max(end - time.monotonic(), 0.001))
            try:
                chunk = self.rfile.read1(min(length, CHUNK))
            except TimeoutError:
                raise Refusal(408, f"the body did not come within {self.body_limit:g} s") from None
            if not chunk:
                raise Refusal(400, f"the body ended {length:,} bytes early")
            length -= len(chunk)
            yield chunk

    def answer(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Nothing."""


if __name__ == "__main__":
    main()
