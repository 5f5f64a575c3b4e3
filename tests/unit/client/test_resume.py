"""The reader's side of a stream, without a socket: whatever happens to the bytes, each frame is handed out once, in order."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.client import (
    ApiError,
    LlamaOrchError,
    NotFoundError,
    ResumeLostError,
    StreamBrokenError,
    UnreachableError,
)
from llama_orch.client.calls import Backoff
from llama_orch.client.errors import api_error
from llama_orch.client.resume import Cursor

CUT = UnreachableError("cut")


def encoded(event: str, data: object, frame_id: str = "") -> bytes:
    head = f"event: {event}\nid: {frame_id}\n" if frame_id else f"event: {event}\n"
    return f"{head}data: {json.dumps(data)}\n\n".encode()


def cursor(**options) -> Cursor:
    options.setdefault("backoff", Backoff(None, rand=lambda: 1.0))
    return Cursor("t", **options)


@dataclass
class Story:
    """A task's frames as a server holds them, under the epoch in which each was written."""

    epochs: list[int]
    failed: bool = False

    def frames(self, after: str) -> list[bytes]:
        first = int(after.split(".")[1]) + 1 if after else 0
        last = len(self.epochs) - 1
        kinds = ["started"] + ["token"] * (last - 1) + ["error" if self.failed else "end"]
        return [encoded(kinds[n], {"n": n}, f"{self.epochs[n]}.{n}") for n in range(first, last + 1)]


NOISE = st.sampled_from(
    [
        b": hb\n\n",
        b": queued position=3\n\n",
        encoded("metrics", {"queue_depth": 1}),
        encoded("queued", {"queue_position": 1}),
        b"retry: 9\n\n",
        encoded("newer", {"x": 1}, ""),
    ]
)


@st.composite
def connections(draw, story: Story):
    """What one connection does with the frames after an id: it repeats, swallows, adds, cuts, or is refused."""
    back = draw(st.integers(0, 3))
    swallowed = draw(st.sampled_from([None, None, None, 0, 1, 2]))
    refused = draw(st.sampled_from([0, 0, 0, 503, 429, 502]))
    breaks = draw(st.sampled_from(["after", "inside", "told"]))
    noise = draw(st.lists(NOISE, max_size=3))
    length = draw(st.integers(0, 8))
    pieces = draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))

    def answer(after: str) -> bytes | int:
        if refused:
            return refused
        epoch, _, number = after.partition(".")
        earlier = f"{epoch}.{max(0, int(number) - back)}" if after else ""
        frames = story.frames(earlier if back else after)
        if swallowed is not None and swallowed < len(frames) - 1:
            del frames[swallowed]
        frames = frames[:length]
        if breaks == "told":
            frames.append(encoded("error", {"code": "JOURNAL_UNAVAILABLE", "message": "the server stops"}))
        raw = b"".join(frame + noise[n % len(noise)] if noise else frame for n, frame in enumerate(frames))
        return raw[:-5] if breaks == "inside" else raw

    return answer, pieces


def cut(raw: bytes, pieces: list[int]) -> list[bytes]:
    chunks, at, turn = [], 0, 0
    while at < len(raw):
        size = pieces[turn % len(pieces)]
        chunks.append(raw[at : at + size])
        at, turn = at + size, turn + 1
    return chunks


def read_on(reader: Cursor, raw: bytes, pieces: list[int], seen: list[str]) -> LlamaOrchError | None:
    """Feed a connection's bytes; what ended it."""
    for chunk in cut(raw, pieces):
        seen += [frame.id for frame in reader.feed(chunk) if frame.id]
        if reader.ended:
            return None
        if reader.broken is not None:
            return reader.broken
    return CUT


@given(st.data())
def test_every_frame_is_handed_out_once_in_order_and_there_is_one_end(data):
    epochs = sorted(data.draw(st.lists(st.integers(1, 3), min_size=3, max_size=12)))
    story = Story(epochs, failed=data.draw(st.booleans()))
    hostile = data.draw(st.lists(connections(story), max_size=8))
    reader = cursor()
    seen: list[str] = []
    for answer, pieces in hostile:
        asked = reader.request().headers.get("Last-Event-ID", "")
        assert asked == (seen[-1] if seen else "")
        said = answer(asked)
        error = api_error(said, b"") if isinstance(said, int) else read_on(reader, said, pieces, seen)
        if error is None:
            break
        pause_s, told = reader.failed(error)
        assert pause_s > 0
        assert [frame.event for frame in told] == ["reconnected"]
    if not reader.ended:
        asked = reader.request().headers.get("Last-Event-ID", "")
        assert read_on(reader, b"".join(story.frames(asked)), [7], seen) is None
    assert seen == [f"{epoch}.{n}" for n, epoch in enumerate(story.epochs)]
    assert reader.feed(encoded("token", {}, "9.99")) == []


