"""Reads server-sent events (WHATWG HTML, 9.2) from bytes as they arrive."""

from __future__ import annotations

from dataclasses import dataclass

#: A single line longer than this is no answer of ours.
LARGEST_LINE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Frame:
    """One event; ``id`` is empty when the frame had none."""

    event: str
    data: str
    id: str = ""


class FrameReader:
    """Frames from bytes, however these are cut; an unfinished last one is dropped, as the standard says."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._waiting_bytes = 0
        self._after_cr = False
        self._event = self._id = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[Frame]:
        """The frames that a chunk completes. :raises ValueError: a line is longer than any line may be."""
        found: list[Frame] = []
        for line in self._lines(chunk):
            if not line:
                if self._data:
                    found.append(Frame(self._event or "message", "\n".join(self._data), self._id))
                self._event, self._id, self._data = "", "", []
                continue
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                self._data.append(value)
            elif name == "event":
                self._event = value
            elif name == "id" and "\0" not in value:
                self._id = value
        return found

    def _lines(self, chunk: bytes) -> list[str]:
        """Whole lines without their ends (LF, CRLF or CR)."""
        if not chunk:
            return []
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._after_cr = chunk.endswith(b"\r") if chunk else False
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *whole, rest = chunk.split(b"\n")
        if whole:
            whole[0] = b"".join([*self._pieces, whole[0]])
            self._pieces, self._waiting_bytes = [], 0
        if rest:
            self._pieces.append(rest)
            self._waiting_bytes += len(rest)
            if self._waiting_bytes > LARGEST_LINE_BYTES:
                raise ValueError(f"a line of an event stream is longer than {LARGEST_LINE_BYTES} bytes")
        return [line.decode("utf-8", "replace") for line in whole]
