"""What the server can do now, from live pools, with configured overrides (CAP-1)."""

from __future__ import annotations

from typing import Any

from ..journal.journal import Journal
from ..projections.pools import PoolState
from ..settings import Settings
from .caller import Caller
from .engines import EngineDirectory
from .gpus import GpuService


class Capabilities:
    """Derives the report; nothing in it is constant."""

    def __init__(
        self, journal: Journal, engines: EngineDirectory, gpus: GpuService, settings: Settings, api_version: str
    ) -> None:
        self._journal = journal
        self._engines = engines
        self._gpus = gpus
        self._settings = settings
        self._api_version = api_version

    def report(self, caller: Caller) -> dict[str, Any]:
        """Engines of ready pools, models and devices, with the rates that the caller may use."""
        pools = [p for _, p in sorted(self._journal.head.pools.by_id.items())]
        return {
            "api_version": self._api_version,
            "engines": [self._engine(p, caller) for p in pools if p.ready],
            "models": self.models(),
            "devices": self._gpus.devices(),
        }

    def models(self) -> list[dict[str, Any]]:
        """Models by name, with the pools that serve them."""
        out: dict[str, dict[str, Any]] = {}
        for name, pool in sorted(self._journal.head.pools.by_id.items()):
            model = out.setdefault(
                pool.declared.model_ref,
                {"id": pool.declared.model_ref, "aliases": [], "pools": [], "ready": False, "ctx_max": 0},
            )
            model["aliases"] = sorted({*model["aliases"], *pool.declared.aliases})
            model["pools"].append(name)
            model["ready"] = model["ready"] or pool.ready
            model["ctx_max"] = max(model["ctx_max"], pool.observed.ctx if pool.observed else 0)
        return [out[k] for k in sorted(out)]

    def _engine(self, pool: PoolState, caller: Caller) -> dict[str, Any]:
        pool_id = pool.declared.pool_id
        properties = self._engines.properties(pool_id)
        profile = next((p.sampler_profile_version for p in self._settings.pools if p.id == pool_id), "")
        observed = pool.observed
        said: dict[str, Any] = {
            "engine": pool.declared.engine,
            "engine_version": observed.engine_version if observed else "",
            "pool_id": pool_id,
            "sampler_profile_version": profile,
            "ctx_max": observed.ctx if observed else 0,
            "max_tokens_out": observed.ctx if observed else 0,
            "supported_workloads": sorted(properties.workloads) if properties else [],
            "concurrency": pool.slots,
            "slots_free": max(0, pool.slots - self._journal.head.leases.count(pool_id)),
            "rate_limits": {
                name: limit for name in ("requests_per_minute", "tokens_per_minute") if (limit := getattr(caller, name))
            },
            "features": ["stream", "resume", "cancel", "idempotency"]
            + (["strict-determinism"] if properties and properties.strict_capable and pool.slots == 1 else [])
            + sorted(properties.features if properties else ()),
        }
        said.update(self._settings.capabilities.overrides.get(pool_id, {}))
        return said
