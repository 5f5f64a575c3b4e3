"""The scripts behind `make check` find what they are there to find."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


class TestGenerate:
    def write(self, folder: Path, name: str, body: str) -> None:
        (folder / f"{name}.py").write_text(body, "utf-8")

    def test_a_file_in_the_folder_is_a_generator(self, load_tool, tmp_path: Path):
        self.write(tmp_path, "one", "def outputs():\n    return {'a.md': b'A'}\n")
        self.write(tmp_path, "two", "def outputs():\n    return {'b.md': b'B'}\n")
        self.write(tmp_path, "_shared", "raise RuntimeError('a name with an underscore is no generator')\n")
        assert load_tool("generate").all_outputs(tmp_path) == {"a.md": b"A", "b.md": b"B"}

    def test_two_generators_may_not_write_one_file(self, load_tool, tmp_path: Path):
        for name in ("one", "two"):
            self.write(tmp_path, name, "def outputs():\n    return {'a.md': b'A'}\n")
        with pytest.raises(ValueError, match=r"a\.md is written by the generators 'one' and 'two'"):
            load_tool("generate").all_outputs(tmp_path)

    def test_a_module_without_outputs_is_named(self, load_tool, tmp_path: Path):
        self.write(tmp_path, "empty", "")
        with pytest.raises(TypeError, match=r"empty\.py has no function"):
            load_tool("generate").all_outputs(tmp_path)

    def test_missing_and_changed_files_are_stale(self, load_tool, tmp_path: Path):
        (tmp_path / "same.md").write_bytes(b"same")
        (tmp_path / "old.md").write_bytes(b"old")
        files = {"same.md": b"same", "old.md": b"new", "missing.md": b"x"}
        assert load_tool("generate").stale(files, tmp_path) == {"old.md": b"new", "missing.md": b"x"}


class TestScan:
    # Put together here, so that this file itself passes.
    @pytest.mark.parametrize(
        "name,line,what",
        [
            ("a.py", "key = '" + "sk-" + "a1B2" * 8 + "'", "an OpenAI-style key"),
            ("a.py", "-----BEGIN " + "RSA PRIVATE KEY-----", "a private key"),
            ("a.md", "see " + "/wor" + "k/main/README.md", "a path of one machine"),
            ("a.md", "the " + "session" + " transcript", "a remark about the writing"),
            (
                "requirements/runtime.txt",
                "--index-url " + "https:" + "//pypi.example/simple",
                "an index address in a pinned file",
            ),
            ("a.toml", "url = '" + "postgresql:" + "//me:secret@" + "db7.example/x'", "a password in a URL"),
        ],
    )
    def test_what_must_not_be_published_is_found(self, load_tool, tmp_path: Path, name: str, line: str, what: str):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"first line\n{line}\n", "utf-8")
        assert load_tool("scan").scan(tmp_path, [name]) == [f"{name}:2: {what}"]
        (tmp_path / name).write_text(f"{line}  # scan: allow, an example\n", "utf-8")
        assert load_tool("scan").scan(tmp_path, [name]) == []

    def test_secrets_are_found_in_binary_files(self, load_tool, tmp_path: Path):
        (tmp_path / "model.bin").write_bytes(b"\0\1\2 hf_" + b"aB3" * 12 + b" \0")
        assert load_tool("scan").scan(tmp_path, ["model.bin"]) == ["model.bin:1: a Hugging Face token"]


class TestDocsRun:
    def run(self, load_tool, text: str) -> list[str]:
        tool = load_tool("docs_run")
        steps, server = tool.parse("page.md", text)
        return tool.run_page("page.md", steps, server=server)

    @pytest.mark.parametrize(
        "expected,printed,same",
        [
            (["hello"], "hello\n", True),
            (["hello"], "hello  \n\n", True),
            (["hello"], "hello\nyou\n", False),
            (["took ... ms"], "took 12 ms\n", True),
            (["took ... ms"], "took 12\nms\n", False),
            (["a", "...", "z"], "a\nb\nc\nz\n", True),
            (["a", "...", "z"], "a\nz\n", True),
            (["a", "...", "z"], "a\nb\n", False),
            (["a.c"], "abc\n", False),
            ([], "", True),
            ([], "something\n", False),
            (["..."], "", True),
        ],
    )
    def test_three_dots_stand_for_what_may_differ(self, load_tool, expected: list[str], printed: str, same: bool):
        assert load_tool("docs_run").matches(expected, printed) is same

    def test_only_marked_blocks_are_run(self, load_tool):
        steps, server = load_tool("docs_run").parse(
            "page.md", "```console\n$ false\n```\n```console run server\n$ true\n```\n"
        )
        assert ([(step.line, step.command) for step in steps], server) == ([(5, "true")], True)

    def test_blocks_of_a_page_share_one_shell(self, load_tool):
        page = (
            "```console run\n$ A=1\n```\ntext\n```console run\n$ for i in x y; do\n>   echo $i$A; done\nx1\ny1\n```\n"
        )
        assert self.run(load_tool, page) == []

    def test_other_output_is_told_with_its_place(self, load_tool):
        (fault,) = self.run(load_tool, "```console run\n$ echo one\ntwo\n```\n")
        assert fault == "page.md:2: $ echo one\n  the page shows:\ntwo\n  it printed:\none\n"

    def test_the_exit_status_is_compared(self, load_tool):
        assert self.run(load_tool, "```console run exit=3\n$ (exit 3)\n```\n") == []
        (fault,) = self.run(load_tool, "```console run\n$ (exit 3)\n```\n")
        assert "exit status 3 instead of 0" in fault

    def test_a_shell_that_ends_early_is_told(self, load_tool):
        (fault,) = self.run(load_tool, "```console run\n$ echo bye; exit 0\nbye\n$ echo more\nmore\n```\n")
        assert "the shell ended before or in it" in fault

    @pytest.mark.parametrize(
        "page,fault",
        [
            ("```console run\noutput first\n```\n", "begins with a command"),
            ("```console run\n$ true\n", "not closed"),
            ("```console run sideways\n$ true\n```\n", "unknown option 'sideways'"),
        ],
    )
    def test_a_malformed_block_is_an_error(self, load_tool, page: str, fault: str):
        tool = load_tool("docs_run")
        with pytest.raises(tool.PageError, match=fault):
            tool.parse("page.md", page)


class TestSkippedProofs:
    PROGRAM = """
