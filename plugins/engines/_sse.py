"""Server-sent events, incrementally: bytes in, payloads of ``data`` fields out (WHATWG HTML, 9.2.6).

Only what inference servers send is of interest: event names, ids and retry times are skipped.
"""

from __future__ import annotations

from typing import Final

#: no frame of an engine is longer, in bytes; llama.cpp's last one repeats the prompt when it is not told not to
MAX_EVENT_BYTES: Final = 64 * 1024 * 1024


class SseError(ValueError):
    """What arrived is no acceptable event stream; the message says why."""


class SseSplitter:
    """Cuts a byte stream, however it was chopped up on its way, into the payloads of its events.

    Lines may end in LF, CRLF or CR; comments are dropped; ``data:`` may lack the space; several ``data`` lines of
    one event are joined with LF. An event that the end of the stream cuts off is never reported.

    Args:
        max_event_bytes: bound on one event, so that a server which never ends a line cannot fill the memory.
    """

    __slots__ = ("_held_cr", "_max", "_pieces", "pending_bytes")

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_event_bytes
        self._pieces: list[bytes] = []
        self._held_cr = False
        #: bytes of an event that has begun and not ended
        self.pending_bytes = 0

    @property
    def pending(self) -> bool:
        """Whether part of an event waits for the rest."""
        return self.pending_bytes > 0 or self._held_cr

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads of the events that these bytes completed, in order.

        Raises:
            SseError: an event is longer than the bound.
        """
        if self._held_cr:
            # A CR at the end of the last piece: one line end, whether or not LF follows.
            data = b"\r" + data
            self._held_cr = False
        if b"\r" in data:
            if data.endswith(b"\r"):
                self._held_cr = True
                data = data[:-1]
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if b"\n" not in data:
            # Without a line end nothing can be complete; joining later keeps a long line linear in its length.
            if data:
                self._pieces.append(data)
                self._grow(len(data))
            return []
        if self._pieces:
            self._pieces.append(data)
            data = b"".join(self._pieces)
        events = data.split(b"\n\n")
        rest = events.pop()
        self._pieces = [rest] if rest else []
        self.pending_bytes = 0
        self._grow(len(rest))
        payloads: list[bytes] = []
        for event in events:
            if len(event) > self._max:
                msg = f"an event of {len(event)} bytes is longer than {self._max}"
                raise SseError(msg)
            if event.startswith(b"data: ") and b"\n" not in event:
                payloads.append(event[6:])
                continue
            lines = [_value(line) for line in event.split(b"\n") if line[:5] == b"data:" or line == b"data"]
            if lines:
                payloads.append(b"\n".join(lines))
        return payloads

    def _grow(self, count: int) -> None:
        self.pending_bytes += count
        if self.pending_bytes > self._max:
            msg = f"an event is longer than {self._max} bytes"
            raise SseError(msg)


def _value(line: bytes) -> bytes:
    return line[6:] if line[5:6] == b" " else line[5:]
