"""Multipart bodies as they arrive: fields into memory, the one file straight into a blob, in whatever order."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import md5
from typing import Any, BinaryIO

from anyio.to_thread import run_sync
from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from .blobs import Blobs
from .errors import ApiError

MAX_FIELD_BYTES = 64 * 2**10
MAX_FIELDS = 64
MAX_HEADER_BYTES = 16 * 2**10
WRITE_BYTES = 2**20


@dataclass
class Form:
    """What arrived."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    blob: str = ""
    num_bytes: int = 0
    md5: str = ""


async def receive_form(
    request: Request, blobs: Blobs, *, file_field: str, kind: str, max_bytes: int, what: str = "file"
) -> Form:
    """Read a multipart body to its end.

    Args:
        request: Whose body has not been read.
        blobs: Where the file goes; it is there when this returns.
        file_field: Name of the field that is the file.
        kind: First part of the blob's key.
        max_bytes: Longest file.
        what: What an error calls it.

    Raises:
        ApiError: 400, no such body or no such file in it; 413, too long.
    """
    kind_of_body, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind_of_body != b"multipart/form-data" or not boundary:
        raise ApiError(
            400,
            f"The body is {kind_of_body.decode('latin-1') or 'of no kind'}; this needs multipart/form-data with a "
            f"boundary and a field '{file_field}'.",
            code="invalid_content_type",
        )
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > max_bytes + MAX_FIELDS * MAX_FIELD_BYTES:
        raise _too_large(what, max_bytes)
    form = Form(blob=blobs.new_key(kind))
    with ExitStack() as stack:
        reader = _Reader(form, file_field, max_bytes, what, lambda: stack.enter_context(blobs.writing(form.blob)))
        try:
            parser = MultipartParser(boundary, reader.callbacks())
            async for chunk in request.stream():
                parser.write(chunk)
                if len(reader.waiting) >= WRITE_BYTES:
                    await run_sync(reader.flush)
            parser.finalize()
        except MultipartParseError as error:
            raise ApiError(400, f"The multipart body is broken ({error}).", code="invalid_multipart") from None
        except ClientDisconnect:
            raise ApiError(400, "The connection ended before the body did.", code="incomplete_body") from None
        if not reader.ended:
            raise ApiError(400, "The multipart body ends before its closing boundary.", code="incomplete_body")
        if form.filename is None:
            raise ApiError(
                400, f"No file in the field '{file_field}'.", code="missing_required_parameter", param=file_field
            )
        await run_sync(reader.flush)
        form.md5 = reader.hash.hexdigest()
        await run_sync(stack.close)  # flushed to the disk
    return form


def _too_large(what: str, most: int) -> ApiError:
    return ApiError(413, f"The {what} is longer than {most} bytes ({most // 2**20} MB).", code=f"{what}_too_large")


class _Reader:
    """The parser's callbacks."""

    def __init__(self, form: Form, file_field: str, max_bytes: int, what: str, begin: Callable[[], BinaryIO]) -> None:
        self.form, self.file_field, self.max_bytes, self.what, self.begin = form, file_field, max_bytes, what, begin
        self.waiting = bytearray()
        """Bytes of the file that are not written yet."""
        self.hash = md5(usedforsecurity=False)
        self.ended = False
        self._file: BinaryIO | None = None
        self._name, self._value, self._headers = b"", b"", dict[bytes, bytes]()
        self._field: str | None = None
        self._text = bytearray()
        self._in_file = False

    def callbacks(self) -> Any:
        """Return the callbacks under the parser's names for them."""
        return {
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def flush(self) -> None:
        """Write what waits."""
        if self._file is not None and self.waiting:
            self.hash.update(self.waiting)
            self._file.write(self.waiting)
            self.waiting = bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]
        self._bounded()

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._bounded()

    def _bounded(self) -> None:
        if len(self._name) + len(self._value) > MAX_HEADER_BYTES:
            raise ApiError(400, "A header of the multipart body is too long.", code="invalid_multipart")

    def _header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.pop(b"content-disposition", b""))
        self._headers = {}
        name = options.get(b"name", b"").decode("utf-8", "replace")
        filename = options.get(b"filename")
        if name == self.file_field and filename is not None:
            if self._file is not None:
                raise ApiError(400, f"Two files in '{name}'. Send one.", code="invalid_multipart", param=name)
            self.form.filename = filename.decode("utf-8", "replace").replace("\0", "\ufffd")[:1000]
            self._file, self._in_file = self.begin(), True
            return
        if name == self.file_field or filename is not None:
            why = "has no file name, so it is text" if filename is None else "is a file, and none is expected there"
            raise ApiError(400, f"The field '{name}' {why}.", code="invalid_multipart", param=name or None)
        if len(self.form.fields) >= MAX_FIELDS:
            raise ApiError(400, f"More than {MAX_FIELDS} fields.", code="invalid_multipart")
        self._field, self._text = name, bytearray()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self.form.num_bytes += end - start
            if self.form.num_bytes > self.max_bytes:
                raise _too_large(self.what, self.max_bytes)
            self.waiting += data[start:end]
        elif self._field is not None:
            self._text += data[start:end]
            if len(self._text) > MAX_FIELD_BYTES:
                raise ApiError(400, f"The field '{self._field}' is too long.", code="invalid_multipart")

    def _part_end(self) -> None:
        if self._field is not None:
            self.form.fields[self._field] = self._text.decode("utf-8", "replace").replace("\0", "\ufffd")
        self._field, self._in_file = None, False

    def _end(self) -> None:
        self.ended = True
