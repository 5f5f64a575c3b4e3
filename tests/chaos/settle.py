"""The last life of a server in a test: everything comes to its end, and is compared."""

from __future__ import annotations

from .audit import Figures, audit, check_second_reader
from .http_client import stream
from .load import Load
from .world import World


async def settle(place: World, load: Load) -> Figures:
    """Start a server that lives, and :func:`finish`."""
    await place.start()
    await place.ready()
    return await finish(place, load)


async def finish(place: World, load: Load) -> Figures:
    """Let everything end, read all streams again, stop, and audit the journal."""
    await load.finish()
    for task in load.ledger.tasks:
        check_second_reader(task, [frame async for frame in stream(place.port, task.task_id)])
    assert await place.stop() == 0
    assert await place.command("journal", "verify") == 0, place.log.read_text()[-2000:]
    store = place.open_store()
    try:
        return audit(store, load.ledger)
    finally:
        store.close()
