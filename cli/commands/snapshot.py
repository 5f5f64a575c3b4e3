"""The process beside the server that tails the journal, folds it and writes snapshots."""

from __future__ import annotations

import argparse

from .. import exits
from ..command import command
from ..connect import loaded_from
from ..exits import CliError
from ..shell import Shell


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--frame", type=int, metavar="N", help="fold up to this frame (default: the last one)")
    parser.add_argument(
        "--expect", metavar="DIGEST", help="state digest that the server had there; another one is an error"
    )


@command(
    "journal snapshot", "write a snapshot, so that the next start folds less", arguments=_arguments, needs="config"
)
def snapshot(options: argparse.Namespace, shell: Shell) -> int:
    """Loads the newest snapshot, folds what came after it, and writes the next one; a running server goes on beside it.

    The server calls this by itself every journal.snapshot_every events. The fold is checked against the server's state.
    """
    from ...core.journal.replay import replay
    from ...core.journal.snapshot import load_latest, write_snapshot
    from ..journal_access import last_frame_no, open_for_reading

    loaded = loaded_from(options, shell)
    folder = loaded.data_dir / "snapshots"
    store = open_for_reading(loaded)
    try:

        def frame_hash(number: int) -> bytes | None:
            frames = store.frames_at([number])
            return frames[0].hash if frames else None

        last = options.frame if options.frame is not None else last_frame_no(store)
        found = load_latest(folder, frame_hash)
        if found is not None and found[1] > last:
            found = None
        done = replay(store, *found, upto_frame=last) if found else replay(store, upto_frame=last)
        digest = done.head.digest()
        reached = frame_hash(done.frame_no)
        if reached is None:
            raise CliError("the journal is empty", remedy="`llama-orch serve` begins one.", code="NO_JOURNAL")
        if options.expect and (done.frame_no, digest) != (last, options.expect):
            raise CliError(
                f"the fold of frame {done.frame_no} gives state {digest[:16]}, the server's was {options.expect[:16]}",
                remedy="Keep this journal and report a defect: folds of the same events have to be equal.",
                code="FOLD_DIFFERS",
            )
        path = write_snapshot(folder, done.head, done.frame_no, reached)
    finally:
        store.close()
    if shell.as_json:
        shell.json_line(
            {"path": str(path), "frame_no": done.frame_no, "next_seq": done.head.next_seq, "digest": digest}
        )
    else:
        shell.line(f"{path.name}: frame {done.frame_no}, {done.head.next_seq - 1} events, state {digest[:16]}")
    return exits.OK
