"""A plugin for tests: the mock behind llama.cpp's wire as an engine of its own, `wire`, whose process is started for its pools.

:func:`install` puts it into a folder, as an installer would; with that folder on ``PYTHONPATH`` every program finds it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_orch.plugins import EngineFactory, LauncherFactory, LaunchPlan, hookimpl
from llama_orch.plugins.engines.llamacpp import LlamaCpp

NAME = "wire"


def plan(config: Mapping[str, Any]) -> LaunchPlan:
    """How the mock is started."""
    port, slots = int(config["port"]), int(config["slots"] or 4)
    argv = [sys.executable, "-m", "llama_orch.plugins.engines._mock_server", "--port", str(port), "--slots", str(slots)]
    return LaunchPlan(argv=tuple(argv), url=f"http://127.0.0.1:{port}")


@hookimpl
def llama_orch_engine() -> tuple[str, EngineFactory]:
    """llama.cpp's own client speaks to it."""
    return NAME, LlamaCpp


@hookimpl
def llama_orch_launcher() -> tuple[str, LauncherFactory]:
    """It is a process."""
    return NAME, plan


def install(folder: Path) -> dict[str, str]:
    """Install this module into a folder; the environment in which it is found."""
    module = "llama_orch_wire"
    folder.mkdir(exist_ok=True)
    shutil.copy(__file__, folder / f"{module}.py")
    info = folder / f"{module}-1.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[llama_orch]\n{NAME} = {module}\n")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))}
