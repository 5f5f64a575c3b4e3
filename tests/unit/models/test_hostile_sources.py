"""Whatever a source does: what is staged is what its digest names, or there is an error and nothing that could be used."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from llama_orch.pools.models.cache import Cache
from llama_orch.pools.models.errors import CAUSES, BrokenOffError, StagingError
from llama_orch.pools.models.staging import stage
from llama_orch.pools.models.transfer import Listing, RemoteFile

from ...support.model_files import gguf, sha256

#: nothing here is about disks: where there is a file system in memory, no example waits for one
IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
MODEL, OTHER = gguf(1, elements=512), gguf(2, elements=512)
assert len(MODEL) == len(OTHER)

#: how one connection goes
connections = st.fixed_dictionaries(
    {
        "content": st.sampled_from([MODEL, MODEL, MODEL, OTHER]),
        "etag": st.sampled_from(["one", "one", "two", ""]),
        "begins_at": st.sampled_from([0, 0, 0, -1, 1, 100]),
        "from_start": st.booleans(),
        "total": st.sampled_from([0, 0, 0, 1, -1, None]),
        "ends_after": st.one_of(st.none(), st.integers(0, len(MODEL))),
        "breaks": st.booleans(),
        "more": st.sampled_from([0, 0, 0, 1, 5000]),
        "refuses": st.sampled_from([False, False, False, True]),
    }
)


class Stream:
    def __init__(self, how, offset):
        self.offset = 0 if how["from_start"] else max(0, offset + how["begins_at"])
        self.total = -1 if how["total"] is None else len(MODEL) + how["total"]
        self.etag = how["etag"]
        self.rest = (how["content"] + b"x" * how["more"])[self.offset :]
        if how["ends_after"] is not None:
            self.rest = self.rest[: how["ends_after"]]
        self.breaks = how["breaks"]

    def read(self, size):
        piece, self.rest = self.rest[:size], self.rest[size:]
        if not piece and self.breaks:
            raise BrokenOffError("reset")
        return piece

    def interrupt(self):
        pass

    def close(self):
        pass


class Source:
    def __init__(self, plan, *, told, sized, etag):
        self.plan = list(plan)
        self.file = RemoteFile(
            path="model.gguf",
            size_bytes=len(MODEL) if sized else -1,
            etag=etag,
            sha256=sha256(MODEL) if told else "",
        )

    def listing(self):
        return Listing(source_url="source:", files=[self.file], revision=self.file.etag)

    def open(self, file, offset):
        how = self.plan.pop(0) if self.plan else HONEST
        if how["refuses"]:
            raise BrokenOffError("refused")
        return Stream(how, offset)


HONEST = {
    "content": MODEL, "etag": "one", "begins_at": 0, "from_start": False, "total": 0, "ends_after": None, "breaks": False,
    "more": 0, "refuses": False,
}  # fmt: skip


@given(plan=st.lists(connections, max_size=4), sized=st.booleans(), etag=st.sampled_from(["one", ""]))
def test_with_a_digest_the_content_is_the_right_one_or_there_is_none_and_later_it_comes(plan, sized, etag):
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        cache = Cache(Path(folder) / "models", boot="b", free_bytes=lambda path: 10**12)

        def pull(connections):
            source = Source(connections, told=True, sized=sized, etag=etag)
            return stage("https://models.example/a", cache=cache, source=lambda reference: source, waits_s=(0.0, 0.0))

        try:
            staged = pull(plan)
        except StagingError as error:
            cause = error.cause
        else:
            cause = ""
            assert Path(staged.path).read_bytes() == MODEL
            assert staged.verification == "verified"
        if cause:
            assert cause in CAUSES
            assert cache.records() == []
            assert list((cache.root / "blobs").iterdir()) == []
        assert Path(pull([]).path).read_bytes() == MODEL


@given(plan=st.lists(connections, max_size=4), sized=st.booleans())
def test_without_a_digest_two_contents_are_never_mixed_as_long_as_their_names_tell_them_apart(plan, sized):
    plan = [how | {"content": MODEL if how["etag"] == "one" else OTHER, "more": 0} for how in plan]
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        cache = Cache(Path(folder) / "models", boot="b", free_bytes=lambda path: 10**12)
        source = Source([how for how in plan if how["etag"]], told=False, sized=sized, etag="one")
        try:
            staged = stage("https://models.example/a", cache=cache, source=lambda reference: source, waits_s=(0.0, 0.0))
        except StagingError:
            assert cache.records() == []
            return
        assert Path(staged.path).read_bytes() in {MODEL, OTHER}
