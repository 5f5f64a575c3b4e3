"""Read `docs/requirements.toml`: every requirement, its state and the tests that prove it."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "requirements.toml"
STATES: tuple[str, ...] = ("proven", "partial", "planned")
_ID = re.compile(r"^[A-Z]{2,5}-[1-9][0-9]*$")
_KEYS = {"id", "text", "state", "proofs", "mutation", "missing"}


@dataclass(frozen=True, slots=True)
class Requirement:
    """One row of the table."""

    #: Stable id, such as `JRN-1`.
    id: str
    #: What the product does, in one paragraph.
    text: str
    #: `proven`, `partial` (then `missing` says what is not there yet) or `planned`.
    state: str
    #: pytest node ids of the tests that prove it.
    proofs: tuple[str, ...]
    #: The change of the code that would make a proof fail.
    mutation: str
    #: What a partial requirement still lacks.
    missing: str


@dataclass(frozen=True, slots=True)
class Area:
    """A heading of the table and the requirements under it."""

    #: The ids' prefix, such as `JRN`.
    prefix: str
    title: str
    requirements: tuple[Requirement, ...]


class TableError(ValueError):
    """`docs/requirements.toml` breaks its own rules; the message says which row and how."""


def load(path: Path = TABLE) -> tuple[Area, ...]:
    """Read and check the table. Raises TableError with all that is wrong, one line each."""
    with path.open("rb") as file:
        raw = tomllib.load(file)
    faults: list[str] = []
    seen: set[str] = set()
    areas: list[Area] = []
    for entry in raw.get("area", []):
        prefix, title = str(entry.get("prefix", "")), str(entry.get("title", ""))
        if not prefix or not title:
            faults.append(f"an [[area]] needs prefix and title, got {entry.get('prefix')!r}, {entry.get('title')!r}")
        rows: list[Requirement] = []
        for row in entry.get("requirement", []):
            requirement = _requirement(row, prefix, faults)
            if requirement.id in seen:
                faults.append(f"{requirement.id} stands twice")
            seen.add(requirement.id)
            rows.append(requirement)
        areas.append(Area(prefix, title, tuple(rows)))
    if faults:
        raise TableError("\n".join(faults))
    return tuple(areas)


def _requirement(row: dict[str, object], prefix: str, faults: list[str]) -> Requirement:
    name = str(row.get("id", ""))
    if not _ID.match(name) or not name.startswith(f"{prefix}-"):
        faults.append(f"id {name!r} is not {prefix}-<number>")
    faults.extend(f"{name}: unknown key {key!r}; known are {sorted(_KEYS)}" for key in row.keys() - _KEYS)
    proofs = row.get("proofs", [])
    if not isinstance(proofs, list):
        faults.append(f"{name}: proofs must be a list of pytest node ids, got {proofs!r}")
        proofs = []
    requirement = Requirement(
        id=name,
        text=" ".join(str(row.get("text", "")).split()),
        state=str(row.get("state", "")),
        proofs=tuple(str(proof) for proof in proofs),
        mutation=" ".join(str(row.get("mutation", "")).split()),
        missing=" ".join(str(row.get("missing", "")).split()),
    )
    if not requirement.text:
        faults.append(f"{name}: text is empty")
    if requirement.state not in STATES:
        faults.append(f"{name}: state {requirement.state!r} is none of {', '.join(STATES)}")
    if requirement.state == "planned" and requirement.proofs:
        faults.append(f"{name}: a planned requirement has no proofs yet; make it partial or proven")
    if requirement.state in {"proven", "partial"} and not (requirement.proofs and requirement.mutation):
        faults.append(f"{name}: {requirement.state} needs proofs and the mutation that would break them")
    if (requirement.state == "partial") != bool(requirement.missing):
        faults.append(f"{name}: `missing` says what a partial requirement lacks, and stands on no other")
    if len(set(requirement.proofs)) != len(requirement.proofs):
        faults.append(f"{name}: a proof is named twice")
    return requirement