import sys
sys.path.insert(0, {tools!r})
import pytest
from skipped_proofs import SkippedProofs
sys.exit(pytest.main([{file!r}, "-q", "-p", "no:cacheprovider", *{more!r}], plugins=[SkippedProofs({proofs!r})]))
"""

    @pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["alone", "xdist"])
    @pytest.mark.parametrize(
        "proofs,status", [(["test_it.py::test_runs"], 0), (["test_it.py::test_skips"], 1), (["test_it.py"], 1)]
    )
    def test_a_skipped_proof_fails_the_run(
        self, root: Path, tmp_path: Path, workers: list[str], proofs: list[str], status: int
    ):
        file = tmp_path / "test_it.py"
        file.write_text(
            "import pytest\ndef test_runs(): pass\n@pytest.mark.skip\n@pytest.mark.parametrize('x', [1])\ndef test_skips(x): pass\n"
        )
        program = self.PROGRAM.format(
            tools=str(root / "tools"), file=str(file), more=[f"--rootdir={tmp_path}", *workers], proofs=proofs
        )
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == status, done.stdout + done.stderr
        assert ("FAILED test_it.py::test_skips[1]: a proof" in done.stdout) is bool(status)


class TestUnused:
    SOURCE = '''
import enum
from typing import Protocol

class Colour(enum.Enum):
    RED = 1

class Row:
    width_px: int = 0

class Port(Protocol):
    def send(self, target: str) -> None:
        """Only declared."""

class Resource:
    def on_get(self, request, response):
        return request, response

@event("row.added")
def registered():
    return Colour, Row, Port, Resource

def forgotten():
    left_over = 1
'''

    def test_what_nothing_uses_is_found_and_declarations_are_not(self, load_tool, tmp_path: Path):
        (tmp_path / "core").mkdir()
        (tmp_path / "core" / "rows.py").write_text(self.SOURCE, "utf-8")
        found, _ = load_tool("unused").unused(["core"], tmp_path)
        assert sorted(line.split(": ", 1)[1] for line in found) == [
            "unused function 'forgotten'",
            "unused method 'send'",
            "unused variable 'left_over'",
        ]
