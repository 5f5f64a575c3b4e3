"""Keys: how they look, what a change leaves, who may make them, what is told of them (AUTH-1)."""

from __future__ import annotations

import re

import pytest

from llama_orch.core.errors import BadTokenError, ConflictError, ForbiddenError, InvalidParamsError
from llama_orch.core.events.budget import BudgetSet
from llama_orch.core.events.key import KeyChanged, KeyCreated, KeyExpired, KeyRevoked, KeyRotated
from llama_orch.core.services.caller import Caller
from llama_orch.core.services.keys import KeyPatch, KeySpec, digest_of
from llama_orch.core.settings import BudgetCapSettings

from ...support.stage import LOCAL, Stage, on_stage


def make(stage: Stage, name: str = "k", **spec: object) -> tuple[str, str]:
    """A key's id and secret."""
    view, secret = stage.run(stage.services.keys.create(KeySpec(name=name, **spec), LOCAL, "c"))  # type: ignore[arg-type]
    return view.key_id, secret


def test_a_key_is_lo_and_32_random_bytes_and_no_two_are_alike() -> None:
    with on_stage() as stage:
        secrets = [make(stage, f"k{n}")[1] for n in range(20)]
        assert len(set(secrets)) == 20
        for secret in secrets:
            assert re.fullmatch(r"lo_[A-Za-z0-9_-]{43}", secret)


def test_a_key_is_durable_before_its_secret_is_told() -> None:
    with on_stage(by_hand=True) as stage:
        made = stage.loop.create_task(stage.services.keys.create(KeySpec(name="k"), LOCAL, "c"))
        stage.turn()
        assert not made.done()
        stage.settle()
        _, secret = made.result()
        stage.restart(power=True)
        assert stage.services.keys.find(digest_of(secret.encode())).owner == made.result()[0].key_id


def test_a_key_and_its_budgets_are_one_batch_or_nothing() -> None:
    day = BudgetCapSettings(window="day", tokens=7)
    with on_stage() as stage:
        key_id, _ = make(stage, budgets=[day, BudgetCapSettings(tokens=9)])
        frames = {record.frame_no for record in stage.facts(KeyCreated, BudgetSet)}
        assert len(frames) == 1
        assert {a.declared.tokens for a in stage.journal.head.budgets.of("key", key_id)} == {7, 9}
        with pytest.raises(InvalidParamsError) as refused:
            make(stage, "twice", budgets=[day, day])
        assert refused.value.field == "budgets"
        assert len(stage.facts(KeyCreated)) == 1


def test_a_route_that_no_path_can_match_is_refused() -> None:
    with on_stage() as stage:
        key_id, _ = make(stage, routes=["/v1/chat/*", "*"])
        for refused in (
            lambda: make(stage, "other", routes=["/v1/x", "v1/chat"]),
            lambda: stage.run(stage.services.keys.change(key_id, KeyPatch(routes=["/v1/x", "v1/chat"]), LOCAL, "")),
        ):
            with pytest.raises(InvalidParamsError) as caught:
                refused()
            assert (caught.value.field, caught.value.got) == ("routes.1", "v1/chat")


def test_every_change_is_an_event_of_who_made_it() -> None:
    with on_stage() as stage:
        keys, actor = stage.services.keys, Caller(owner="x", identity="token:abcdef")
        view, _ = stage.run(keys.create(KeySpec(name="k", ttl_ms=60_000), actor, "c1"))
        stage.run(keys.change(view.key_id, KeyPatch(name="other"), actor, "c2"))
        stage.run(keys.rotate(view.key_id, 1_000, actor, "c3"))
        stage.run(keys.revoke(view.key_id, actor, "c4"))
        kinds = (KeyCreated, KeyChanged, KeyRotated, KeyRevoked)
        records = [record for kind in kinds for record in stage.facts(kind)]
        assert [record.correlation for record in records] == ["c1", "c2", "c3", "c4"]
        assert {record.actor for record in records} == {"token:abcdef"}
        assert keys.get(view.key_id).created_by == "token:abcdef"


def test_expiry_is_noted_by_the_sweep_and_counts_before() -> None:
    with on_stage() as stage:
        key_id, secret = make(stage, ttl_ms=1_000)
        stage.clock.advance_ms(1_001)
        with pytest.raises(BadTokenError):
            stage.services.keys.find(digest_of(secret.encode()))
        assert stage.services.keys.get(key_id).state == "expired"
        assert stage.payloads(KeyExpired) == []
        stage.advance(0.2)
        assert [event.key_id for event in stage.payloads(KeyExpired)] == [key_id]
        stage.advance(5)
        assert len(stage.payloads(KeyExpired)) == 1
        assert stage.services.keys.get(key_id).state == "expired"


