"""Pools whose engine is fetched, or run in a container: real llama.cpp behind it, from the settings to a decoded token.

The archive's program and the container's image are the package's server under another name; the container's runtime is
a stand-in that runs the program on this host and keeps what it was told.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from pathlib import Path

import pytest

from llama_orch.core.settings import PoolSettings, ProvisioningSettings
from llama_orch.plugins.manager import PluginManager
from llama_orch.pools.manager import PoolManager
from llama_orch.pools.outfitting import Outfitter

from ...engines.tiny_gguf import write_model
from ...unit.pools.conftest import TIMING, Heard, SystemClock, desired, pids

pytestmark = [pytest.mark.real_llama, pytest.mark.slow]
PROGRAM = f"""#!/bin/sh
case "$1" in
  --version) echo "version: 42 (feed)"; exit 0 ;;
esac
exec {sys.executable} -m llama_orch.pools.llamacpp_server "$@"
"""
DIGEST = "sha256:" + "ab" * 32
IMAGE = f"example.test/llama.cpp@{DIGEST}"
RUNTIME = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path
place = Path(__file__).parent
words = sys.argv[1:]
with open(place / "calls", "a") as calls:
    calls.write(json.dumps(words) + "\\n")
if words[:2] == ["image", "inspect"]:
    print(json.dumps([{{"Id": "x", "RepoDigests": [words[2]]}}]))
elif words[0] == "run":
    image = words.index("{IMAGE}")
    [mount] = [words[n + 1] for n in range(image) if words[n] == "--mount"]
    fields = dict(field.partition("=")[::2] for field in mount.split(","))
    told = [word.replace(fields["target"], fields["source"]) for word in words[image + 1 :]]
    known = ("--metrics", "--slots", "--no-webui", "--no-context-shift")
    told = ["127.0.0.1" if word == "0.0.0.0" else word for word in told if word not in known]
    os.execv(sys.executable, [sys.executable, "-m", "llama_orch.pools.llamacpp_server", *told])
elif words[0] == "ps":
    stray = place / "stray"
    print(stray.read_text() if stray.exists() else "")
elif words[0] != "rm":
    sys.exit(9)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "m.gguf")


async def ready(tmp_path, settings, *, installs=True):
    """Bring the pool up and down; what it told of itself, what was told besides, and who lived meanwhile."""
    plugins = PluginManager(entry_points=False)
    launchers, heard = plugins.launchers(), Heard()
    manager = PoolManager(
        sink=heard,
        data_dir=tmp_path / "data",
        engines=plugins.engines(),
        launchers=launchers,
        preparer=Outfitter(launchers, {}, data_dir=tmp_path / "data"),
        clock=SystemClock(),
        timing=TIMING,
    )
    await manager.apply(desired(settings))
    installed = await heard.next("", "EngineInstalled") if installs else {}
    told = await heard.next("p", "ready")
    living = pids(tmp_path / "data")
    await manager.stop(kill_engines=True)
    return told, installed, living


def test_a_pool_fetches_its_engine_runs_it_and_tells_what_it_runs(model, tmp_path):
    (tmp_path / "llama-server").write_text(PROGRAM)
    digest = hashlib.sha256(PROGRAM.encode()).hexdigest()
    wanted = ProvisioningSettings(mode="binary", url=str(tmp_path / "llama-server"), sha256=digest, threads=1)
    settings = PoolSettings(id="p", model=str(model), slots=2, provisioning=wanted)
    told, installed, living = asyncio.run(ready(tmp_path, settings))
    assert living
    assert not pids(tmp_path / "data")
    assert (installed["mode"], installed["version"], installed["digest"]) == ("binary", "b42-feed", f"sha256:{digest}")
    properties = told["properties"]
    assert properties.engine_version == f"llama-server sha256:{digest[:12]}", "it does not say its build itself"
    assert properties.slots == 2
    assert properties.flags.endswith(" build=cpu")
    assert told["decode_mtok_s"] > 0


def test_a_pool_runs_its_container_and_ends_it_by_name(model, tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "podman").write_text(RUNTIME)
    (folder / "podman").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    wanted = ProvisioningSettings(mode="container", image=IMAGE, threads=1)
    settings = PoolSettings(id="p", model=str(model), slots=2, provisioning=wanted)
    told, installed, _ = asyncio.run(ready(tmp_path, settings))
    assert told["properties"].slots == 2
    assert (installed["mode"], installed["digest"]) == ("container", DIGEST)
    calls = [json.loads(line) for line in Path(folder / "calls").read_text().splitlines()]
    [run] = [call for call in calls if call[0] == "run"]
    name = run[run.index("--name") + 1]
    assert name.endswith("-p-1")
    assert ["rm", "--force", name] == calls[-1]
    # What a killed run left behind, and nobody wrote down, is ended by the next one.
    (folder / "stray").write_text("llama-orch-stray-p-1")
    asyncio.run(ready(tmp_path, settings, installs=False))
    calls = [json.loads(line) for line in Path(folder / "calls").read_text().splitlines()]
    assert ["rm", "--force", "llama-orch-stray-p-1"] in calls
    assert not pids(tmp_path / "data")
