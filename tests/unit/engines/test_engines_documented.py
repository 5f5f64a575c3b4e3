"""The page of engines names every option, knob, fault, failure and cause that the code knows."""

import re
from pathlib import Path

import pytest

from llama_orch.plugins.engines import tgi, triton
from llama_orch.plugins.engines._llama_launch import LOG_CAUSES, MEMORY_OPTION, OPTIONS, SWITCHES
from llama_orch.plugins.engines._mock_script import FAULTS, Knobs
from llama_orch.plugins.engines._openai_config import OPTIONS as OPENAI_OPTIONS
from llama_orch.plugins.engines.vllm import VLLM_OPTIONS
from llama_orch.pools import causes
from llama_orch.pools.models import errors as models
from llama_orch.pools.provisioning import problems

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "reference" / "engines.md").read_text()


def section(title):
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def first_cells(text):
    """Names in the first column of a section's tables."""
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| ")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_options_of_llamacpp():
    assert first_cells(section("llamacpp")) == {
        *(*OPTIONS, *SWITCHES, "pooling", MEMORY_OPTION, "api_key_env", "provisioning.options")
    }


def test_options_of_servers_of_openais_api():
    for title, options in (("openai", OPENAI_OPTIONS), ("vllm", VLLM_OPTIONS)):
        rows = dict(re.findall(r"^\| `([a-z_]+)` \| (.+) \|$", section(title), re.MULTILINE))
        assert rows == options


@pytest.mark.parametrize("engine, options", [("triton", triton.OPTIONS), ("tgi", tgi.OPTIONS)])
def test_options_of_engines_that_run_elsewhere(engine, options):
    rows = [line.split("|")[1:3] for line in section(engine).splitlines() if line.startswith("| `")]
    told = {name.strip().strip("`"): what.strip() for name, what in rows}
    assert {name: what for name, what in told.items() if name != "provisioning.options"} == options


def test_knobs_and_faults_of_the_mock():
    assert first_cells(section("mock")) == {*Knobs.__struct_fields__, *FAULTS}


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_a_fault_is_told_as_the_code_tells_it(name):
    row = next(line for line in section("mock").splitlines() if line.startswith(f"| `{name}` |"))
    assert row.split("|")[2].strip().replace("`", "") == FAULTS[name]


def test_failures_are_the_kinds_that_the_code_makes():
    sources = "".join(path.read_text() for path in (ROOT / "plugins" / "engines").glob("*.py"))
    made = set(re.findall(r'(?:AttemptFailure\(\s*kind=|HttpError\()"([a-z-]+)"', sources)) - {"timeout"}
    assert first_cells(section("What a failure means")) == made


def test_causes_are_those_that_the_code_knows():
    sources = "".join(path.read_text() for path in (ROOT / "pools").glob("*.py"))
    made = set(re.findall(r'Trouble\(\s*"([a-z-]+)"', sources)) - {"given-up"}
    told = {cause for _, cause, _ in LOG_CAUSES}
    known = made | told | set(causes.CAUSES) | {*problems.CAUSES, *models.CAUSES} - {"cancelled"}
    assert first_cells(section("How an engine's process is looked after")) == known | {"pool.unready"}
