"""Has snapshots written by a process beside the server, every so many events (JRN-5)."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import TYPE_CHECKING

from .journal_access import journal_url

if TYPE_CHECKING:
    from ..core.journal.journal import Journal
    from ..core.projections.projection import Recorded
    from .config import Loaded

_log = logging.getLogger("llama_orch.journal")
#: with more live tasks than this, or more of what is small (keys, sessions, streams), the server's own digest would
#: hold up its loop; the fold is then not compared
_DIGEST_TASKS = 500
_DIGEST_ROWS = 5000
_LIMIT_S = 600


class Snapshots:
    """Starts the process when enough happened since the last snapshot."""

    def __init__(self, journal: Journal, loaded: Loaded) -> None:
        self._journal = journal
        self._every = loaded.settings.journal.snapshot_every
        self._argv = [sys.executable, "-m", "llama_orch.cli.main", "journal", "snapshot", "--json"]
        self._argv += ["--data-dir", str(loaded.data_dir)]
        if loaded.path is not None:
            self._argv += ["--config", str(loaded.path)]
        # The URL may hold a password, so it is no argument; it may have come from a flag, so it is said again.
        self._environ = {**os.environ, "LLORCH_JOURNAL__URL": journal_url(loaded)}
        # Counted from the last snapshot, not from this start: a server that is restarted often gets its snapshots too.
        self._since = journal.snapshot_seq
        self._task: asyncio.Task[None] | None = None
        self.written = 0
        #: why the last one was not written
        self.failure = ""
        if self._every:
            journal.on_committed(self._note)

    def _note(self, _records: list[Recorded]) -> None:
        if self._journal.committed_seq - self._since < self._every or (self._task and not self._task.done()):
            return
        self._since = self._journal.committed_seq
        head = self._journal.head
        expect = ""
        rows = len(head.tasks.keys) + len(head.sessions.by_id) + len(head.positions)
        small = len(head.tasks.by_no) <= _DIGEST_TASKS and rows <= _DIGEST_ROWS
        if small and head.next_seq == self._journal.committed_seq:
            expect = head.digest()
        self._task = asyncio.get_running_loop().create_task(self._write(self._journal.committed_frame, expect))

    async def _write(self, frame_no: int, expect: str) -> None:
        argv = [*self._argv, "--frame", str(frame_no), *(["--expect", expect] if expect else [])]
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=self._environ,
            preexec_fn=_yield_to_the_server,
        )
        try:
            async with asyncio.timeout(_LIMIT_S):
                _, said = await process.communicate()
        except (TimeoutError, asyncio.CancelledError):
            process.kill()
            await process.wait()
            raise
        if process.returncode == 0:
            self.written += 1
            self.failure = ""
        else:
            self.failure = said.decode(errors="replace").strip()[-500:]
            _log.error("no snapshot was written: %s", self.failure)

    async def close(self) -> None:
        """End the process at work; the next start folds a little more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


def _yield_to_the_server() -> None:
    os.nice(10)
