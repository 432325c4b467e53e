"""Peak memory of the API's process under the largest and the worst uploads: below 300 MB, whatever is sent.

    python benchmarks/server_memory.py [--megabytes 512]

The server runs in a process of its own, without workers and inference. Before each upload the kernel is asked to forget
the process's peak; after it the peak resident set is read. Form is checked in a further process, whose memory is
limited by ``limits.validation_memory_bytes`` and is not counted here.
"""

import argparse
import json
import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2

from antibody_llm.files import write_text
from antibody_llm.server.defences import load_defences
from antibody_llm.server.settings import DefenceSettings, OfferedModel, ServerSettings
from server_load import SERVE, ended, started

RESULTS = Path(__file__).parent / "results" / "server_memory.json"
MIB, BOUNDARY = 2**20, "antibody"
PART = 32 * MIB
ROW = json.dumps({"messages": [{"role": "user", "content": "q" * 500}, {"role": "assistant", "content": "a" * 500}]})


def repeated(piece: bytes, num_bytes: int) -> Iterator[bytes]:
    """So many bytes of a piece again and again, in portions of about a megabyte."""
    portion = piece * max(1, MIB // len(piece))
    while num_bytes > 0:
        yield portion[:num_bytes]
        num_bytes -= len(portion)


def form(field: str, content: Iterator[bytes], **fields: str) -> Iterator[bytes]:
    """A multipart body."""
    for name, value in fields.items():
        yield f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    yield f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="a.jsonl"\r\n\r\n'.encode()
    yield from content
    yield f"\r\n--{BOUNDARY}--\r\n".encode()


class Sender:
    """Sends bodies to the server, a megabyte at a time."""

    def __init__(self, url: str, key: str) -> None:
        self.http = httpx2.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=1800)

    def send(self, path: str, body: Iterator[bytes]) -> Any:
        """What was answered."""
        kind = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
        return self.http.post(path, content=body, headers=kind).json()

    def file(self, content: Iterator[bytes]) -> str:
        """Upload a file to train on; how it was answered."""
        found = self.send("/files", form("file", content, purpose="fine-tune"))
        return str(found.get("status") or found["error"]["code"])

    def in_parts(self, num_bytes: int) -> str:
        """Upload a file in parts; how it was answered."""
        asked = {"bytes": num_bytes, "filename": "a.jsonl", "mime_type": "text/plain", "purpose": "fine-tune"}
        upload = self.http.post("/uploads", json=asked).json()["id"]
        parts, left, row = [], num_bytes, (ROW + "\n").encode()
        while left > 0:
            size = min(PART - PART % len(row), left)
            parts.append(self.send(f"/uploads/{upload}/parts", form("data", repeated(row, size)))["id"])
            left -= size
        done = self.http.post(f"/uploads/{upload}/complete", json={"part_ids": parts}).json()
        return str(done.get("status") or done["error"]["code"])


def peak_mib(pid: int) -> float:
    """Peak resident set since it was forgotten, in MiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
    assert found is not None
    return round(int(found[1]) / 1024, 1)


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=512, help="of the largest file")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    row = (ROW + "\n").encode()
    whole = given.megabytes * MIB // len(row) * len(row)
    deep = b'{"messages": ' + b"[" * 10**6 + b"]" * 10**6 + b"}\n"
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        models = (OfferedModel(name="lab", path="lab-aligned"),)
        settings = ServerSettings(home=home, port=port, models=models, defence=DefenceSettings(name="sft"))
        load_defences(home)
        server = started(["-c", SERVE], settings, None, home / "server.log")
        stack.callback(ended, server)
        key = ""
        assert server.stdout is not None
        for line in server.stdout:
            key = key or (line.split()[-1] if "sk-operator-" in line else "")
            if line.startswith("http://"):
                break
        sender, base = Sender(f"http://127.0.0.1:{port}/v1", key), f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                httpx2.get(f"{base}/health")
                break
            except httpx2.HTTPError:
                time.sleep(0.1)
        uploads: dict[str, Callable[[], str]] = {
            f"a file of {given.megabytes} MB": lambda: sender.file(repeated(row, whole)),
            f"{given.megabytes} MB in parts": lambda: sender.in_parts(whole),
            "10^6 lines of two bytes": lambda: sender.file(repeated(b"{}\n", 3 * 10**6)),
            "one line of 100 MB": lambda: sender.file(repeated(b"x", 100 * MIB)),
            "JSON of 10^6 levels": lambda: sender.file(iter([deep])),
        }
        rows = []
        at_rest = peak_mib(server.pid)
        for name, upload in uploads.items():
            Path(f"/proc/{server.pid}/clear_refs").write_text("5", encoding="ascii")
            began = time.monotonic()
            answered = upload()
            rows.append(
                {
                    "upload": name,
                    "answered": answered,
                    "peak_mib": peak_mib(server.pid),
                    "seconds": round(time.monotonic() - began, 1),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    results = {"at_rest_mib": at_rest, "most_mib": max(float(str(each["peak_mib"])) for each in rows), "uploads": rows}
    write_text(given.output, json.dumps(results, indent=1) + "\n")
    sys.exit(0 if results["most_mib"] < 300 else 1)


if __name__ == "__main__":
    main()
