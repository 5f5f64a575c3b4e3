"""Reads server-sent events (WHATWG HTML, 9.2) from bytes as they arrive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

#: A single frame larger than this is no answer of ours.
LARGEST_FRAME_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Frame:
    """One event; ``id`` is empty when the frame had none."""

    event: str
    data: str
    id: str = ""


def frames(chunks: Iterable[bytes]) -> Iterator[Frame]:
    """Frames as they are complete; an unfinished last one is dropped, as the standard says.

    :raises ValueError: a line is longer than any frame may be.
    """
    event = identifier = ""
    data: list[str] = []
    for line in _lines(chunks):
        if not line:
            if data:
                yield Frame(event or "message", "\n".join(data), identifier)
            event, identifier, data = "", "", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event":
            event = value
        elif name == "id" and "\0" not in value:
            identifier = value


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines without their ends (LF, CRLF or CR)."""
    buffer = b""
    after_cr = False
    for chunk in chunks:
        if after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        after_cr = False if chunk else after_cr
        buffer += chunk
        if b"\r" in buffer:
            after_cr = buffer.endswith(b"\r")
            buffer = buffer.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *whole, buffer = buffer.split(b"\n")
        if len(buffer) > LARGEST_FRAME_BYTES:
            raise ValueError(f"a line of an event stream is longer than {LARGEST_FRAME_BYTES} bytes")
        for line in whole:
            yield line.decode("utf-8", "replace")
