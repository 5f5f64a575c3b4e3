"""What is recorded: a journal that commits, syncs, compacts and restarts its log; `python workload.py FOLDER`.

It notes in the file `notes`, through the recorded calls: `o EPOCH` behind every opening, `c SEQ` behind every commit,
`s SEQ HASH` behind every sync, before which nobody would have been told that a fact is durable.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

from llama_orch.core.ports import CommitUnit
from llama_orch.plugins.storage.sqlite import SqliteStore
from llama_orch.plugins.testing.frames import Chain, body_pieces, index_row, without_texts


def main(folder: str) -> None:
    """Run the workload."""
    chance = random.Random(7)
    notes = os.open(Path(folder) / "notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(text: str) -> None:
        os.write(notes, f"{text}\n".encode())

    for _ in range(3):
        store = SqliteStore(f"sqlite:///{folder}/journal.db", {"wal_bytes": 65_536})
        tail = store.open()
        note(f"o {tail.epoch}")
        chain = Chain(tail)
        for n in range(60):
            frame = chain.frame(
                facts=chance.randint(0, 2), chunks=chance.randint(0, 2), size=chance.choice([10, 900, 6000])
            )
            unit = CommitUnit(frame=frame)
            if n % 7 == 0:
                unit.bodies = body_pieces("local", os.urandom(chance.choice([10, 3000])))
            if n % 11 == 0:
                unit.index = [index_row(frame.frame_no)]
            if n % 13 == 12:
                unit.rewrites = [
                    (f.frame_no, without_texts(f)) for f in store.frames(frame.frame_no - 5, frame.frame_no - 1)
                ]
            store.commit(unit)
            chain.took(unit)
            note(f"c {chain.next_seq}")
            if n % 4 == 3:
                store.sync(chain.hash, chain.next_seq)
                note(f"s {chain.next_seq} {chain.hash.hex()}")
            if n % 9 == 8:
                store.maintain()
        store.close()


if __name__ == "__main__":
    main(sys.argv[1])
