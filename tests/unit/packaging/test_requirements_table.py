"""docs/requirements.toml is complete and keeps its own rules."""

from __future__ import annotations

from pathlib import Path

import pytest

#: How many requirements each area has; they are numbered from 1 without gaps.
EXPECTED = {
    "JRN": 9, "ADM": 8, "STR": 6, "CAN": 2, "PLC": 6, "SES": 2, "BUD": 2, "DET": 5, "RCV": 3, "CAT": 1, "MOD": 3, "POOL": 3,
    "ENG": 3, "ART": 2, "CAP": 1, "CFG": 2, "AUTH": 2, "OBS": 3, "POL": 2, "API": 2, "CLI": 1, "UI": 1, "PKG": 1, "SCL": 1,
    "TST": 2, "QLT": 1, "PERF": 6,
}  # fmt: skip

ROW = """
[[area]]
prefix = "JRN"
title = "the journal"
[[area.requirement]]
id = "JRN-1"
text = "It holds."
"""


def test_every_requirement_stands_once_in_order(load_tool):
    areas = load_tool("requirements_table").load()
    assert {area.prefix: len(area.requirements) for area in areas} == EXPECTED
    for area in areas:
        assert [row.id for row in area.requirements] == [
            f"{area.prefix}-{n}" for n in range(1, EXPECTED[area.prefix] + 1)
        ]


@pytest.mark.parametrize(
    "rest,fault",
    [
        ('state = "planned"', None),
        ('state = "proven"\nproofs = ["tests/a.py::b"]\nmutation = "drop it"', None),
        ('state = "partial"\nproofs = ["tests/a.py::b"]\nmutation = "drop it"\nmissing = "half"', None),
        ('state = "done"', "state 'done' is none of proven, partial, planned"),
        ('state = "proven"', "needs proofs and the mutation"),
        ('state = "proven"\nproofs = ["tests/a.py::b"]', "needs proofs and the mutation"),
        ('state = "planned"\nproofs = ["tests/a.py::b"]', "has no proofs yet"),
        ('state = "partial"\nproofs = ["tests/a.py::b"]\nmutation = "drop it"', "`missing` says"),
        ('state = "planned"\nmissing = "all"', "`missing` says"),
        ('state = "proven"\nproofs = ["a", "a"]\nmutation = "drop it"', "named twice"),
        ('state = "planned"\nstatus = "x"', "unknown key 'status'"),
        ('state = "planned"\n[[area.requirement]]\nid = "JRN-1"\ntext = "Again."\nstate = "planned"', "stands twice"),
        (
            'state = "planned"\n[[area.requirement]]\nid = "ADM-1"\ntext = "Else."\nstate = "planned"',
            "is not JRN-<number>",
        ),
    ],
)
def test_a_row_that_breaks_the_rules_is_named(load_tool, tmp_path: Path, rest: str, fault: str | None):
    table = load_tool("requirements_table")
    path = tmp_path / "requirements.toml"
    path.write_text(ROW + rest + "\n", "utf-8")
    if fault is None:
        (area,) = table.load(path)
        assert area.requirements[0].id == "JRN-1"
    else:
        with pytest.raises(table.TableError, match=r"JRN-1|ADM-1") as raised:
            table.load(path)
        assert fault in str(raised.value)


def test_a_proof_that_no_test_bears_fails_the_check(load_tool, capsys):
    proofs = load_tool("proofs")
    table = load_tool("requirements_table")
    here = "tests/unit/packaging/test_requirements_table.py::test_every_requirement_stands_once_in_order"
    rows = tuple(
        table.Requirement(f"JRN-{n}", "text", "proven", (proof,), "mutation", "")
        for n, proof in enumerate((here, here + "_not"), 1)
    )

    assert proofs.main(lambda: (table.Area("JRN", "the journal", rows[:1]),)) == 0
    assert proofs.main(lambda: (table.Area("JRN", "the journal", rows),)) == 1
    assert f"JRN-2: no test is called {here}_not" in capsys.readouterr().out
