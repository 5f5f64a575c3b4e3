"""Hostile GGUF files: nothing but a clear refusal, in bounded memory and in time linear in the file's size."""

import contextlib
import io
import os
import struct
import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.core import gguf
from llama_orch.core.gguf import GgufError, parse_head, parts_of, read_head

from ..engines.gguf_bytes import array, entry, file_of, scalar, string, tensor

#: a small valid file with every kind of value
PARTS = (
    [
        entry("general.architecture", string("llama")),
        entry("llama.context_length", scalar("I", 2048)),
        entry("llama.attention.head_count_kv", array("i", [2, 0, 4])),
        entry("tokenizer.ggml.tokens", array("s", ["<unk>", "a", "bc"])),
        entry("tokenizer.ggml.scores", array("f", [0.0, -1.0, -2.0])),
        entry("general.alignment", scalar("I", 64)),
        entry("some.flag", scalar("?", True)),
        entry("some.double", scalar("d", 0.5)),
    ],
    [
        tensor("token_embd.weight", (32, 3), 0, 0),
        tensor("blk.0.attn_q.weight", (32, 2), 8, 384),
        tensor("output_norm.weight", (32,), 0, 512),
    ],
)
HEAD = file_of(*PARTS)
VALID = file_of(*PARTS, alignment=64, data=512 + 128)
#: what reading may take beside the file itself
MEMORY_BYTES = gguf.MAX_KEPT_BYTES + 16 * 1024 * 1024


def read(raw, keep=gguf.PER_LAYER):
    return parse_head(io.BytesIO(raw), file_bytes=len(raw), name="m.gguf", keep=keep)


def refused_or_sound(raw):
    """The reader's verdict; what it takes for a sound file has its tensors within it, one behind the other."""
    try:
        head = read(raw)
    except GgufError:
        return
    end = head.data_offset
    for one in sorted(head.tensors, key=lambda one: (one.offset, one.size_bytes)):
        assert one.offset >= end
        end = one.offset + one.size_bytes
    assert not head.tensors or end <= len(raw)
    assert head.weights_bytes <= len(raw)


def peak_bytes(raw):
    tracemalloc.start()
    try:
        with contextlib.suppress(GgufError):
            read(raw, keep=("",))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_valid_file_is_read():
    head = read(VALID)
    assert (head.architecture, head.context_length) == ("llama", 2048)
    assert head.arrays == {"llama.attention.head_count_kv": (2, 0, 4)}
    assert head.lengths["tokenizer.ggml.tokens"] == 3
    assert [one.size_bytes for one in head.tensors] == [384, 68, 128]
    assert head.tensors[0].offset == head.data_offset == len(VALID) - 640


@given(st.binary(max_size=400))
def test_random_bytes_are_refused(raw):
    with pytest.raises(GgufError):
        read(raw)


@given(st.binary(max_size=400), st.integers(2, 3), st.integers(0, 5), st.integers(0, 5))
def test_random_bytes_behind_a_good_beginning_are_refused_or_sound(raw, version, tensors, entries):
    refused_or_sound(b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + raw)


@given(st.data())
def test_a_damaged_file_is_refused_or_sound(data):
    raw = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(raw) - 1))
        removed = data.draw(st.integers(0, 9))
        raw[at : at + removed] = data.draw(st.binary(max_size=9))
    refused_or_sound(bytes(raw))


@given(st.data())
def test_absurd_numbers_anywhere_are_refused_or_sound(data):
    raw = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(4, len(raw) - 8))
        value = data.draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**40, 2**61, 2**63 - 1, 2**63, 2**64 - 1]))
        struct.pack_into(*data.draw(st.sampled_from([("<Q", raw, at, value), ("<I", raw, at, value & 0xFFFFFFFF)])))
    refused_or_sound(bytes(raw))


def test_a_file_cut_off_at_any_byte_is_refused():
    for length in range(len(VALID)):
        with pytest.raises(GgufError, match="cut off" if length >= len(HEAD) else "no GGUF|ends within its head"):
            read(VALID[:length])