@given(st.lists(st.binary(max_size=80)), st.booleans())
def test_any_bytes_end_in_frames_or_in_a_broken_connection(chunks, resumed):
    reader = cursor(after="1.5" if resumed else "")
    ids = [frame.id for chunk in chunks for frame in reader.feed(chunk) if frame.id]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("cut_at", [0, 1, 4])
def test_a_lost_tail_is_raised_with_what_the_server_holds_or_gone_on_from_when_asked(cut_at):
    lost = api_error(
        409, json.dumps({"code": "RESUME_LOST", "message": "gone", "last_id_held": f"1.{cut_at}"}).encode()
    )
    with pytest.raises(ResumeLostError) as caught:
        cursor(after="1.9").failed(lost)
    assert (caught.value.last_id_held, caught.value.seen) == (f"1.{cut_at}", "1.9")

    reader = cursor(after="1.9", restart_lost=True)
    pause_s, (told,) = reader.failed(lost)
    assert pause_s == 0
    assert json.loads(told.data) == {"last_id_held": f"1.{cut_at}", "seen": "1.9"}
    assert reader.request().headers["Last-Event-ID"] == f"1.{cut_at}"
    assert [frame.id for frame in reader.feed(encoded("token", {}, f"2.{cut_at + 1}"))] == [f"2.{cut_at + 1}"]


def test_a_server_that_holds_what_it_says_it_lost_is_not_asked_for_ever():
    lost = api_error(409, b'{"code": "RESUME_LOST", "message": "gone", "last_id_held": "1.9"}')
    with pytest.raises(ResumeLostError):
        cursor(after="1.9", restart_lost=True).failed(lost)


def test_a_task_that_never_started_has_its_end_alone():
    reader = cursor()
    assert [frame.event for frame in reader.feed(encoded("end", {}, "1.1"))] == ["end"]
    assert reader.ended


def test_a_gap_is_asked_for_again():
    reader = cursor(after="1.2")
    assert reader.feed(encoded("token", {}, "1.4") + encoded("token", {}, "1.5")) == []
    assert isinstance(reader.broken, UnreachableError)
    assert "gap" in str(reader.broken)
    assert reader.request().headers["Last-Event-ID"] == "1.2"


def test_pauses_double_up_to_a_bound_and_are_counted_anew_after_a_frame():
    reader = cursor()
    pauses = [reader.failed(CUT)[0] for _ in range(8)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    reader.request()
    reader.feed(encoded("started", {}, "1.0"))
    assert reader.failed(CUT)[0] == 0.1


def test_a_server_that_stays_away_is_given_up_with_the_id_to_go_on_from():
    reader = cursor(after="1.7", backoff=Backoff(2))
    reader.failed(CUT)
    reader.failed(CUT)
    with pytest.raises(StreamBrokenError) as caught:
        reader.failed(CUT)
    assert (caught.value.task_id, caught.value.last_id) == ("t", "1.7")
    assert caught.value.__cause__ is CUT


def test_what_will_not_change_is_not_asked_again():
    for status, kind in ((404, NotFoundError), (401, ApiError), (400, ApiError)):
        with pytest.raises(kind):
            cursor().failed(api_error(status, b"{}"))


def test_a_server_says_how_long_to_wait_at_least():
    refused = api_error(503, b'{"code": "JOURNAL_UNAVAILABLE", "message": "full", "retry_after_ms": 3000}')
    assert cursor().failed(refused)[0] == 3.0


def test_a_frame_that_comes_again_is_dropped_and_the_connection_kept():
    reader = cursor(after="1.2")
    came = reader.feed(b"".join(encoded("token", {}, f"1.{n}") for n in (1, 2, 2, 3)))
    assert [frame.id for frame in came] == ["1.3"]
    assert reader.broken is None
