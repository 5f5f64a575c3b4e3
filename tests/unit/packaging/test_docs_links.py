"""Pages of the documentation are reached from their folder's index, and no link leads nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[Path]:
    """What the page links to inside the repository."""
    targets = _LINK.findall(_FENCE.sub("", page.read_text("utf-8")))
    return [(page.parent / target).resolve() for target in targets if "://" not in target and target[:7] != "mailto:"]


def test_no_link_of_a_page_leads_nowhere(tracked: list[str], root: Path):
    pages = [root / name for name in tracked if name.endswith(".md")]
    dead = [f"{page.relative_to(root)} -> {target}" for page in pages for target in links(page) if not target.exists()]
    assert dead == []


@pytest.mark.parametrize("part", ["tutorial", "how-to", "reference", "explanation", "runbooks"])
def test_every_page_is_linked_from_the_index_of_its_part(tracked: list[str], root: Path, part: str):
    folder = root / "docs" / part
    pages = {root / name for name in tracked if Path(name).parent == Path("docs", part) and name.endswith(".md")}
    assert folder / "index.md" in pages
    assert folder / "index.md" in links(root / "docs" / "index.md")
    assert sorted(pages - {folder / "index.md"} - set(links(folder / "index.md"))) == []
