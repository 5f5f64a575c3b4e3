"""Every fact that was durable is folded, once and in order, whatever crashes and however often it is delivered (RCV-3)."""

from __future__ import annotations

from collections import deque
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llama_orch.pools.outbox import Outbox, kind_of
from llama_orch.pools.protocol import Fact

Name = tuple[str, int]


class CrashError(Exception):
    """The program is gone in the middle of a write."""


class FakeFiles:
    """A disk that survives the program; it can be told to fail or to end the program inside the next append."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        #: what the next append does: take so many bytes, and then refuse, or end the program
        self.fate: tuple[str, int] | None = None

    def names(self) -> list[str]:
        return sorted(self.data)

    def read(self, name: str) -> bytes:
        return self.data[name]

    def append(self, name: str, data: bytes) -> None:
        fate, self.fate = self.fate, None
        taken = data if fate is None else data[: fate[1]]
        self.data[name] = self.data.get(name, b"") + taken
        if fate is not None:
            raise OSError(28, "No space left on device") if fate[0] == "full" else CrashError

    def remove(self, name: str) -> None:
        self.data.pop(name, None)


def fact(pool: str, value: int) -> Fact:
    payload = msgspec.json.encode({"pool_id": pool, "cause": str(value)})
    return Fact(incarnation="", n=0, boot_id="", name="pool.unready", payload=msgspec.Raw(payload))


def name_of(one: Fact) -> Name:
    return one.incarnation, one.n


class Deliveries(RuleBasedStateMachine):
    """An outbox, a connection that breaks, a journal that crashes."""

    most_bytes = 1_000_000
    most_waiting = 1_000
    loses_old = False

    def __init__(self) -> None:
        super().__init__()
        self.files = FakeFiles()
        self.runs = 0
        self.values = 0
        self.durable: dict[Name, Fact] = {}
        #: told, and not known to be durable yet
        self.told: dict[Name, str] = {}
        #: refused by the disk, and void since a newer one of their kind was told
        self.given_up: set[Name] = set()
        self.refused = False
        #: committed by the journal: names in their order
        self.folded: list[Name] = []
        self.received: dict[str, int] = {}
        self.acked: set[Name] = set()
        self.wire: deque[Fact] = deque()
        self.acks: list[Name] = []
        self.outbox = self.start()

    def start(self) -> Outbox:
        self.runs += 1
        outbox = Outbox(
            self.files,
            boot_id="boot",
            incarnation=f"{self.runs:04d}",
            segment_bytes=400,
            most_bytes=self.most_bytes,
            most_waiting=self.most_waiting,
        )
        for entry in outbox.pending:
            # A line that is whole was meant to be durable, even when the program ended before it knew; unless the disk
            # refused it and it was given up for a newer one of its kind in the meantime.
            if name_of(entry.fact) not in self.given_up:
                self.durable.setdefault(name_of(entry.fact), entry.fact)
        self.wire = deque(entry.fact for entry in outbox.pending)
        self.acks = []
        return outbox

    @rule(batch=st.lists(st.sampled_from("abc"), min_size=1, max_size=4))
    def tell(self, batch: list[str]) -> None:
        facts = []
        for pool in batch:
            self.values += 1
            one = fact(pool, self.values)
            facts.append((kind_of(one), one))
        first = self.outbox.next_n
        self.outbox.add(facts)
        self.told |= {(self.outbox.incarnation, first + at): kind for at, (kind, _) in enumerate(facts)}

    @rule(fate=st.none() | st.tuples(st.sampled_from(["full", "crash"]), st.integers(0, 900)))
    def write(self, fate: tuple[str, int] | None) -> None:
        work = self.outbox.begin()
        self.files.fate = fate
        error = None
        try:
            self.outbox.perform(work)
        except OSError as failure:
            error = failure
        except CrashError:
            self.crash()
            return
        finally:
            self.files.fate = None
        fresh = self.outbox.finish(work, error)
        self.refused = self.refused or error is not None
        for entry in fresh:
            self.durable[name_of(entry.fact)] = entry.fact
            self.wire.append(entry.fact)
            self.told.pop(name_of(entry.fact))
        if error is None and self.refused:
            # What was told and is not durable now, though nothing waits any more, was given up.
            self.refused = False
            self.given_up |= set(self.told)
            self.told.clear()

    @rule(count=st.integers(1, 5), commits=st.booleans())
    def deliver(self, count: int, commits: bool) -> None:
        """The journal takes facts; what it does not commit comes again on another connection."""
        taken: list[Fact] = []
        while self.wire and len(taken) < count:
            taken.append(self.wire.popleft())
        if not commits:
            self.connect_again()
            return
        for one in taken:
            if one.n > self.received.get(one.incarnation, 0):
                self.received[one.incarnation] = one.n
                self.folded.append(name_of(one))
        self.acks += {one.incarnation: one.n for one in taken}.items()

    @precondition(lambda self: self.acks)
    @rule(data=st.data())
    def acknowledge(self, data: Any) -> None:
        """In any order, and some never come."""
        incarnation, n = self.acks.pop(data.draw(st.integers(0, len(self.acks) - 1)))
        self.outbox.ack(incarnation, n)

    @rule()
    def connect_again(self) -> None:
        self.wire = deque(entry.fact for entry in self.outbox.pending)
        self.acks = []

    @rule()
    def crash(self) -> None:
        self.told.clear()
        self.refused = False
        self.outbox = self.start()

    @invariant()
    def nothing_is_folded_twice(self) -> None:
        assert len(self.folded) == len(set(self.folded))

    @invariant()
    def what_is_folded_was_durable(self) -> None:
        assert set(self.folded) <= set(self.durable) | self.given_up

    @invariant()
    def facts_of_a_run_are_folded_in_order(self) -> None:
        for run in {name for name, _ in self.folded}:
            numbers = [n for name, n in self.folded if name == run]
            assert numbers == sorted(numbers)

    @invariant()
    def what_waits_is_bounded(self) -> None:
        assert len(self.outbox.pending) <= len(self.durable) + len(self.given_up)

    def teardown(self) -> None:
        """In the end everything is delivered."""
        for _ in range(3):
            self.write(None)
        self.crash()
        while self.wire:
            self.deliver(100, commits=True)
        for incarnation, n in self.acks:
            self.outbox.ack(incarnation, n)
        missing = set(self.durable) - set(self.folded)
        if self.loses_old:
            last: dict[str, Name] = {}
            for name in sorted(self.durable):
                last[kind_of(self.durable[name])] = name
            assert not missing & set(last.values())
        else:
            assert not missing
        assert not self.outbox.pending
        self.outbox.perform(work := self.outbox.begin())
        self.outbox.finish(work, None)
        assert not self.files.data, "what was acknowledged is forgotten"


class ThinnedOut(Deliveries):
    """With so little room that old facts are thinned out: of each kind the newest durable one arrives all the same."""

    most_bytes = 700
    most_waiting = 3
    loses_old = True


TestDeliveries = Deliveries.TestCase
TestThinnedOut = ThinnedOut.TestCase
TestDeliveries.settings = TestThinnedOut.settings = settings(stateful_step_count=40, max_examples=150, deadline=None)


def test_a_torn_last_line_is_left_out_and_the_rest_is_there() -> None:
    files = FakeFiles()
    outbox = Outbox(files, boot_id="b", incarnation="1")
    outbox.add([("a", fact("a", 1)), ("b", fact("b", 2))])
    outbox.perform(work := outbox.begin())
    outbox.finish(work, None)
    (segment,) = files.data
    files.data[segment] = files.data[segment][:-10]
    assert [entry.fact.n for entry in Outbox(files, boot_id="b", incarnation="2").pending] == [1]


def test_a_flipped_bit_is_no_fact() -> None:
    files = FakeFiles()
    outbox = Outbox(files, boot_id="b", incarnation="1")
    outbox.add([("a", fact("a", 1))])
    outbox.perform(work := outbox.begin())
    outbox.finish(work, None)
    (segment,) = files.data
    files.data[segment] = files.data[segment].replace(b"unready", b"unreadz")
    assert Outbox(files, boot_id="b", incarnation="2").pending == []


@pytest.mark.parametrize("room", [0, 40])
def test_facts_that_a_full_disk_refuses_wait_and_only_the_newest_of_a_kind_is_kept(room: int) -> None:
    files = FakeFiles()
    outbox = Outbox(files, boot_id="b", incarnation="1")
    for value in range(1, 5):
        outbox.add([("state a", fact("a", value))])
        files.fate = ("full", room)
        work = outbox.begin()
        with pytest.raises(OSError, match="No space"):
            outbox.perform(work)
        assert outbox.finish(work, OSError("full")) == []
        assert bool(outbox), "there is something to try again"
    outbox.perform(work := outbox.begin())
    fresh = outbox.finish(work, None)
    assert [entry.fact.n for entry in fresh] == [4]


def test_what_is_thinned_out_stays_until_what_takes_its_place_is_on_disk() -> None:
    files = FakeFiles()
    outbox = Outbox(files, boot_id="b", incarnation="1", segment_bytes=400, most_bytes=700)
    for value in range(1, 7):
        outbox.add([("state a", fact("a", value))])
        outbox.perform(work := outbox.begin())
        outbox.finish(work, None)
    outbox.add([("state a", fact("a", 7))])
    files.fate = ("crash", 0)
    with pytest.raises(CrashError):
        outbox.perform(outbox.begin())
    assert Outbox(files, boot_id="b", incarnation="2").pending[-1].fact.n == 6
