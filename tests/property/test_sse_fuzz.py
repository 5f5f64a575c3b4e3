"""Whatever an engine sends, in whatever pieces: the same meaning, no exception, no lost and no doubled entry."""

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import example, given

from llama_orch.core.entries import join, pack, unpack
from llama_orch.plugins.engines._llama_frames import CompletionStream, failure_of_body
from llama_orch.plugins.engines._sse import SseError, SseSplitter

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def cuts(draw, data):
    """A byte string in pieces."""
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


# --- the splitter --------------------------------------------------------------------------------------------

payloads = st.lists(
    st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20), max_size=6
)


@st.composite
def event_streams(draw):
    """``(bytes, payloads)`` of a proper event stream, with everything that the standard allows in between."""
    end = draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    wanted, out = [], bytearray()
    for payload in draw(payloads):
        for _ in range(draw(st.integers(0, 2))):
            out += (
                draw(st.sampled_from([b": ping", b"event: token", b"id: 7", b"retry: 1", b"nonsense", b"", b":"])) + end
            )
        lines = [payload, *draw(st.lists(st.text("ab", max_size=3), max_size=2))]
        for line in lines:
            space = b" " if line.startswith(" ") else draw(st.sampled_from([b"", b" "]))
            out += b"data:" + space + line.encode() + end
        out += end
        wanted.append("\n".join(lines).encode())
    return bytes(out), wanted


@given(st.data())
def test_payloads_are_the_same_however_a_stream_is_cut(data):
    stream, wanted = data.draw(event_streams())
    splitter, got = SseSplitter(), []
    for piece in data.draw(cuts(stream)):
        got += splitter.feed(piece)
    # A CR at the very end may be half of a CRLF: it is settled by whatever comes next.
    got += splitter.feed(b":")
    assert got == wanted


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_any_bytes_are_split_without_an_exception_and_the_same_in_one_piece(pieces):
    splitter, whole = SseSplitter(), SseSplitter()
    got = [payload for piece in pieces for payload in splitter.feed(piece)]
    got += splitter.feed(b"x\n\n")
    assert got == whole.feed(b"".join(pieces) + b"x\n\n")


@given(st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=20), st.integers(1, 60))
def test_memory_is_bounded_by_the_longest_event_that_is_allowed(pieces, limit):
    splitter = SseSplitter(max_event_bytes=limit)
    try:
        for piece in pieces:
            splitter.feed(piece)
            assert splitter.pending_bytes <= limit
    except SseError:
        assert len(b"".join(pieces)) > limit


# --- llama.cpp's frames --------------------------------------------------------------------------------------


def frame(**fields):
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"


def heard(pieces, *, logprobs=False):
    """Everything that a stream says, when it comes in these pieces."""
    stream = CompletionStream(logprobs=logprobs)
    batches = [batch for piece in pieces if (batch := stream.feed(piece)) is not None]
    stream.finish()
    assert (stream.end is None) != (stream.failure is None)
    for batch in batches:
        assert len(batch) > 0
        assert unpack(pack(batch)) == batch
        assert "".join(batch.texts).encode().decode() == "".join(batch.texts)
    entries = list(join(batches).entries()) if batches else []
    if stream.end is not None:
        assert stream.start is not None
        assert sum(entry.tokens for entry in entries) == stream.end.tokens
    return entries, stream.start, stream.end, stream.failure


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(
    ["}\n\ndata: {", "\n\n", "data: {", '"', "\\", "\x00", "\u2028"]
)
steps = st.tuples(texts, st.lists(st.integers(0, 2**31 - 1), max_size=2), st.sampled_from([1, 1, 1, 1, 0, 2, 4]))


@st.composite
def completions(draw):
    """A proper stream: ``(bytes, text, tokens)``."""
    out, counted, text = bytearray(), 0, ""
    if draw(st.booleans()):
        out += frame(content="", tokens=[0], stop=False, tokens_predicted=0, prompt_progress={"total": 5, "cache": 1})
    for content, ids, grown in draw(st.lists(steps, max_size=12)):
        counted += grown
        text += content
        ids = ids if grown != 1 or draw(st.booleans()) else [7]
        out += frame(content=content, tokens=ids, stop=False, tokens_predicted=counted, tokens_evaluated=5)
        if draw(st.integers(0, 9)) == 0:
            out += b": ping\n\n"
    out += frame(content="", tokens=[], stop=True, tokens_predicted=counted, tokens_evaluated=5, stop_type="limit")
    return bytes(out), text, counted


