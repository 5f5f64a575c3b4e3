"""A loaded model stays in the cache, whoever of those that look after its engine lives or dies."""

from __future__ import annotations

import threading

import pytest

from llama_orch.core.events.model import ModelStaged
from llama_orch.core.settings import ManagerSettings, PoolSettings
from llama_orch.pools.models.cache import Cache
from llama_orch.pools.models.errors import StagingError
from llama_orch.pools.models.locks import Locks
from llama_orch.pools.models.references import parse
from llama_orch.pools.models.staging import stage
from llama_orch.pools.outfitting import Outfitter, config_of
from llama_orch.pools.preparing import Prepared, order_of

from ...support.model_files import gguf
from ...support.model_server import serving
from .conftest import Heard, desired, managed, pool, run


class Staging:
    """Prepares a pool of the mock server whose model comes from a cache."""

    def __init__(self, cache: Cache, url: str) -> None:
        self.cache = cache
        self.url = url

    def configure(self, manager):
        pass

    def size(self, order):
        return None

    def prepare(self, order, *, progress, cancelled):
        held = Locks()
        stage(self.url, cache=self.cache, cancel=cancelled, hold_into=held)
        return Prepared(config={**config_of(order, launched=True), "held_descriptors": held.descriptors}, held=held)


def test_a_model_is_held_by_its_engine_alone_and_free_when_that_is_gone(data_dir):
    with serving() as server:
        server.files["/tiny.gguf"] = gguf(1)
        cache = Cache(data_dir / "models", limit_bytes=1)
        staging = Staging(Cache(cache.root), f"{server.url}/tiny.gguf")

        async def test():
            heard = Heard()
            manager = managed(data_dir, heard, preparer=staging)
            await manager.apply(desired(pool()))
            await heard.next("a", "ready")
            (record,) = cache.records()
            assert cache.in_use(record.id)
            await manager.stop(kill_engines=False)
            assert cache.in_use(record.id)
            assert cache.collect() == []
            with pytest.raises(StagingError, match="is loaded"):
                cache.remove(record.id)
            following = managed(data_dir, heard, preparer=staging)
            await following.apply(desired(pool()))
            await heard.next("a", "ready")
            assert cache.in_use(record.id)
            await following.stop(kill_engines=True)
            assert not cache.in_use(record.id)
            assert [one.what for one in cache.collect()] == [record.ref]

        run(test)


def test_what_is_staged_for_a_pool_is_held_and_told_once(tmp_path):
    model = tmp_path / "tiny.gguf"
    model.write_bytes(gguf(2))
    outfitter = Outfitter({"llamacpp"}, {"tiny": str(model)}, data_dir=tmp_path / "data")
    order = order_of(PoolSettings(id="a", model="tiny"), "tiny", ["cpu"])
    cache = Cache(tmp_path / "data" / "models")

    def prepare():
        return outfitter.prepare(order, progress=lambda *_: None, cancelled=threading.Event())

    first = prepare()
    (record,) = cache.records()
    assert cache.in_use(record.id)
    assert len(first.config["held_descriptors"]) == 1
    staged = [fact for fact in first.facts if isinstance(fact, ModelStaged)]
    assert [(fact.ref, fact.architecture, fact.verification) for fact in staged] == [
        (f"file:{model}", "llama", "unverified")
    ]
    assert first.held is not None
    first.held.release()
    assert not cache.in_use(record.id)
    second = prepare()
    assert not [fact for fact in second.facts if isinstance(fact, ModelStaged)]
    assert second.held is not None
    second.held.release()


def test_a_model_that_is_not_here_is_sized_by_its_head_alone(tmp_path):
    with serving() as server:
        server.files["/tiny.gguf"] = gguf(2, elements=1024 * 1024)
        url = f"{server.url}/tiny.gguf"
        outfitter = Outfitter({"llamacpp"}, {"tiny": url}, data_dir=tmp_path / "data")
        order = order_of(PoolSettings(id="a", model="tiny"), "tiny", ["cpu"])
        size = outfitter.size(order)
        assert size is not None
        assert size.event.parameters == 1024 * 1024
        assert Cache(tmp_path / "data" / "models").records() == []
        outfitter.configure(ManagerSettings(forbid_downloads=True))
        asked = len(server.asked)
        assert outfitter.size(order) is None
        assert len(server.asked) == asked


def test_a_model_that_somebody_fetches_for_long_is_sized_at_once(tmp_path):
    with serving() as server:
        server.files["/tiny.gguf"] = gguf(2)
        url = f"{server.url}/tiny.gguf"
        outfitter = Outfitter({"llamacpp"}, {"tiny": url}, data_dir=tmp_path / "data")
        with Cache(tmp_path / "data" / "models").stage_lock(parse(url).id):
            assert outfitter.size(order_of(PoolSettings(id="a", model="tiny"), "tiny", ["cpu"])) is not None


def test_a_model_that_the_command_line_fetched_is_told_to_the_journal_when_it_is_loaded(tmp_path):
    model = tmp_path / "tiny.gguf"
    model.write_bytes(gguf(2))
    stage(str(model), cache=Cache(tmp_path / "data" / "models"))
    outfitter = Outfitter({"llamacpp"}, {"tiny": str(model)}, data_dir=tmp_path / "data")
    order = order_of(PoolSettings(id="a", model="tiny"), "tiny", ["cpu"])
    outfitter.size(order)  # tells nothing, and nothing counts as told

    def told():
        prepared = outfitter.prepare(order, progress=lambda *_: None, cancelled=threading.Event())
        assert prepared.held is not None
        prepared.held.release()
        return [fact for fact in prepared.facts if isinstance(fact, ModelStaged)]

    assert len(told()) == 1
    assert told() == []
    model.write_bytes(gguf(3))
    assert len(told()) == 1