def test_expiry_is_noted_after_downtime() -> None:
    with on_stage() as stage:
        make(stage, ttl_ms=1_000)
        stage.crash()
        stage.clock.advance_ms(10_000)
        stage.start()
        stage.advance(0.2)
        assert len(stage.payloads(KeyExpired)) == 1


def test_the_secret_before_a_rotation_is_accepted_for_its_grace_alone() -> None:
    with on_stage() as stage:
        key_id, old = make(stage)
        view, new = stage.run(stage.services.keys.rotate(key_id, 1_000, LOCAL, ""))
        assert view.previous_until_ms
        assert stage.services.keys.find(digest_of(old.encode())) == stage.services.keys.find(digest_of(new.encode()))
        stage.clock.advance_ms(1_001)
        with pytest.raises(BadTokenError):
            stage.services.keys.find(digest_of(old.encode()))
        assert stage.payloads(KeyExpired) == [], "nobody has looked yet"
        stage.advance(0.2)
        assert stage.services.keys.find(digest_of(new.encode())).owner == key_id
        assert [event.what for event in stage.payloads(KeyExpired)] == ["previous"]
        assert stage.services.keys.get(key_id).previous_until_ms == 0


def test_a_name_is_free_again_once_its_key_is_over() -> None:
    with on_stage() as stage:
        key_id, _ = make(stage, "agent")
        with pytest.raises(ConflictError, match="is named 'agent' already"):
            make(stage, "agent")
        stage.run(stage.services.keys.revoke(key_id, LOCAL, ""))
        assert make(stage, "agent")[0] != key_id


def test_a_patch_changes_what_it_names_and_counts_from_the_next_request() -> None:
    with on_stage() as stage:
        key_id, secret = make(stage, models=["a*"], requests_per_minute=5)
        before = stage.services.keys.find(digest_of(secret.encode()))
        view = stage.run(stage.services.keys.change(key_id, KeyPatch(models=[], batch_only=True), LOCAL, ""))
        after = stage.services.keys.find(digest_of(secret.encode()))
        assert (before.models, before.batch_only) == (("a*",), False)
        assert (after.models, after.batch_only, after.requests_per_minute) == ((), True, 5)
        assert (view.models, view.batch_only, view.requests_per_minute) == ([], True, 5)


def test_revoking_twice_is_one_event() -> None:
    with on_stage() as stage:
        key_id, _ = make(stage)
        for _ in range(3):
            assert stage.run(stage.services.keys.revoke(key_id, LOCAL, "")).state == "revoked"
        assert len(stage.payloads(KeyRevoked)) == 1
        assert stage.services.keys.any
        assert [view.state for view in stage.services.keys.views()] == ["revoked"]


@pytest.mark.parametrize("change", [{"models": ("m",)}, {"routes": ("/v1/*",)}, {"batch_only": True}])
def test_who_is_restricted_makes_no_keys(change: dict[str, object]) -> None:
    with on_stage() as stage:
        key_id, _ = make(stage)
        restricted = Caller(owner="x", identity="token:abcdef", **change)  # type: ignore[arg-type]
        keys = stage.services.keys
        for attempt in (
            keys.create(KeySpec(name="free"), restricted, ""),
            keys.change(key_id, KeyPatch(), restricted, ""),
            keys.rotate(key_id, 0, restricted, ""),
            keys.revoke(key_id, restricted, ""),
        ):
            with pytest.raises(ForbiddenError, match="restricted"):
                stage.run(attempt)


def test_what_callers_may_do() -> None:
    reader = Caller(scopes=("read",))
    reader.require_route(("inference", "read"), "/v1/models")
    with pytest.raises(ForbiddenError, match="scope inference or admin; yours has: read"):
        reader.require_route(("inference",), "/v1/tasks")
    Caller(scopes=("admin",)).require_route(("inference",), "/v1/tasks")
    narrow = Caller(routes=("/v1/chat/*", "/v1/models"))
    narrow.require_route(("inference",), "/v1/chat/completions")
    with pytest.raises(ForbiddenError, match="not for the path"):
        narrow.require_route(("inference",), "/v1/models/m")
