"""COMPLIANCE.md from docs/requirements.toml."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from requirements_table import STATES, Area, Requirement, load

_HEAD = """\
<!-- Generated from docs/requirements.toml by `make generate`; edit that file. -->

# Compliance

Every requirement, its state, and the tests that prove it. *Proven*: the named tests hold all of it.
*Partial*: they hold what is built; what is missing is said. *Planned*: not built, or not proven. A proof
is a test that fails under the mutation named with it. `make check` fails when a named proof does not
exist, `make test` when one does not pass; a release has nothing planned.

"""


def outputs() -> dict[str, bytes]:
    """The page as bytes, under its path."""
    areas = load()
    lines = [*_totals(areas), ""]
    for area in areas:
        lines += [f"## {area.prefix}: {area.title}", ""]
        for requirement in area.requirements:
            lines += _section(requirement)
    return {"COMPLIANCE.md": (_HEAD + "\n".join(lines).rstrip("\n") + "\n").encode()}


def _totals(areas: tuple[Area, ...]) -> list[str]:
    lines = ["| area | " + " | ".join(STATES) + " |", "|---|" + "---:|" * len(STATES)]
    totals = dict.fromkeys(STATES, 0)
    for area in areas:
        counts = {state: sum(row.state == state for row in area.requirements) for state in STATES}
        lines.append(f"| {area.prefix}: {area.title} | " + " | ".join(str(counts[state]) for state in STATES) + " |")
        for state, count in counts.items():
            totals[state] += count
    lines.append("| **all** | " + " | ".join(f"**{totals[state]}**" for state in STATES) + " |")
    return lines


def _section(requirement: Requirement) -> list[str]:
    lines = [f"### {requirement.id}: {requirement.state}", "", requirement.text, ""]
    if requirement.missing:
        lines += [f"Missing: {requirement.missing}", ""]
    if requirement.proofs:
        lines += ["Proofs:", "", *(f"- `{proof}`" for proof in requirement.proofs), ""]
        lines += [f"Mutation: {requirement.mutation}", ""]
    return lines
