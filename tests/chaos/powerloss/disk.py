"""A disk after a power loss: what was synced is there, of the rest anything may be.

A record (see ``record.c``) is replayed up to a point. Behind a sync everything that was written to that file before
is safe. Of later writes any subset arrives, in any order, each in sectors that arrive or do not; a file that was made
or renamed and whose folder was not synced may have its old name or none.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_HEADER = struct.Struct("<cIIIQ")
SECTOR_BYTES = 512


@dataclass(frozen=True)
class Step:
    """One entry of a record."""

    kind: str
    token: int
    path: str
    at: int
    data: bytes


@dataclass
class _File:
    """What is safe of a file, and what is on its way, in order."""

    safe: bytearray = field(default_factory=bytearray)
    pending: list[Step] = field(default_factory=list)


def read_record(log: Path) -> list[Step]:
    """The steps of a record, in order."""
    raw = log.read_bytes()
    steps, at = [], 0
    while at < len(raw):
        kind, token, path_length, data_length, offset = _HEADER.unpack_from(raw, at)
        at += _HEADER.size
        path = raw[at : at + path_length].decode()
        at += path_length
        steps.append(Step(kind.decode(), token, path, offset, raw[at : at + data_length]))
        at += data_length
    return steps


class Disk:
    """The files of one folder while a record is replayed."""

    def __init__(self) -> None:
        #: by the name that is safe, and by the name that programs see
        self._safe_names: dict[str, _File] = {}
        self._names: dict[str, _File] = {}
        self._syncs: dict[int, tuple[_File | None, int]] = {}

    def replay(self, step: Step) -> None:
        """What a step does to the disk."""
        if step.kind == "C":
            self._names[step.path] = _File()
        elif step.kind in "WT":
            self._names.setdefault(step.path, _File()).pending.append(step)
        elif step.kind == "U":
            self._names.pop(step.path, None)
        elif step.kind == "R":
            self._names[step.data.decode()] = self._names.pop(step.path)
        elif step.kind == "B":
            file = self._names.get(step.path)
            self._syncs[step.token] = (file, len(file.pending) if file is not None else 0)
        elif step.kind == "E":
            file, n = self._syncs.pop(step.token)
            if not step.path:  # the folder: names are safe
                self._safe_names = dict(self._names)
            elif file is not None:
                for pending in file.pending[:n]:
                    _apply(file.safe, pending)
                del file.pending[:n]

    def after_power_loss(self, folder: Path, chance: random.Random) -> None:
        """Write the files that may be found after the power came back."""
        survive = chance.choice([0.0, 0.5, 0.9, 1.0])
        names = dict(self._names) if chance.random() < survive else dict(self._safe_names)
        for name, file in names.items():
            if name.endswith("-shm"):
                continue  # lives in memory
            content = bytearray(file.safe)
            arrived = [step for step in file.pending if chance.random() < survive]
            if chance.random() < 0.5:
                chance.shuffle(arrived)
            for step in arrived:
                for part in _sectors(step) if chance.random() < 0.5 else [step]:
                    if part is step or chance.random() < 0.8:
                        _apply(content, part)
            (folder / name).write_bytes(content)


def _apply(content: bytearray, step: Step) -> None:
    if step.kind == "T":
        del content[step.at :]
        content.extend(bytes(step.at - len(content)))
        return
    content.extend(bytes(max(0, step.at - len(content))))
    content[step.at : step.at + len(step.data)] = step.data


def _sectors(step: Step) -> Iterator[Step]:
    if step.kind == "T":
        yield step
    at = step.at
    while at < step.at + len(step.data):
        end = min((at // SECTOR_BYTES + 1) * SECTOR_BYTES, step.at + len(step.data))
        yield Step("W", 0, step.path, at, step.data[at - step.at : end - step.at])
        at = end
