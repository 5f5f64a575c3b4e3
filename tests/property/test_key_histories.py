"""Keys under any history: made, changed, rotated, revoked, expired, over restarts (AUTH-1)."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llama_orch.core.errors import BadTokenError, ConflictError, NotFoundError
from llama_orch.core.projections.keys import Keys
from llama_orch.core.services.keys import KeyPatch, KeySpec, digest_of

from ..support.stage import LOCAL, Stage


class Known(msgspec.Struct):
    """What the test knows of a key."""

    key_id: str
    scopes: tuple[str, ...]
    expires_ns: int = 0
    #: by secret: until when it is accepted; 0 = as long as the key
    secrets: dict[str, int] = msgspec.field(default_factory=dict)
    revoked: bool = False


class KeyHistories(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.stage = Stage()
        self.keys: list[Known] = []
        self.numbers = 0

    def teardown(self) -> None:
        self.stage.settle()
        self.stage.check()
        self.stage.stop()
        self.stage.end()

    @property
    def now(self) -> int:
        return self.stage.journal.now_ns()

    def live(self, key: Known) -> bool:
        return not key.revoked and not (key.expires_ns and self.now >= key.expires_ns)

    def one(self, pick: int) -> Known:
        return self.keys[pick % len(self.keys)]

    @rule(ttl_ms=st.sampled_from([0, 0, 500, 5_000]), scopes=st.sampled_from([["inference"], ["read", "admin"]]))
    def create(self, ttl_ms: int, scopes: list[Any]) -> None:
        self.numbers += 1
        spec = KeySpec(name=f"k{self.numbers}", scopes=scopes, ttl_ms=ttl_ms)
        view, secret = self.stage.run(self.stage.services.keys.create(spec, LOCAL, "c"))
        expires_ns = view.expires_ms and self.stage.journal.head.keys.by_id[view.key_id].expires_ns
        self.keys.append(Known(view.key_id, tuple(scopes), expires_ns, {secret: 0}))

    @precondition(lambda self: self.keys)
    @rule(pick=st.integers(0, 99), ttl_ms=st.sampled_from([None, 0, 1_000]), scopes=st.sampled_from([None, ["admin"]]))
    def change(self, pick: int, ttl_ms: int | None, scopes: list[Any] | None) -> None:
        key = self.one(pick)
        patch = KeyPatch(ttl_ms=ttl_ms, scopes=scopes)
        try:
            self.stage.run(self.stage.services.keys.change(key.key_id, patch, LOCAL, "c"))
        except ConflictError:
            assert not self.live(key)
            return
        key.scopes = key.scopes if scopes is None else tuple(scopes)
        key.expires_ns = self.stage.journal.head.keys.by_id[key.key_id].expires_ns

    @precondition(lambda self: self.keys)
    @rule(pick=st.integers(0, 99), grace_ms=st.sampled_from([0, 700]))
    def rotate(self, pick: int, grace_ms: int) -> None:
        key = self.one(pick)
        before = self.now
        try:
            _, secret = self.stage.run(self.stage.services.keys.rotate(key.key_id, grace_ms, LOCAL, "c"))
        except ConflictError:
            assert not self.live(key)
            return
        newest = list(key.secrets)[-1]
        key.secrets = dict.fromkeys(key.secrets, 1)  # of several rotations only the last leaves its secret
        until = self.stage.journal.head.keys.by_id[key.key_id].previous_until_ns
        assert (until >= before + grace_ms * 1_000_000) if grace_ms else until == 0
        key.secrets[newest] = until or 1
        key.secrets[secret] = 0

    @precondition(lambda self: self.keys)
    @rule(pick=st.integers(0, 99))
    def revoke(self, pick: int) -> None:
        key = self.one(pick)
        self.stage.run(self.stage.services.keys.revoke(key.key_id, LOCAL, "c"))
        key.revoked = True

    @rule()
    def revoke_nobody(self) -> None:
        try:
            self.stage.run(self.stage.services.keys.revoke("key-none", LOCAL, "c"))
        except NotFoundError:
            return
        raise AssertionError

    @rule(ms=st.sampled_from([1, 300, 900, 6_000]), swept=st.booleans())
    def time_passes(self, ms: int, swept: bool) -> None:
        if swept:
            self.stage.advance(ms / 1000)
        else:
            self.stage.clock.advance_ms(ms)  # nobody has looked yet

    @rule(power=st.booleans())
    def restart(self, power: bool) -> None:
        self.stage.restart(power=power)

    @invariant()
    def each_secret_is_its_keys_or_nobodys(self) -> None:
        find = self.stage.services.keys.find
        for key in self.keys:
            for secret, until in key.secrets.items():
                accepted = self.live(key) and (not until or self.now < until)
                try:
                    caller = find(digest_of(secret.encode()))
                except BadTokenError:
                    assert not accepted
                else:
                    assert accepted
                    assert (caller.owner, caller.scopes) == (key.key_id, key.scopes)
                    newest = list(key.secrets)[-1]
                    assert caller.identity == f"token:{digest_of(newest.encode())[:6]}"
        assert self.stage.services.keys.any == bool(self.keys)

    @invariant()
    def the_state_survives_a_dump(self) -> None:
        now = self.stage.journal.head.keys
        again = Keys()
        again.load(msgspec.json.decode(msgspec.json.encode(now.dump())))
        assert (again.by_id, again.by_digest, again.timed) == (now.by_id, now.by_digest, now.timed)
        assert list(again.by_id) == list(now.by_id)

    @invariant()
    def no_secret_is_on_disk(self) -> None:
        written = b"".join(frame.facts for frame in self.stage.disk.frames)
        for key in self.keys:
            for secret in key.secrets:
                assert secret.encode() not in written
                assert secret[3:].encode() not in written


TestKeyHistories = KeyHistories.TestCase
TestKeyHistories.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
