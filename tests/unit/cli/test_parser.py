"""The parser and what is made of it: completion scripts, the reference page."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llama_orch.cli.completion import script
from llama_orch.cli.exits import MEANINGS
from llama_orch.cli.parser import build_parser, leaves

#: what `--help` may import of the heavy things: nothing
HEAVY = (
    "msgspec",
    "yaml",
    "rich",
    "http.client",
    "sqlalchemy",
    "falcon",
    "uvicorn",
    "asyncio",
    "llama_orch.core",
    "llama_orch.plugins",
)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from llama_orch.cli.main import main; main(['--help']);"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("LOADED []\n")
    assert all(meaning.split()[0] in done.stdout for meaning in MEANINGS.values())


@pytest.fixture
def complete(tmp_path):
    """What bash offers for the last word."""
    path = tmp_path / "completion.bash"
    path.write_text(script("bash", build_parser()))

    def complete(*words: str) -> list[str]:
        quoted = " ".join(f"'{word}'" for word in words)
        code = (
            f"source '{path}'; COMP_WORDS=(llama-orch {quoted}); COMP_CWORD={len(words)}; _llama_orch;"
            'printf "%s\\n" "${COMPREPLY[@]}"; complete -p llama-orch llama-orch-cli >/dev/null'
        )
        done = subprocess.run(["bash", "--norc", "-u", "-c", code], capture_output=True, text=True, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split()

    return complete


def test_bash_completes_commands_subcommands_options_and_values(complete):
    assert complete("ru") == ["run"]
    assert set(complete("config", "")) >= {"check", "schema"}
    assert complete("journal", "ver") == ["verify"]
    assert complete("tasks", "--st") == ["--state"]
    assert complete("tasks", "--state", "ru") == ["running"]
    assert complete("completion", "z") == ["zsh"]
    assert complete("--vers") == ["--version"]


def test_bash_completes_files_where_a_file_is_wanted(complete, tmp_path):
    (tmp_path / "my-config.yaml").write_text("")
    assert complete("config", "check", "my-c") == ["my-config.yaml"]
    assert complete("serve", "--config", "my-c") == ["my-config.yaml"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_script_names_every_command_and_option(shell):
    text = script(shell, build_parser())
    for words, leaf in leaves(build_parser()):
        assert all(word in text for word in words)
        for action in leaf._actions:
            for option in action.option_strings:
                assert option.lstrip("-") in text


def test_the_bash_script_is_valid():
    subprocess.run(["bash", "-n"], input=script("bash", build_parser()), text=True, check=True)