def test_a_file_cut_off_while_it_is_read_is_refused():
    for length in range(len(HEAD)):
        with pytest.raises(GgufError):
            parse_head(io.BytesIO(VALID[:length]), file_bytes=len(VALID), name="m.gguf")


@given(st.text(max_size=60))
def test_any_name_of_a_file_has_parts_or_is_refused(tmp_path_factory, name):
    path = tmp_path_factory.getbasetemp() / "none" / (name.replace("/", "").replace("\0", "") or "x")
    with contextlib.suppress(GgufError):
        assert parts_of(path) == (path,)


U64 = 2**64 - 1
HOSTILE = {
    "entries": b"GGUF" + struct.pack("<IQQ", 3, 0, U64),
    "tensors": b"GGUF" + struct.pack("<IQQ", 3, U64, 0),
    "entries within bounds": b"GGUF" + struct.pack("<IQQ", 3, 0, gguf.MAX_ENTRIES) + bytes(13) * gguf.MAX_ENTRIES,
    "key": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, U64) + b"x" * 100,
    "string": file_of([b"\x01\0\0\0\0\0\0\0k" + struct.pack("<IQ", 8, 2**62)], []),
    "array": file_of([b"\x01\0\0\0\0\0\0\0k" + struct.pack("<IIQ", 9, 0, 2**63)], []),
    "array at the end": file_of([entry("k", array("B", bytes(100)))[:-1]], []),
    "array of strings": file_of([b"\x01\0\0\0\0\0\0\0k" + struct.pack("<IIQ", 9, 8, 2**60)], []),
    "string in an array": file_of([b"\x01\0\0\0\0\0\0\0k" + struct.pack("<IIQQ", 9, 8, 1, U64)], []),
    "nested arrays": file_of([b"\x01\0\0\0\0\0\0\0k" + struct.pack("<IIQ", 9, 9, 1) * 1000], []),
    "element type": file_of([b"\x01\0\0\0\0\0\0\0k" + struct.pack("<IIQ", 9, 77, 1)], []),
    "type": file_of([b"\x01\0\0\0\0\0\0\0k" + struct.pack("<I", 13)], []),
    "a key twice": file_of([entry("k", scalar("I", 1))] * 2, []),
    "a tensor twice": file_of([], [tensor("t", (1,), 0, 0), tensor("t", (1,), 0, 32)], data=64),
    "dimensions": file_of([], [tensor("t", (1,) * 5, 0, 0)], data=64),
    "size": file_of([], [tensor("t", (U64, U64, U64, U64), 0, 0)], data=64),
    "offset": file_of([], [tensor("t", (1,), 0, 2**63)], data=64),
    "beyond the end": file_of([], [tensor("t", (17,), 0, 0)], data=64),
    "not aligned": file_of([], [tensor("t", (1,), 0, 4)], data=64),
    "overlap": file_of([], [tensor("t", (9,), 0, 0), tensor("u", (1,), 0, 32)], data=64),
    "broken row": file_of([], [tensor("t", (33,), 2, 0)], data=64),
    "alignment 0": file_of([entry("general.alignment", scalar("I", 0))], []),
    "alignment 48": file_of([entry("general.alignment", scalar("I", 48))], []),
    "alignment as text": file_of([entry("general.alignment", string("32"))], []),
    "alignment huge": file_of([entry("general.alignment", scalar("I", 2**31))], []),
    "version 1": b"GGUF" + struct.pack("<III", 1, 0, 0),
    "version 4": b"GGUF" + struct.pack("<IQQ", 4, 0, 0),
    "big endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_refused_with_a_sentence(what):
    with pytest.raises(GgufError, match=r"^m\.gguf: .{15,300}$"):
        read(HOSTILE[what])


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_takes_next_to_no_memory(what):
    assert peak_bytes(HOSTILE[what]) < 2 * 1024 * 1024 + 40 * len(HOSTILE[what])


