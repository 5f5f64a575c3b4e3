"""The page about GPUs names every cause that a sample may have, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from llama_orch.core.devices import CAUSES

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "gpus.md"


def test_the_page_names_every_cause() -> None:
    table = PAGE.read_text("utf-8").split("| cause |")[1].split("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`([a-z-]+)`", row.split("|")[1])}
    assert named == set(CAUSES)
