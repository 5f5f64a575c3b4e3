"""The pact library tells its makers of its use, unless it is told not to before it is loaded."""

from __future__ import annotations

import os

os.environ["PACT_DO_NOT_TRACK"] = "true"
