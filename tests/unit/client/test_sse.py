"""Server-sent events from bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.client import sse
from llama_orch.client.sse import Frame, FrameReader


def frames(chunks):
    reader = FrameReader()
    for chunk in chunks:
        yield from reader.feed(chunk)


def test_frames_comments_and_unknown_fields():
    raw = (
        b": hello\n\nid: 1.2\nevent: token\ndata: a\ndata:b\nretry: 5\nodd\n\ndata: c\n\nevent: x\n\ndata: unfinished\n"
    )
    assert list(frames([raw])) == [Frame("token", "a\nb", "1.2"), Frame("message", "c", "")]


@given(
    st.lists(st.tuples(st.sampled_from(["token", "end"]), st.text(alphabet=st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])))),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.data(),
)  # fmt: skip
def test_frames_are_the_same_however_the_bytes_are_cut(events, end, data):
    raw = b"".join(b"event: " + event.encode() + end + b"data: " + text.encode() + end + end for event, text in events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    chunks = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert list(frames(chunks)) == [Frame(event, text) for event, text in events]


@given(st.lists(st.binary(max_size=60)))
def test_any_bytes_are_read_without_an_error(chunks):
    for frame in frames(chunks):
        assert frame.event


def test_a_line_without_an_end_is_given_up(monkeypatch):
    monkeypatch.setattr(sse, "LARGEST_LINE_BYTES", 10)
    reader = FrameReader()
    assert reader.feed(b"data: 1234") == []
    with pytest.raises(ValueError, match="longer than 10 bytes"):
        reader.feed(b"5")
