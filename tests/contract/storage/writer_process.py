"""A writer in a process of its own: `python writer_process.py URL OPTIONS`, then a word per line.

Words: `open`, `reopen` (answer `open EPOCH LAST_FRAME`), `commit` (a frame; answers `commit FRAME`), `big` (one
with 20 kB of text and a body), `again` (the unit that was not taken, once more), `sync`, `maintain`. An error is
answered by its class's name.
"""

from __future__ import annotations

import json
import sys

from llama_orch.core.errors import JournalError
from llama_orch.core.ports import CommitUnit, JournalStore
from llama_orch.plugins.manager import PluginManager
from llama_orch.plugins.testing.frames import Chain, body_pieces


class Writer:
    """A store and the chain that it was given."""

    def __init__(self, store: JournalStore) -> None:
        self._store = store
        self._chain: Chain | None = None
        self._unit: CommitUnit | None = None

    def do(self, word: str) -> str:
        """Do what a word says. :raises JournalError: as the store says."""
        if word in ("open", "reopen"):
            tail = self._store.open() if word == "open" else self._store.reopen()
            self._chain = Chain(tail)
            return f"open {tail.epoch} {tail.frame_no}"
        chain = self._chain
        assert chain is not None
        if word == "sync":
            self._store.sync(chain.hash, chain.next_seq)
            return "synced"
        if word == "maintain":
            self._store.maintain()
            return "maintained"
        if word == "commit":
            self._unit = chain.unit(chunks=1)
        elif word == "big":
            self._unit = CommitUnit(frame=chain.frame(chunks=1, size=20_000), bodies=body_pieces("local", bytes(9000)))
        assert self._unit is not None
        self._store.commit(self._unit)
        chain.took(self._unit)
        return f"commit {chain.frame_no}"


def main(url: str, options: str) -> None:
    """Do what standard input says until it ends."""
    scheme = url.split(":", maxsplit=1)[0]
    writer = Writer(PluginManager(entry_points=False).journal_stores()[scheme](url, json.loads(options)))
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            answer = writer.do(line.strip())
        except JournalError as error:
            print(error, file=sys.stderr)
            answer = type(error).__name__
        print(answer, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
