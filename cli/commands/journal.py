"""The journal: verify, follow, export, count, migrate."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import exits
from ..command import command
from ..connect import loaded_from
from ..shell import Shell

if TYPE_CHECKING:
    from ...core.journal.verify import Finding

_POLL_S = 0.1


def _tail_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lines", "-n", type=int, default=10, metavar="N", help="so many events at first (default: 10)"
    )
    parser.add_argument("--follow", "-f", action="store_true", help="go on as events are committed, until Ctrl-C")
    parser.add_argument("--stream", metavar="NAME", help="only this stream, e.g. task:<id>, pool:<id>, server")


@command("journal tail", "print the newest events", arguments=_tail_arguments, needs="config")
def tail(options: argparse.Namespace, shell: Shell) -> int:
    """Reads the committed journal, beside a running server or without one. With --json an event is an object on a line."""
    from ...core.journal.listing import events_in, newest
    from ..journal_access import last_frame_no, open_for_reading

    store = open_for_reading(loaded_from(options, shell))
    wanted = options.stream or ""
    try:
        last = last_frame_no(store)
        for event in newest(store, last, limit=max(0, options.lines), stream=wanted):
            _show(event, shell)
        while options.follow:
            for frame in store.frames(last + 1):
                for event in events_in(frame):
                    if not wanted or event.get("stream") == wanted:
                        _show(event, shell)
                last = frame.frame_no
            shell.stdout.flush()
            time.sleep(_POLL_S)
    finally:
        store.close()
    return exits.OK


def _show(event: dict[str, Any], shell: Shell) -> None:
    if shell.as_json:
        shell.json_line(event)
        return
    from datetime import datetime

    when = ""
    if "time_ns" in event:
        when = datetime.fromtimestamp(int(event["time_ns"]) / 1e9).astimezone().strftime("%H:%M:%S.%f")[:-3]
    if event["name"] == "task.entries":
        what = f"{event.get('entries', '?')} entries of task number {event.get('task_no', '?')}"
    else:
        what = f"{event['stream']}  {_brief(event['payload'])}"
    line = f"{event['seq']:>8}  {when:<12}  {event['name']:<20}  {what}"
    shell.line(line[: shell.width] if shell.at_terminal else line)


def _brief(payload: dict[str, Any]) -> str:
    """The fields of an event that fit on a line."""
    parts = []
    for name, value in payload.items():
        if isinstance(value, (str, int)) and value not in ("", 0) and not name.endswith(("_id", "digest", "_ns")):
            text = str(value)
            parts.append(f"{name}={text if len(text) <= 40 else text[:39] + '…'}")
    return " ".join(parts)


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", nargs="?", help="where to, for your eyes only (default: standard output)"
    )
    parser.add_argument("--texts", action="store_true", help="with what was said; without, only how much")


@command("journal export", "write all events as JSON lines", arguments=_export_arguments, needs="config")
def export(options: argparse.Namespace, shell: Shell) -> int:
    """One object per event, in order, then one line with the hash of the last frame."""
    from ...core.journal.listing import events_in
    from ..journal_access import open_for_reading

    store = open_for_reading(loaded_from(options, shell))
    events = 0
    try:
        out = shell.stdout if options.file is None else _private(Path(options.file))
        try:
            head: dict[str, Any] = {"frames": 0, "hash": ""}
            for frame in store.frames(1):
                for event in events_in(frame, texts=options.texts):
                    out.write(json.dumps(event, ensure_ascii=False) + "\n")
                    events += 1
                head = {"frames": frame.frame_no, "hash": frame.hash.hex()}
            out.write(json.dumps({"end": head | {"events": events}}) + "\n")
        finally:
            if options.file is not None:
                out.close()
    finally:
        store.close()
    if options.file is not None:
        if shell.as_json:
            shell.json({"file": options.file, "events": events, **head})
        else:
            shell.note(f"{events} events of {head['frames']} frames in {options.file}.")
    return exits.OK


def _private(path: Path) -> Any:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8")


@command("journal stats", "count frames, events, tasks, tokens and bytes", needs="config")
def stats(options: argparse.Namespace, shell: Shell) -> int:
    """Reads every frame's facts once."""
    from ...core.journal.listing import figures
    from ..journal_access import open_for_reading

    store = open_for_reading(loaded_from(options, shell))
    try:
        found = figures(store)
    finally:
        store.close()
    if shell.as_json:
        shell.json(found)
        return exits.OK
    for name in ("frames", "events", "epochs", "tasks", "tokens", "bytes"):
        shell.line(f"{name + ':':<10} {found[name]}")
    shell.line()
    shell.table(("EVENT", "COUNT"), sorted(found["by_name"].items()), empty="The journal is empty.")
    return exits.OK


@command("journal migrate", "bring the database's schema up to date", needs="config")
def migrate(options: argparse.Namespace, shell: Shell) -> int:
    """For PostgreSQL, before a new version is started. SQLite is migrated when the server starts."""
    from ..journal_access import make_store

    loaded = loaded_from(options, shell)
    store = make_store(loaded)
    upgrade = getattr(store, "migrate", None)
    try:
        if upgrade is not None:
            upgrade()
    finally:
        store.close()
    if shell.as_json:
        shell.json({"migrated": upgrade is not None})
    else:
        shell.note(
            "The schema is up to date."
            if upgrade is not None
            else "Nothing to do: this journal is migrated when the server starts."
        )
    return exits.OK


@command("journal verify", "check the chain of hashes, what it names, and that the folds agree", needs="config")
def verify(options: argparse.Namespace, shell: Shell) -> int:
    """Names the frame and seq range of every edited, removed, swapped or doubled row, and says what it cannot prove.
    Exit status 1 when something is wrong. Reads beside a running server or without one.
    """
    import msgspec

    from ...core.journal.verify import verify as verify_journal
    from ..journal_access import disagreeing_folds, open_for_reading

    loaded = loaded_from(options, shell)
    store = open_for_reading(loaded)
    try:
        report = verify_journal(
            store,
            check_fold=lambda frames: disagreeing_folds(frames, loaded.data_dir / "snapshots"),
            progress=lambda frame_no: shell.status(f"frame {frame_no} …"),
        )
    finally:
        store.close()
        shell.clear_status()
    if shell.as_json:
        shell.json({"ok": report.ok, **msgspec.to_builtins(report)})
        return exits.OK if report.ok else exits.FAILED
    for finding in report.findings:
        shell.line(f"{_frames(finding)}: {finding.message}")
    verdict = "sound" if report.ok else f"{len(report.findings)} findings"
    shell.line(f"{report.frames} frames, {report.events} events, head {report.head_hash[:16]}: {verdict}")
    if report.ok:
        shell.line(
            f"also checked: {report.bodies} texts, {report.transcripts} transcripts, the state that the events fold to"
        )
    for what in report.unproven:
        shell.line(f"not proven: {what}")
    return exits.OK if report.ok else exits.FAILED


def _frames(finding: Finding) -> str:
    frames = f"frame {finding.frame_no}"
    if finding.last_frame_no != finding.frame_no:
        frames = f"frames {finding.frame_no} to {finding.last_frame_no}"
    seqs = f"seq {finding.first_seq}"
    if finding.last_seq != finding.first_seq:
        seqs += f" to {finding.last_seq}"
    return f"{frames} ({seqs})"
