"""The cache as a machine with a model beside it: whatever is staged, held, pinned and collected, in any order."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llama_orch.pools.models.cache import PARTIAL_AGE_MS, Cache
from llama_orch.pools.models.errors import StagingError
from llama_orch.pools.models.eviction import Candidate, choose, freed_by
from llama_orch.pools.models.locks import Lock, Locks
from llama_orch.pools.models.staging import stage
from llama_orch.pools.models.transfer import BrokenOffError, Listing, RemoteFile

from ...support.model_files import gguf, sha256

#: nothing here is about disks: where there is a file system in memory, no example waits for one
IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
NAMES = [f"https://models.example/{letter}.gguf" for letter in "abcdef"]
#: contents of different sizes; a name may have any of them, and several names the same one
CONTENTS = [gguf(seed, elements=64 * (seed + 1)) for seed in range(5)]


class Memory:
    """A source of one file, out of memory; it may break off after some bytes, for good."""

    def __init__(
        self, content: bytes, *, ends_after: int = -1, tells_size: bool = True, tells_digest: bool = False
    ) -> None:
        self.content = content
        self.ends_after = ends_after
        self.tells_size = tells_size
        self.tells_digest = tells_digest

    def listing(self):
        file = RemoteFile(
            path="model.gguf",
            size_bytes=len(self.content) if self.tells_size else -1,
            etag=sha256(self.content)[:12],
            sha256=sha256(self.content) if self.tells_digest else "",
        )
        return Listing(source_url="memory:", files=[file], revision=file.etag)

    def open(self, file, offset):
        return Stream(self, offset)


class Stream:
    def __init__(self, source: Memory, offset: int) -> None:
        self.source, self.offset, self.at = source, offset, offset
        self.total, self.etag = len(source.content), sha256(source.content)[:12]

    def read(self, size):
        end = len(self.source.content)
        if 0 <= self.source.ends_after <= self.at and self.at < end:
            raise BrokenOffError("cut")
        if self.source.ends_after >= 0 and self.at < self.source.ends_after:
            end = min(end, self.source.ends_after)
        piece = self.source.content[self.at : min(end, self.at + size)]
        self.at += len(piece)
        return piece

    def interrupt(self):
        pass

    def close(self):
        pass


class CacheMachine(RuleBasedStateMachine):
    """Beside the cache: which name has which content, who is pinned, held, staged, and used when."""

    @initialize(limit=st.sampled_from([2_500, 3_000, 4_000, 6_000]))
    def begin(self, limit):
        self.folder = Path(tempfile.mkdtemp(prefix="cache-machine-", dir=IN_MEMORY))
        self.now_ns = 10**18
        self.limit = limit
        self.cache = Cache(
            self.folder / "models",
            limit_bytes=limit,
            now_ns=lambda: self.now_ns,
            free_bytes=lambda path: 10**12,
            boot="b",
        )
        self.present: dict[str, int] = {}
        self.ids: dict[str, str] = {}
        self.pinned: set[str] = set()
        self.held: list[tuple[str, int, Locks]] = []
        self.staging: dict[str, Lock] = {}

    def teardown(self):
        for _, _, locks in self.held:
            locks.release()
        for lock in self.staging.values():
            lock.release()
        shutil.rmtree(self.folder)

    def free_names(self):
        return [name for name in NAMES if name not in self.staging]

    def note_gone(self):
        """Names that were removed to make room: none of them may have been kept for a reason."""
        here = {record.ref for record in self.cache.records()}
        gone = set(self.present) - here
        assert not gone & self.pinned
        assert not gone & {name for name, _, _ in self.held}
        assert not gone & set(self.staging)
        for name in gone:
            del self.present[name]
        return gone

    def stage(self, name, source):
        """What came of it: the model, or the cause why there is none."""
        self.now_ns += 1_000_000_000
        try:
            return stage(name, cache=self.cache, source=lambda reference: source, waits_s=()), ""
        except StagingError as error:
            return None, error.cause

    @precondition(lambda self: self.free_names())
    @rule(data=st.data(), content=st.integers(0, 4), size_told=st.booleans(), digest_told=st.booleans())
    def ensure(self, data, content, size_told, digest_told):
        name = data.draw(st.sampled_from(self.free_names()))
        before = dict(self.present)
        used = {record.ref: self.cache.used_ns(record) for record in self.cache.records()}
        staged, cause = self.stage(name, Memory(CONTENTS[content], tells_size=size_told, tells_digest=digest_told))
        if staged is None:
            assert cause == "cache-full"
            assert self.limit
            self.note_gone()
            return
        self.ids[name] = staged.id
        assert Path(staged.path).read_bytes() == CONTENTS[content]
        gone = self.note_gone()
        self.present[name] = content
        kept = [one for one in before if one not in gone and one not in self.pinned and one != name]
        kept = [one for one in kept if one not in {held for held, _, _ in self.held}]
        # Least recently used: nobody who could have gone instead, and would have freed as much, is older.
        for one in gone:
            shared = [before[other] for other in before if other != one]
            for other in kept:
                if used[other] < used[one] and before[other] not in shared:
                    assert len(CONTENTS[before[other]]) < len(CONTENTS[before[one]])
        if self.limit:
            assert self.cache.used_bytes() <= self.limit or self.held

    @precondition(lambda self: self.free_names())
    @rule(data=st.data(), content=st.integers(0, 4))
    def ensure_another(self, data, content):
        self.ensure(data, content, size_told=True, digest_told=False)

    @precondition(lambda self: self.free_names() and len(list(self.cache.root.glob("partial/*"))) < 2)
    @rule(data=st.data(), content=st.integers(0, 4), share=st.floats(0, 0.99))
    def break_off(self, data, content, share):
        name = data.draw(st.sampled_from(self.free_names()))
        source = Memory(CONTENTS[content], ends_after=int(share * len(CONTENTS[content])))
        staged, cause = self.stage(name, source)
        if staged is None:
            assert cause in {"interrupted", "cache-full"}
            self.note_gone()
            return
        assert staged.fetched_bytes < len(CONTENTS[content])  # it was here, or a part of it was
        self.note_gone()
        self.ids[name], self.present[name] = staged.id, content

    @precondition(lambda self: self.present)
    @rule(data=st.data())
    def ensure_again_writes_nothing(self, data):
        name = data.draw(st.sampled_from(sorted(set(self.present) - set(self.staging)) or [""]))
        if name:
            staged, _ = self.stage(name, Memory(CONTENTS[self.present[name]]))
            assert staged is not None
            assert (staged.fetched_bytes, staged.changed) == (0, False)

    @precondition(lambda self: self.present)
    @rule(data=st.data())
    def load(self, data):
        name = data.draw(st.sampled_from(sorted(self.present)))
        self.now_ns += 1_000_000_000
        self.held.append((name, self.present[name], self.cache.hold(self.ids[name])))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def unload(self, data):
        _, _, locks = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        locks.release()

    @precondition(lambda self: self.present)
    @rule(data=st.data(), pinned=st.sampled_from([True, True, False]))
    def pin(self, data, pinned):
        name = data.draw(st.sampled_from(sorted(self.present)))
        self.cache.pin(self.ids[name], pinned=pinned)
        (self.pinned.add if pinned else self.pinned.discard)(name)

    @precondition(lambda self: self.free_names())
    @rule(data=st.data())
    def begin_to_fetch(self, data):
        name = data.draw(st.sampled_from(self.free_names()))
        if name in self.ids:
            self.staging[name] = self.cache.stage_lock(self.ids[name])

    @precondition(lambda self: self.staging)
    @rule(data=st.data())
    def give_up_fetching(self, data):
        self.staging.pop(data.draw(st.sampled_from(sorted(self.staging)))).release()

    @precondition(lambda self: self.present)
    @rule(data=st.data())
    def remove(self, data):
        name = data.draw(st.sampled_from(sorted(self.present)))
        if name in self.staging or name in {held for held, _, _ in self.held}:
            with pytest.raises(StagingError, match=r"is loaded|is being fetched"):
                self.cache.remove(self.ids[name])
            return
        self.cache.remove(self.ids[name])
        del self.present[name]
        self.pinned.discard(name)

    @rule(later=st.booleans())
    def collect(self, later):
        if later:
            self.now_ns += 2 * PARTIAL_AGE_MS * 1_000_000
        told = self.cache.collect(dry_run=True)
        assert {record.ref for record in self.cache.records()} == set(self.present)
        assert self.cache.collect() == told
        assert self.note_gone() == {removal.what for removal in told if removal.kind == "model"}
        assert [one for one in self.cache.collect() if one.kind in {"content", "links"}] == []
        held = {sha256(CONTENTS[content]) for _, content, _ in self.held}
        named = {sha256(CONTENTS[content]) for content in self.present.values()}
        assert self.blobs() - held == named - held

    def blobs(self):
        return {path.name.removeprefix("sha256-") for path in (self.cache.root / "blobs").glob("*")}

    @invariant()
    def what_is_here_is_whole_and_stored_once(self):
        records = {record.ref: record for record in self.cache.records()}
        assert set(records) == set(self.present)
        for name, content in self.present.items():
            assert self.cache.path_of(records[name]).read_bytes() == CONTENTS[content]
            assert records[name].pinned == (name in self.pinned)
        for path in (self.cache.root / "blobs").glob("*"):
            assert sha256(path.read_bytes()) == path.name.removeprefix("sha256-")

    @invariant()
    def what_is_loaded_is_never_touched(self):
        for _, content, _ in self.held:
            assert self.cache.blob(f"sha256:{sha256(CONTENTS[content])}").read_bytes() == CONTENTS[content]


TestCache = pytest.mark.slow(CacheMachine.TestCase)
TestCache.settings = settings(settings.default, max_examples=50, stateful_step_count=40)


KEPT = {
    "pinned": lambda cache, model: cache.pin(model, pinned=True),
    "loaded": lambda cache, model: cache.hold(model),
    "being fetched": lambda cache, model: cache.stage_lock(model),
}


@pytest.mark.parametrize("why", KEPT)
def test_what_is_kept_for_a_reason_stays_and_the_next_oldest_goes(tmp_path, why):
    seconds = iter(range(1_000))
    cache = Cache(
        tmp_path / "models",
        limit_bytes=3 * len(gguf(1)),
        now_ns=lambda: next(seconds) * 10**9,
        free_bytes=lambda path: 10**12,
    )

    def pull(number):
        return stage(NAMES[number], cache=cache, source=lambda reference: Memory(gguf(number)), waits_s=())

    oldest = pull(0)
    kept = KEPT[why](cache, oldest.id)
    pull(1)
    pull(2)
    pull(3)
    assert {record.ref for record in cache.records()} == {NAMES[0], NAMES[2], NAMES[3]}
    assert Path(oldest.path).read_bytes() == gguf(0)
    if why == "pinned":
        cache.pin(oldest.id, pinned=False)
    else:
        kept.release()
    pull(4)
    assert {record.ref for record in cache.records()} == {NAMES[2], NAMES[3], NAMES[4]}


# --- the choice alone -------------------------------------------------------------------------------------------------

candidates = st.lists(
    st.builds(
        Candidate,
        id=st.uuids().map(str),
        used_ns=st.integers(0, 5),
        blobs=st.frozensets(st.sampled_from("abcdefgh"), min_size=1, max_size=3),
        kept_because=st.sampled_from(["", "", "pinned", "in use"]),
    ),
    max_size=8,
    unique_by=lambda one: one.id,
)
sizes = st.fixed_dictionaries({blob: st.integers(1, 100) for blob in "abcdefgh"})


@pytest.mark.parametrize("excess", [0, -5])
def test_nothing_goes_when_there_is_room(excess):
    assert choose([Candidate(id="a", used_ns=1, blobs=frozenset("a"))], {"a": 5}, excess) == ((), 0)


def test_the_least_recently_used_one_goes_first():
    models = [Candidate(id=name, used_ns=used, blobs=frozenset(name)) for name, used in (("a", 3), ("b", 1), ("c", 2))]
    assert choose(models, {"a": 10, "b": 10, "c": 10}, 15) == (("b", "c"), 20)


def test_one_whose_content_is_shared_stays_when_its_leaving_frees_nothing():
    old = Candidate(id="old", used_ns=1, blobs=frozenset("a"))
    same = Candidate(id="same", used_ns=9, blobs=frozenset("a"), kept_because="pinned")
    other = Candidate(id="other", used_ns=5, blobs=frozenset("b"))
    assert choose([old, same, other], {"a": 10, "b": 10}, 10) == (("other",), 10)


def test_the_choice_is_enough_or_all_there_is_and_nothing_of_it_is_needless():
    from hypothesis import given

    @given(candidates, sizes, st.integers(1, 400))
    def holds(models, sizes, excess):
        chosen, freed = choose(models, sizes, excess)
        going = [model for model in models if model.id in chosen]
        assert all(not model.kept_because for model in going)
        assert freed == freed_by(going, models, sizes)
        free = [model for model in models if not model.kept_because]
        assert freed >= min(excess, freed_by(free, models, sizes))
        for model in going:
            without = [one for one in going if one is not model]
            assert freed_by(without, models, sizes) < min(excess, freed)

    holds()
