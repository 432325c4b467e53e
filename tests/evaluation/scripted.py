"""An HTTP server in this process that answers as a test scripts it."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], Any]
"""Status, headers, and a JSON value or bytes."""


@dataclass
class Served:
    """The server's base URL and what it was asked."""

    url: str
    calls: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    most_at_a_time: int = 0


@contextmanager
def serving(script: Callable[[int, str, dict[str, Any]], Answer]) -> Iterator[Served]:
    """Inside, ``script(number of the call, path, body)`` answers every POST."""
    lock, running = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                number = len(served.calls)
                served.calls.append((self.path, body, {name.lower(): text for name, text in self.headers.items()}))
                running[0] += 1
                served.most_at_a_time = max(served.most_at_a_time, running[0])
            try:
                status, headers, value = script(number, self.path, body)
            finally:
                with lock:
                    running[0] -= 1
            content = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in {**headers, "content-length": str(len(content))}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Served(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def said(text: Any) -> Answer:
    """A chat completion that says ``text``."""
    return 200, {}, {"choices": [{"message": {"role": "assistant", "content": text}}]}


def flagged(yes: Any) -> Answer:
    """A moderation."""
    return 200, {}, {"results": [{"flagged": yes, "categories": {"violence": yes, "hate": False}}]}
