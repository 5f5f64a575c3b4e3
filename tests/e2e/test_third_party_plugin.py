"""A plugin that somebody else wrote: built, installed into a clean environment, found, used, and held to the contract."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "third-party-plugin"

pytestmark = pytest.mark.slow

USE = """
import asyncio, sys
from llama_orch.plugins import GenerateJob, PlacementSnapshot, PoolView, TaskView
from llama_orch.plugins.manager import PluginManager
from llama_orch.plugins.testing.engines import Recorder
import llama_orch

plugins = PluginManager()
engine_factory = plugins.engines()["parrot"]
policy = plugins.placement_policies()["first-fit"]

async def main():
    engine, sink = engine_factory({"model": "echo"}), Recorder()
    engine.generate(GenerateJob(task_id="t", attempt=1, prompt="polly wants a cracker", max_tokens=4), sink)
    await sink.end()
    await engine.close()
    return sink.text

pools = tuple(
    PoolView(pool_id=name, engine="parrot", model_ref="m", ready=True, draining=False, slots=1, leases=0, ctx=9)
    for name in ("b", "a")
)
decision = policy.decide(PlacementSnapshot(now_ns=0, pools=pools), TaskView(task_id="t", model_ref="m"))
print(llama_orch.__file__)
print(decision.selected_pool_id, asyncio.run(main()))
"""


def run(*argv, cwd):
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([str(a) for a in argv], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """An environment with the wheels of llama-orch and of the plugin; their dependencies are borrowed from this one."""
    folder = tmp_path_factory.mktemp("plugin")
    for source in (ROOT, EXAMPLE):
        run(
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            folder / "wheels",
            source,
            cwd=folder,
        )
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    wheels = sorted((folder / "wheels").glob("*.whl"))
    assert [wheel.name.partition("-")[0] for wheel in wheels] == ["llama_orch", "llama_orch_parrot"]
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", *wheels, cwd=folder)
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # A path that is added by a .pth file is no site directory: an editable install in it does not come along.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder, python, packages


def test_an_installed_plugin_is_found_and_used(clean):
    folder, python, packages = clean
    origin, said = run(python, "-c", USE, cwd=folder).splitlines()
    assert Path(origin).is_relative_to(packages), "llama-orch itself comes from its wheel"
    assert said == "a polly wants a cracker"


def test_the_plugins_own_tests_pass_against_the_shipped_contract(clean):
    folder, python, _ = clean
    tests = shutil.copytree(EXAMPLE / "tests", folder / "its-tests", dirs_exist_ok=True)
    said = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests, cwd=folder)
    assert " passed" in said
    assert "skipped" not in said


def test_without_the_plugin_there_is_no_parrot():
    from llama_orch.plugins.manager import PluginManager

    assert "parrot" not in PluginManager().engines()
