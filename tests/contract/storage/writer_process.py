"""A writer in a process of its own: `python writer_process.py URL OPTIONS`, then a word per line.

It says what came of each: `open` opens and answers `open EPOCH`, `commit` and `reopen` likewise; an error is its
class's name.
"""

from __future__ import annotations

import json
import sys

from llama_orch.core.errors import JournalError
from llama_orch.plugins.manager import PluginManager
from llama_orch.plugins.testing.frames import Chain


def main(url: str, options: str) -> None:
    """Do what standard input says until it ends."""
    store = PluginManager(entry_points=False).journal_stores()[url.split(":", maxsplit=1)[0]](url, json.loads(options))
    chain: Chain | None = None
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            if line.strip() == "commit":
                assert chain is not None
                unit = chain.unit(chunks=1)
                store.commit(unit)
                chain.took(unit)
                answer = f"commit {chain.frame_no}"
            else:
                tail = store.open() if line.strip() == "open" else store.reopen()
                chain = Chain(tail)
                answer = f"open {tail.epoch}"
        except JournalError as error:
            answer = type(error).__name__
        print(answer, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
