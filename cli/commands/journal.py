"""The journal: verify, follow, export, count, migrate."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from .. import exits
from ..command import command
from ..connect import loaded_from
from ..exits import CliError
from ..journal_source import journal_of
from ..shell import Shell

_POLL_S = 0.1


def _tail_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lines", "-n", type=int, default=10, metavar="N", help="so many events at first (default: 10)"
    )
    parser.add_argument("--follow", "-f", action="store_true", help="go on as events are committed, until Ctrl-C")
    parser.add_argument("--stream", metavar="NAME", help="only this stream, e.g. task:<id>, pool:<id>, server")


@command("journal tail", "print the newest events", arguments=_tail_arguments, needs="server")
def tail(options: argparse.Namespace, shell: Shell) -> int:
    """Reads the committed journal, beside a running server or without one; with --url, that server's. With --json an
    event is an object on a line.
    """
    with journal_of(options, shell) as journal:
        stream = options.stream or ""
        events, last = journal.newest(max(0, options.lines), stream)
        for event in events:
            _show(event, shell)
        while options.follow:
            shell.stdout.flush()
            events, last = journal.after(last, stream)
            for event in events:
                _show(event, shell)
            if not events:
                time.sleep(_POLL_S)
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


@command("journal export", "write all events as JSON lines", arguments=_export_arguments, needs="server")
def export(options: argparse.Namespace, shell: Shell) -> int:
    """One object per event, in order, then one line with the hash of the last frame."""
    with journal_of(options, shell) as journal:
        out = shell.stdout if options.file is None else _private(Path(options.file))
        line = "{}"
        try:
            for line in journal.export(texts=options.texts):
                out.write(line + "\n")
        finally:
            if options.file is not None:
                out.close()
    end = json.loads(line).get("end")
    if end is None:
        raise CliError("the export broke off before its end", remedy="Try again; what came so far has no last line.")
    if options.file is not None:
        if shell.as_json:
            shell.json({"file": options.file, **end})
        else:
            shell.note(f"{end['events']} events of {end['frames']} frames in {options.file}.")
    return exits.OK


def _private(path: Path) -> Any:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8")


@command("journal stats", "count frames, events, tasks, tokens and bytes", needs="server")
def stats(options: argparse.Namespace, shell: Shell) -> int:
    """Reads every frame's facts once."""
    with journal_of(options, shell) as journal:
        found = journal.figures()
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


@command("journal verify", "check the chain of hashes, what it names, and that the folds agree", needs="server")
def verify(options: argparse.Namespace, shell: Shell) -> int:
    """Names the frame and seq range of every edited, removed, swapped or doubled row, and says what it cannot prove.
    Exit status 1 when something is wrong. Reads the database, beside a running server or without one; with --url the
    server does it.
    """
    with journal_of(options, shell) as journal:
        report = journal.verify(lambda frame_no: shell.status(f"frame {frame_no} …"))
    shell.clear_status()
    status = exits.OK if report["ok"] else exits.FAILED
    if shell.as_json:
        shell.json(report)
        return status
    for finding in report["findings"]:
        shell.line(f"{_frames(finding)}: {finding['message']}")
    verdict = "sound" if report["ok"] else f"{len(report['findings'])} findings"
    shell.line(f"{report['frames']} frames, {report['events']} events, head {report['head_hash'][:16]}: {verdict}")
    if report["ok"]:
        shell.line(
            f"also checked: {report['bodies']} texts, {report['transcripts']} transcripts, the state that the events fold to"
        )
    for what in report["unproven"]:
        shell.line(f"not proven: {what}")
    return status


def _frames(finding: dict[str, Any]) -> str:
    def span(name: str, first: int, last: int) -> str:
        return f"{name} {first}" if first == last else f"{name}s {first} to {last}"

    frames = span("frame", finding["frame_no"], finding["last_frame_no"])
    return f"{frames} ({span('event', finding['first_seq'], finding['last_seq'])})"
