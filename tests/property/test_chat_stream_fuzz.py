"""Whatever llama.cpp says of a chat, in whatever pieces: the same on every channel, every token counted once."""

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import example, given

from llama_orch.core.entries import join, pack, unpack
from llama_orch.core.logprobs import unpack_logprobs
from llama_orch.plugins.engines._llama_chat_frames import ChatStream

from .test_sse_fuzz import cuts, json_values


def data(**fields):
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"


def chunk(delta, *, finish_reason=None, logprobs=None, **more):
    return data(choices=[{"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}], **more)


def heard(pieces, **options):
    """Everything that a stream says, when it comes in these pieces."""
    stream = ChatStream(**options)
    batches = [batch for piece in pieces if (batch := stream.feed(piece)) is not None]
    stream.finish()
    assert (stream.end is None) != (stream.failure is None)
    for batch in batches:
        assert len(batch) > 0
        assert unpack(pack(batch)) == batch
    entries = list(join(batches).entries()) if batches else []
    if stream.end is not None:
        assert stream.start is not None
        assert sum(entry.tokens for entry in entries) == stream.end.tokens
    return entries, stream.start, stream.end, stream.failure


def said(entries):
    channels = {}
    for entry in entries:
        channels[entry.channel] = channels.get(entry.channel, "") + entry.text
    return {channel: text for channel, text in channels.items() if text}


START = chunk(
    {"role": "assistant", "content": None}, prompt_progress={"total": 9, "cache": 2}, timings={"predicted_n": 0}
)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)


@st.composite
def chats(draw):
    """A proper stream: ``(bytes, text by channel, tokens, calls)``."""
    out, counted, channels, calls = bytearray(START), 0, {}, 0

    def add(channel, text):
        channels[channel] = channels.get(channel, "") + text

    for kind in draw(st.lists(st.sampled_from(["content", "reasoning", "name", "arguments", "both"]), max_size=10)):
        text = draw(texts)
        counted += draw(st.integers(1, 4))
        timings = {"predicted_n": counted}
        if kind == "name":
            function = {"name": text, "arguments": draw(st.sampled_from(["", "{"]))}
            call = {"index": calls, "id": draw(st.text(max_size=3)), "type": "function", "function": function}
            out += chunk({"tool_calls": [call]}, timings=timings)
            add(f"call:{calls}", text)
            add(f"tool:{calls}", function["arguments"])
            calls += 1
        elif kind == "arguments" and calls:
            out += chunk({"tool_calls": [{"index": calls - 1, "function": {"arguments": text}}]}, timings=timings)
            add(f"tool:{calls - 1}", text)
        elif kind == "both":
            out += chunk({"content": text, "reasoning_content": text}, timings=timings)
            add("", text)
            add("reasoning", text)
        else:
            field, channel = ("reasoning_content", "reasoning") if kind == "reasoning" else ("content", "")
            out += chunk({field: text}, timings=timings)
            add(channel, text)
        if draw(st.integers(0, 9)) == 0:
            out += b": ping\n\n"
    counted += draw(st.integers(0, 3))  # what was held back to the end
    out += chunk({}, finish_reason="tool_calls" if calls else draw(st.sampled_from(["stop", "length"])))
    usage = {"completion_tokens": counted, "prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 2}}
    out += data(choices=[], usage=usage, timings={"predicted_n": counted, "predicted_ms": 2.5}) + b"data: [DONE]\n\n"
    return bytes(out), {channel: text for channel, text in channels.items() if text}, counted, calls


@given(st.data(), chats())
def test_a_chat_is_the_same_however_it_is_cut(data, chat):
    raw, channels, counted, calls = chat
    whole = heard([raw])
    entries, start, end, failure = whole
    assert failure is None
    assert start is not None
    assert end is not None
    assert said(entries) == channels
    assert (start.prompt_tokens, start.cached_tokens) == (end.prompt_tokens, end.cached_tokens) == (9, 2)
    assert end.tokens == counted
    assert end.decode_us == 2500
    assert (end.finish_reason == "tool_calls") == bool(calls)
    assert heard(data.draw(cuts(raw))) == whole
    assert heard([raw[n : n + 1] for n in range(len(raw))]) == whole


@given(st.data(), chats())
def test_a_chat_that_is_cut_off_is_never_an_end(data, chat):
    raw, channels, _, _ = chat
    last = raw.index(b'"usage"')  # with it llama.cpp has said all
    kept = raw[: data.draw(st.integers(0, last))]
    entries, _, end, failure = heard(data.draw(cuts(kept)))
    assert end is None
    assert failure is not None
    assert failure.kind == "cut"
    assert failure.retriable
    for channel, text in said(entries).items():
        assert channels[channel].startswith(text)


@given(st.lists(json_values, max_size=6), st.lists(st.binary(max_size=30), max_size=6))
@example([{"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "x"}}]}}]}], [])
@example([{"choices": [{"delta": {"content": "x"}}], "timings": {"predicted_n": -1}}], [])
@example([{"choices": [{"delta": {"content": "x"}}], "timings": {"predicted_n": 2**31 - 1}}], [])
@example([{"error": {"code": 400, "type": "exceed_context_size_error"}}], [])
def test_nothing_makes_it_raise(frames, noise):
    raw = b"".join(b"data: " + msgspec.json.encode(frame) + b"\n\n" for frame in frames)
    heard([raw, *noise], logprobs=True, top=2)


@pytest.mark.parametrize(
    "frames, kind",
    [
        ([data(error={"code": 500, "message": "x", "type": "server_error"})], "server-error"),
        ([START, data(error={"code": 503, "message": "x", "type": "unavailable_error"})], "refused"),
        ([START, chunk({"tool_calls": [{"index": 0, "function": {"arguments": "x"}}]})], "garbage"),
        ([START, chunk({"content": "a"}, timings={"predicted_n": 5}), chunk({"content": "b"}, timings={"predicted_n": 4})], "garbage"),
        ([START, b"data: [DONE]\n\n"], "cut"),
        ([START, chunk({"content": "a"}, finish_reason="stop")], "cut"),
        ([START, b'data: {"choices": <\n\n'], "garbage"),
        ([START, b"x" * 100 + b"\n\n", b"data: \xff\n\n"], "garbage"),
    ],
)  # fmt: skip
def test_what_breaks_a_chat_is_named(frames, kind):
    _, _, end, failure = heard(frames)
    assert end is None
    assert failure is not None
    assert failure.kind == kind


def test_the_text_that_stopped_it_is_told():
    usage = {"completion_tokens": 0, "prompt_tokens": 9}
    for native, word in (({"stop_type": "word", "stopping_word": "x"}, "x"), ({"stop_type": "eos"}, "")):
        _, _, end, _ = heard([START, chunk({}, finish_reason="stop", __verbose=native), data(choices=[], usage=usage)])
        assert end is not None
        assert end.stop_sequence == word


def test_after_the_end_nothing_is_said():
    usage = {"completion_tokens": 1, "prompt_tokens": 9}
    ended = [START, chunk({"content": "a"}, finish_reason="stop"), data(choices=[], usage=usage)]
    more = chunk({"content": "never"}, timings={"predicted_n": 9})
    assert heard([*ended, more]) == heard([b"".join(ended) + more]) == heard(ended)


def test_a_token_has_its_probability_and_what_was_held_back_before_it_has_none():
    def likely(token, top):
        alternatives = [{"token": name, "bytes": list(name.encode()), "logprob": value} for name, value in top]
        return {
            "content": [{"token": token, "bytes": list(token.encode()), "logprob": -0.25, "top_logprobs": alternatives}]
        }

    frames = [
        START,
        chunk({"content": "one"}, logprobs=likely("one", []), timings={"predicted_n": 1}),
        chunk({"content": " two three"}, logprobs=likely(" three", [(" three", -0.25), ("x", None)]), timings={"predicted_n": 3}),
        chunk({}, finish_reason="stop"),
        data(choices=[], usage={"completion_tokens": 3, "prompt_tokens": 9}),
    ]  # fmt: skip
    (one, rest), _, end, _ = heard(frames, logprobs=True, top=2)
    assert end is not None
    assert end.tokens == 3
    [token] = unpack_logprobs(one.text, one.logprob)
    assert (token.token, token.logprob, token.top) == ("one", "-0.25", [])
    assert (rest.text, rest.tokens) == (" two three", 2)
    [token] = unpack_logprobs(rest.text, rest.logprob)
    assert (token.token, token.raw) == (" three", b" three")
    assert [(other.token, other.logprob) for other in token.top] == [(" three", "-0.25")], (
        "what is not finite is not said"
    )
    plain, *_ = heard(frames, logprobs=True)[0]
    assert plain.logprob == "-0.25", "one token and nothing beside it: a decimal is all"
