"""Reload: a pool changes its model, the new one proven before the old one goes where memory allows (POOL-2).

    new-first   the new engine comes up beside the old one; once it decoded it takes the new tasks, the old one ends its
                own, then it is ended
    drain       running tasks end first, then the old engine, then the new one starts; where it does not come up the old
                one is started again

New-first is tried unless there is nothing to keep or no second port; whether both fit is found by the pool's host, which
knows the numbers: should they not, the pool is drained and changed over.
"""

from __future__ import annotations

import asyncio
from typing import Final, Literal

import msgspec

from ..errors import ConflictError, InvalidParamsError, JournalUnavailableError
from ..events.pool import PoolDraining, PoolHandedOver, PoolReloadFailed, PoolReloading
from ..journal.journal import Journal
from ..projections.pools import PoolState
from ..projections.projection import Recorded
from ..settings import Settings
from .caller import Caller
from .dispatch import Dispatcher
from .draining import give_up, leases_of
from .pools import PoolService

Handover = Literal["new-first", "drain"]
#: causes after which both do not fit beside each other
SHORT: Final = frozenset({"vram-short", "ram-short", "vram-oom", "host-oom"})
#: events after which a reload may have come further
_TELLING: Final = frozenset(
    {"pool.reloading", "pool.reloaded", "pool.reload_failed", "pool.unready", "pool.ready", "lease.released"}
)


