"""Whatever stands on the command line, the answer is a sentence and a documented status."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_orch.cli.exits import MEANINGS
from llama_orch.cli.main import main
from llama_orch.cli.parser import build_parser, leaves
from llama_orch.cli.shell import Shell

#: these start something, write a file, or go on until they are interrupted
LEFT_OUT = {"serve", "run", "chat", "doctor", "init", "--follow", "-f", "--until-eof"}


def vocabulary() -> list[str]:
    """Every word and option that the parser knows."""
    words: set[str] = set()
    for path, leaf in leaves(build_parser()):
        words.update(path)
        for action in leaf._actions:
            words.update(action.option_strings)
            words.update(str(choice) for choice in action.choices or ())
    return sorted(words - LEFT_OUT)


ODD = [
    "",
    "-",
    "--",
    "-1",
    "0",
    "1e9",
    "x",
    "ü",
    "\x00",
    "\ud800",
    "a=b",
    "pools=[",
    "bind=1",
    "http://127.0.0.1:1",
    "/no/such",
]
arguments = st.lists(st.sampled_from(vocabulary()) | st.sampled_from(ODD) | st.text(max_size=8), max_size=6)


@pytest.fixture
def environ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return {"LLORCH_DATA_DIR": str(tmp_path / "data")}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=arguments.filter(lambda words: not LEFT_OUT & set(words)), as_json=st.booleans(), typed=st.text(max_size=20)
)
def test_any_command_line_is_answered_in_words(environ, capsys, words, as_json, typed):
    shell = Shell(stdin=io.StringIO(typed), stdout=io.StringIO(), stderr=io.StringIO(), environ=environ)
    status = main([*words, "--json"] if as_json else words, shell)
    assert isinstance(shell.stderr, io.StringIO)
    said = shell.stderr.getvalue()
    assert status in MEANINGS
    assert "this is a defect" not in said
    if shell.as_json and status and said and not said.startswith("usage:"):
        assert json.loads(said)["error"]["exit_status"] == status