def many(kind):
    """Heads that stay within every single bound and say as much as they can."""
    if kind == "entries":
        return file_of([entry(f"k{n}", string("x" * 900)) for n in range(gguf.MAX_ENTRIES)], [])
    if kind == "one long text":
        return file_of([entry(f"k{n}", string("x" * 4_000_000)) for n in range(20)], [])
    if kind == "wide characters":
        return file_of([entry(f"k{n}", string("x" * 3_999_000 + "🙂")) for n in range(5)], [])
    if kind == "strings":
        return file_of([entry("tokens", array("s", ["ab"] * 1_000_000))], [])
    if kind == "numbers":
        return file_of([entry("scores", array("f", [1.5] * 1_000_000))], [])
    return file_of([], [tensor(f"{n:040}", (1, 1, 1, 1), 24, 32 * n) for n in range(60_000)], data=60_000 * 32)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["entries", "one long text", "wide characters", "strings", "numbers", "tensors"])
def test_a_head_that_says_all_it_may_stays_within_the_bound(kind):
    assert peak_bytes(many(kind)) < MEMORY_BYTES


def test_a_head_that_is_larger_than_any_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "m.gguf"
    size = gguf.MAX_HEAD_BYTES + 1
    path.write_bytes(file_of([b"\x01\0\0\0\0\0\0\0k" + struct.pack("<IIQ", 9, 0, size)], []))
    os.truncate(path, 2 * size)
    with pytest.raises(GgufError, match="the head is larger than"):
        read_head(path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(GgufError, match="no regular file"):
        read_head(tmp_path / "pipe.gguf")


class Counted(io.BytesIO):
    """Counts what is asked of the file."""

    def __init__(self, raw):
        super().__init__(raw)
        self.calls = 0
        self.bytes = 0

    def read(self, size=-1, /):
        piece = super().read(size)
        self.calls += 1
        self.bytes += len(piece)
        return piece


def work(raw):
    """Lines of the reader that run, calls of the file, and bytes asked of it: work that no machine's speed changes."""
    lines = 0

    def count(frame, event, arg):
        nonlocal lines
        if frame.f_code.co_filename != gguf.__file__:
            return None
        lines += 1
        return count

    file = Counted(raw)
    before = sys.gettrace()
    sys.settrace(count)
    try:
        with contextlib.suppress(GgufError):
            parse_head(file, file_bytes=len(raw), name="m.gguf")
    finally:
        sys.settrace(before)
    return lines, file.calls, file.bytes


def growing(kind, count):
    """A head whose size grows with ``count``."""
    if kind == "strings":
        return file_of([entry("tokenizer.ggml.tokens", array("s", ["some word"] * count))], [])
    if kind == "empty strings":
        return file_of([entry("other", array("s", [""] * count))], [])
    if kind == "long strings":
        return file_of([entry("other", array("s", ["x" * 3_000] * (count // 10)))], [])
    if kind == "numbers":
        return file_of([entry("tokenizer.ggml.scores", array("f", [0.0] * count))], [])
    if kind == "entries":
        return file_of([entry(f"tokenizer.{n:06}", scalar("I", n)) for n in range(count // 2)], [])
    if kind == "cut off":
        return growing("strings", count)[:-5]
    order = range(count // 2) if kind == "tensors" else range(count // 2 - 1, -1, -1)
    return file_of([], [tensor(f"{n:06}", (1, 1), 24, 32 * n) for n in order], data=count // 2 * 32)


@pytest.mark.parametrize(
    "kind",
    [
        *("strings", "empty strings", "long strings", "numbers", "entries"),
        *("cut off", "tensors", "tensors from the last"),
    ],
)
def test_work_is_linear_in_the_size_of_the_head(kind):
    once, four_times = work(growing(kind, 5_000)), work(growing(kind, 20_000))
    for few, many in zip(once, four_times, strict=True):
        assert many <= 4 * few + 2_000, (once, four_times)
