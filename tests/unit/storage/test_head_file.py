"""The head file: whatever is torn, one intact note stands, and it never runs ahead."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from llama_orch.plugins.storage._head import HeadFile, read_head
from llama_orch.plugins.testing.covers import covers

_notes = st.lists(st.tuples(st.integers(1, 2**62), st.binary(min_size=32, max_size=32)), min_size=1, max_size=6)


def test_without_a_file_there_is_no_head(tmp_path: Path) -> None:
    assert read_head(tmp_path / "head") is None


def test_a_new_file_holds_no_head_and_is_private(tmp_path: Path) -> None:
    HeadFile(tmp_path / "head").close()
    assert read_head(tmp_path / "head") is None
    assert (tmp_path / "head").stat().st_mode & 0o777 == 0o600


@given(_notes)
def test_the_last_note_is_read_also_by_the_next_writer(notes: list[tuple[int, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "head"
        for seq, digest in notes:
            head = HeadFile(path)  # opened anew each time: the turns go on
            head.write(seq, digest)
            head.sync()
            head.close()
            assert read_head(path) == (seq, digest)


@covers("JRN-2")
@given(_notes.filter(lambda notes: len(notes) > 1), st.data())
def test_a_torn_write_leaves_this_note_or_the_one_before(notes: list[tuple[int, bytes]], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "head"
        head = HeadFile(path)
        for seq, digest in notes[:-1]:
            head.write(seq, digest)
        before = path.read_bytes()
        head.write(*notes[-1])
        head.close()
        after = path.read_bytes()
        changed = [at for at in range(len(after)) if before[at] != after[at]]
        arrived = data.draw(st.sets(st.sampled_from(changed))) if changed else set()
        path.write_bytes(bytes(after[at] if at in arrived else before[at] for at in range(len(after))))
        assert read_head(path) in (notes[-1], notes[-2])


@given(st.binary(max_size=1500))
def test_noise_is_no_head(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "head"
        path.write_bytes(raw)
        assert read_head(path) is None