def handover_of(pool: PoolState, *, fixed_port: bool) -> Handover:
    """How a pool is best changed over, as far as head tells."""
    if fixed_port or not pool.ready:
        return "drain"  # two engines cannot share a port; what does not serve is not worth its memory
    return "new-first"


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody asked for."""

    model_ref: str
    source: str
    #: whether the way may be chosen here
    automatic: bool
    deadline_ms: int | None


class ReloadService:
    """Reloads pools."""

    def __init__(self, journal: Journal, dispatcher: Dispatcher, pools: PoolService, settings: Settings) -> None:
        self._journal = journal
        self._dispatcher = dispatcher
        self._pools = pools
        self._settings = settings
        self._configured = {pool.id: pool for pool in settings.pools}
        #: what was asked for of each pool in this life of the server
        self._wishes: dict[str, Wish] = {}
        #: leases on engines that are to end, by pool
        self._old: dict[str, set[str]] = {}
        self._deadlines: dict[str, asyncio.TimerHandle] = {}
        self._running = False
        self._soon = False
        journal.on_committed(self._note)
        journal.on_rebuilt(self._rebuilt)
        journal.on_status(self.look_soon)

    def start(self) -> None:
        """Go on with the reloads that head knows of."""
        self._running = True
        self.look_soon()

    def close(self) -> None:
        """Look no more."""
        self._running = False
        for timer in self._deadlines.values():
            timer.cancel()
        self._deadlines.clear()

    async def reload(
        self,
        pool_id: str,
        new_model_ref: str,
        caller: Caller,
        *,
        handover: Handover | None = None,
        deadline_ms: int | None = None,
        correlation: str = "",
    ) -> Handover:
        """Change the pool's model; answers how, once that is durable. The pool keeps its names.

        :param handover: ``None`` = new-first where memory allows.
        :param deadline_ms: for tasks that run on the old model, from when it has to go; ``None`` = until they end.
        :raises NotFoundError: there is no such pool.
        :raises ConflictError: it is being reloaded or drained already, is not loaded, or its engine is somebody else's.
        """
        pool = self._pools.state(pool_id)
        if not new_model_ref.strip():
            msg = "new_model_ref is empty"
            raise InvalidParamsError(msg, field="new_model_ref", got=new_model_ref)
        self._refuse_conflict(pool)
        wish = Wish(
            model_ref=new_model_ref,
            source=self._settings.models.get(new_model_ref, new_model_ref),
            automatic=handover is None,
            deadline_ms=deadline_ms,
        )
        settings = self._configured.get(pool_id)
        chosen = handover or handover_of(pool, fixed_port=bool(settings and settings.provisioning.port))
        seq = self._begin(pool_id, wish, chosen, actor=caller.identity, correlation=correlation)
        await self._journal.synced(seq)
        return chosen

    def _refuse_conflict(self, pool: PoolState) -> None:
        name = pool.declared.pool_id
        if pool.reloading_to or pool.reloaded_from:
            why = f"is being reloaded already, to {pool.reloading_to or pool.declared.source!r}"
        elif pool.draining:
            why = "is being drained"
        elif pool.declared.provisioning == "external":
            why = "is an external engine, which is not started from here"
        elif not pool.wanted and not pool.ready:
            why = "is not loaded, so that no new model can be proven on it"
        else:
            return
        msg = f"pool {name!r} {why}"
        remedy = "GET /v1/pools/{id}/health says how it stands; reload it once it serves."
        raise ConflictError(msg, field="pool_id", got=name, remedy=remedy, pool_id=name)

    def _begin(self, pool_id: str, wish: Wish, handover: Handover, *, actor: str, correlation: str) -> int:
        self._wishes[pool_id] = wish
        events: list[object] = [
            PoolReloading(pool_id=pool_id, model_ref=wish.model_ref, source=wish.source, handover=handover)
        ]
        if handover == "drain":
            deadline_ms = max(1, wish.deadline_ms) if wish.deadline_ms is not None else 0
            events.append(PoolDraining(pool_id=pool_id, deadline_ms=deadline_ms, cause="reload"))
        seq = self._journal.append(events, actor=actor, correlation=correlation)
        self.look_soon()
        return seq

    # --- how it goes on ----------------------------------------------------------------------------------------------

    def _rebuilt(self) -> None:
        self._old.clear()
        self.look_soon()

    def _note(self, records: list[Recorded]) -> None:
        if not self._running:
            return
        for record in records:
            if record.name == "pool.reload_failed":
                self._failed(record.payload)
            elif record.name == "lease.released" and self._old:
                self._old.get(record.payload.pool_id, set()).discard(record.payload.lease_id)
            if record.name in ("pool.reloaded", "pool.reload_failed"):
                pool = self._journal.head.pools.by_id.get(record.payload.pool_id)
                if pool is not None:
                    self._dispatcher.pump(pool.declared.model_ref)
        if any(record.name in _TELLING for record in records):
            pools = self._journal.head.pools.by_id.values()
            if any(pool.reloading_to or pool.reloaded_from for pool in pools):
                self.look_soon()

    def _failed(self, event: PoolReloadFailed) -> None:
        """Both do not fit beside each other: the old one goes first."""
        wish = self._wishes.pop(event.pool_id, None)
        pool = self._journal.head.pools.by_id.get(event.pool_id)
        if wish is None or pool is None or not wish.automatic or event.cause not in SHORT:
            return
        if pool.reloading_to or pool.draining or not pool.ready:
            return
        wish = msgspec.structs.replace(wish, automatic=False)
        try:
            self._begin(event.pool_id, wish, "drain", actor="reloading", correlation="")
        except JournalUnavailableError:
            return  # it stays failed, as head says

    def look_soon(self) -> None:
        """Look once what runs now is through."""
        if self._running and not self._soon:
            self._soon = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._soon = False
        if not self._running or self._journal.status != "ok":
            return
        head = self._journal.head
        for name, pool in sorted(head.pools.by_id.items()):
            try:
                if pool.reloaded_from:
                    self._hand_over(name)
                elif pool.reloading_to and pool.handover == "drain" and not head.leases.count(name):
                    event = PoolReloading(
                        pool_id=name, model_ref=pool.reloading_to, source=pool.reload_source, handover="stop-first"
                    )
                    self._journal.append([event], actor="reloading", correlation="", internal=True)
            except JournalUnavailableError:
                return  # looked at again once the journal is back

    def _hand_over(self, pool_id: str) -> None:
        """Let the old engine end once none of its tasks is left."""
        if pool_id not in self._old:
            self._old[pool_id] = {lease.lease_id for lease in leases_of(self._journal.head.leases, pool_id)}
            wish = self._wishes.pop(pool_id, None)
            if self._old[pool_id] and wish is not None and wish.deadline_ms is not None:
                self._deadlines[pool_id] = asyncio.get_running_loop().call_later(
                    wish.deadline_ms / 1000, self._give_up, pool_id
                )
        if not self._old[pool_id]:
            self._journal.append([PoolHandedOver(pool_id=pool_id)], actor="reloading", correlation="", internal=True)
            del self._old[pool_id]
            timer = self._deadlines.pop(pool_id, None)
            if timer is not None:
                timer.cancel()

    def _give_up(self, pool_id: str) -> None:
        self._deadlines.pop(pool_id, None)
        try:
            give_up(self._journal, self._dispatcher, sorted(self._old.get(pool_id, ())))
        except JournalUnavailableError:
            return  # the tasks run on until they end
