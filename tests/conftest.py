"""For all tests: how hypothesis searches, and that no proof is skipped."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

TOOLS = Path(__file__).resolve().parent.parent / "tools"

# No test asserts how long something takes, on a machine that may be busy: no deadline.
settings.register_profile("default", deadline=None)
settings.register_profile("thorough", deadline=None, max_examples=2_000)
# Continuous integration: the same examples in every run, so that only a change of the code changes the result.
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))


def pytest_configure(config: pytest.Config) -> None:
    if str(TOOLS) not in sys.path:
        sys.path.append(str(TOOLS))
    from requirements_table import load
    from skipped_proofs import SkippedProofs

    proofs = [proof for area in load() for row in area.requirements for proof in row.proofs]
    config.pluginmanager.register(SkippedProofs(proofs), "skipped-proofs")