@given(st.data(), completions())
def test_a_completion_is_the_same_however_it_is_cut_and_whatever_ends_its_lines(data, completion):
    raw, text, counted = completion
    whole = heard([raw])
    entries, start, end, failure = whole
    assert end is not None
    assert start is not None
    assert failure is None
    assert "".join(entry.text for entry in entries) == text
    assert (end.tokens, end.finish_reason, start.prompt_tokens) == (counted, "length", 5)
    assert heard(data.draw(cuts(raw))) == whole
    assert heard([raw[n : n + 1] for n in range(len(raw))]) == whole
    windows = raw.replace(b"\n", b"\r\n")
    assert heard(data.draw(cuts(windows))) == whole


@given(st.data(), completions())
def test_a_completion_that_is_cut_anywhere_is_a_cut_and_keeps_what_was_whole(data, completion):
    raw, text, _ = completion
    at = data.draw(st.integers(0, len(raw) - 2))
    entries, _, end, failure = heard(data.draw(cuts(raw[:at])))
    assert end is None
    assert failure is not None
    assert failure.kind == "cut"
    assert text.startswith("".join(entry.text for entry in entries))


@given(st.data(), completions())
def test_any_damage_is_a_failure_or_goes_unnoticed_but_never_an_exception(data, completion):
    raw, _, _ = completion
    damaged = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    pieces = data.draw(cuts(bytes(damaged)))
    assert heard(pieces) == heard([bytes(damaged)])


@given(
    st.lists(
        st.binary(max_size=60) | json_values.map(lambda v: b"data: " + msgspec.json.encode(v) + b"\n\n"), max_size=8
    )
)
def test_any_bytes_at_all_are_a_failure_and_never_an_exception(pieces):
    heard(pieces)
    heard(pieces, logprobs=True)


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "content": json_values | texts,
                "tokens": json_values | st.lists(st.integers(), max_size=3),
                "stop": json_values | st.booleans(),
                "tokens_predicted": json_values | st.integers(0, 9),
                "tokens_evaluated": json_values | st.integers(0, 9),
                "timings": json_values,
                "prompt_progress": json_values,
                "completion_probabilities": json_values
                | st.lists(st.fixed_dictionaries({"logprob": json_values}), max_size=2),
                "error": json_values | st.fixed_dictionaries({"code": json_values, "message": json_values}),
                "stop_type": json_values,
            },
        ),
        max_size=6,
    )
)
def test_frames_with_fields_of_any_type_are_read_or_refused(frames):
    heard([frame(**fields) for fields in frames], logprobs=True)
    heard([b"".join(frame(**fields) for fields in frames)])


@given(st.integers(100, 599), st.binary(max_size=60) | json_values.map(msgspec.json.encode))
@example(400, b'{"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}')
def test_any_body_of_an_error_is_a_failure(status, body):
    failure = failure_of_body(status, body)
    assert failure.kind in {"context", "refused", "invalid", "server-error"}
    assert failure.message


@pytest.mark.parametrize(
    "raw",
    [
        b'data: {"content":"\\ud800","tokens":[1],"tokens_predicted":1,"stop":false}\n\n',  # half of a pair
        b'data: {"content":"\xff","tokens":[1],"tokens_predicted":1,"stop":false}\n\n',
        b'data: {"content":"a","tokens":[99999999999],"tokens_predicted":1,"stop":false}\n\n',
        b'data: {"content":"a","tokens":[1],"tokens_predicted":99999999,"stop":false}\n\n',
        b'data: {"content":"a","tokens":[1],"tokens_predicted":-1,"stop":false}\n\n',
        b'data: {"content":"a","tokens":[1],"tokens_predicted":1e400,"stop":false}\n\n',
        b"data: " + b"[" * 100_000 + b"\n\n",
        b'data: {"x":' + b"[" * 100_000 + b"\n\n",
        b"data: []\n\n",
        b"data: 7\n\n",
    ],
)
@pytest.mark.parametrize("started", [False, True])
def test_known_poison_is_garbage(raw, started):
    begin = b'data: {"content":"","tokens_predicted":0,"prompt_progress":{"total":1}}\n\n' if started else b""
    failure = heard([begin, raw])[3]
    assert failure is not None
    assert failure.kind == "garbage"
