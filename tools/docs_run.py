"""Execute the commands that the documentation shows, and compare what they print.

A fenced block whose first line is ```` ```console run ```` is executed. Lines that begin with `$ ` are
commands (`> ` continues one), the lines below are what it prints, standard output and error together.
In those, a line `...` stands for any lines and `...` inside a line for any text. After `run` there may
stand `server` (the page needs a server that is up; one with the bundled model is started for the page)
and `exit=2` (the status that every command of the block ends with; otherwise 0).

All blocks of a page run in one shell, in an empty directory, with a home and a data directory of its
own. Pages show the default address; the server of a page listens on a free port, and the address is
exchanged in commands and output.

    python tools/docs_run.py [PAGE ...]
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: The address that the pages show.
DEFAULT_ADDRESS = "127.0.0.1:8080"
PAGE_TIMEOUT_S = 180
START_TIMEOUT_S = 60
_FENCE = re.compile(r"^```console run(?P<options>(?: [a-z]+(?:=\d+)?)*)\s*$")


@dataclass(slots=True)
class Step:
    """One command of a page and what the page says that it prints."""

    page: str
    line: int
    command: str
    status: int
    expected: list[str] = field(default_factory=list)


class PageError(ValueError):
    """A page marks a block in a way that cannot be run; the message says where and why."""


def parse(page: str, text: str) -> tuple[list[Step], bool]:
    """Return the steps of a page, and whether it needs a server. Raises PageError on a malformed block."""
    steps: list[Step] = []
    server = inside = False
    status = first = 0
    for number, line in enumerate(text.splitlines(), 1):
        if not inside:
            opening = _FENCE.match(line)
            if opening:
                inside, status = True, 0
                for option in opening["options"].split():
                    if option == "server":
                        server = True
                    elif option.startswith("exit="):
                        status = int(option.removeprefix("exit="))
                    else:
                        raise PageError(f"{page}:{number}: unknown option {option!r}; known are server, exit=<status>")
                first = len(steps)
        elif line.startswith("```"):
            inside = False
        elif line.startswith("$ "):
            steps.append(Step(page, number, line[2:], status))
        elif len(steps) == first:
            raise PageError(f"{page}:{number}: a block that is run begins with a command: `$ ...`")
        elif line.startswith("> ") and not steps[-1].expected:
            steps[-1].command += "\n" + line[2:]
        else:
            steps[-1].expected.append(line)
    if inside:
        raise PageError(f"{page}: the last block is not closed")
    return steps, server


def matches(expected: list[str], printed: str) -> bool:
    """Whether `printed` is what the page shows; spaces at line ends do not count."""
    pattern = "".join(
        r"(?:[^\n]*\n)*?" if line.strip() == "..." else ".*?".join(map(re.escape, line.rstrip().split("..."))) + r"\n"
        for line in expected
    )
    lines = "".join(line.rstrip() + "\n" for line in printed.rstrip("\n").split("\n")) if printed.strip() else ""
    return re.fullmatch(pattern, lines) is not None


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def _environment(home: Path, address: str) -> dict[str, str]:
    keep = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TMPDIR") if name in os.environ}
    return keep | {
        "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ.get('PATH', '/usr/bin:/bin')}",
        "HOME": str(home),
        "COLUMNS": "100",
        "LLORCH_BIND": address,
        "LLORCH_DATA_DIR": str(home / "data"),
    }


@contextlib.contextmanager
def _server(home: Path, environment: dict[str, str], address: str) -> Iterator[None]:
    """A server for one page, ready when the block begins, stopped with all that it started."""
    log = home / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["llama-orch", "serve"],
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_ready(process, address, log)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        connection = http.client.HTTPConnection(address, timeout=2)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    raise PageError(
        f"the server for the page did not become ready; it said:\n{log.read_text(errors='replace')[-3000:]}"
    )


def run_page(page: str, steps: list[Step], *, server: bool) -> list[str]:
    """Run the steps of one page; return what differs, one message each."""
    with tempfile.TemporaryDirectory(prefix="llama-orch-docs-") as folder, contextlib.ExitStack() as stack:
        home, address, mark = Path(folder), _free_address(), f"--{secrets.token_hex(8)}--"
        environment = _environment(home, address)
        if server:
            stack.enter_context(_server(home, environment, address))
        work = home / "work"
        work.mkdir()
        script = "".join(f"{step.command}\nprintf '\\n{mark} %s\\n' \"$?\"\n" for step in steps)
        shell = subprocess.Popen(
            ["bash", "-c", script.replace(DEFAULT_ADDRESS, address)],
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            output, _ = shell.communicate(timeout=PAGE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)
            output, _ = shell.communicate()
            return [
                f"{page}: not done after {PAGE_TIMEOUT_S} s; it printed:\n{output.decode(errors='replace')[-2000:]}"
            ]
        return _compare(steps, output.decode(errors="replace").replace(address, DEFAULT_ADDRESS), mark)


def _compare(steps: list[Step], output: str, mark: str) -> list[str]:
    parts = re.split(rf"\n{mark} (\d+)\n", output)
    printed, statuses = parts[0::2], [int(status) for status in parts[1::2]]
    faults: list[str] = []
    for index, step in enumerate(steps):
        where = f"{step.page}:{step.line}: $ {step.command}"
        if index >= len(statuses):
            faults.append(f"{where}\n  the shell ended before or in it, after printing:\n{printed[-1]}")
            break
        if statuses[index] != step.status:
            faults.append(
                f"{where}\n  exit status {statuses[index]} instead of {step.status}; it printed:\n{printed[index]}"
            )
        elif not matches(step.expected, printed[index]):
            shown = "\n".join(step.expected)
            faults.append(f"{where}\n  the page shows:\n{shown}\n  it printed:\n{printed[index]}")
    return faults


def main(argv: list[str] | None = None) -> int:
    """Run the pages; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, help="default: README.md and all below docs/")
    pages: list[Path] = parser.parse_args(argv).pages or [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    faults: list[str] = []
    commands = executed = 0
    for path in pages:
        page = os.path.relpath(path, ROOT)
        try:
            steps, server = parse(page, path.read_text("utf-8"))
            if steps:
                faults += run_page(page, steps, server=server)
                commands, executed = commands + len(steps), executed + 1
        except PageError as error:
            faults.append(f"{page}: {error}")
    print("\n\n".join(faults) if faults else f"{commands} commands on {executed} pages print what the pages show")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
