"""Render docs/images/terminal.svg from what the commands really print at a terminal.

Starts a server with the bundled model in a temporary directory, runs the commands of the picture at a terminal of
their own, and draws what they showed. Not checked: times and identifiers differ with each run.

    python tools/terminal_picture.py
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "terminal.svg"
COLUMNS = 104
COMMANDS = (
    'llama-orch run "Write a haiku about rain"',
    'task=$(llama-orch submit -q --priority batch "Write a haiku about snow")',
    "llama-orch stream $task",
    "llama-orch explain $task",
    "llama-orch pools",
    "llama-orch journal tail -n 4",
    "llama-orch journal verify | head -n 2",
)
#: a progress line and what takes it away again
_STATUS = re.compile(r"\r\x1b\[2K[^\r\n]*(?=\r\x1b\[2K)")


def shown(command: str, environment: dict[str, str]) -> str:
    """What a command shows at a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    process = subprocess.Popen(["bash", "-c", command], stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    raw = b""
    while True:
        try:
            piece = os.read(ours, 65_536)
        except OSError:
            break
        if not piece:
            break
        raw += piece
    os.close(ours)
    if process.wait() != 0:
        raise RuntimeError(f"{command}: status {process.returncode}: {raw.decode(errors='replace')}")
    text = raw.decode().replace("\r\n", "\n")
    return _STATUS.sub("", text).replace("\r\x1b[2K", "")


def main() -> int:
    """Draw the picture; return the exit status."""
    with tempfile.TemporaryDirectory(prefix="llama-orch-picture-") as home:
        environment = {
            "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}",
            "HOME": home,
            "LLORCH_DATA_DIR": f"{home}/data",
            "LLORCH_BIND": "127.0.0.1:0",
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
        }
        with (Path(home) / "log").open("wb") as log:
            server = subprocess.Popen(["llama-orch", "serve"], env=environment, stdout=log, stderr=log)
        try:
            while (
                subprocess.run(
                    ["llama-orch", "status", "-q"], env=environment, capture_output=True, check=False
                ).returncode
                != 0
            ):
                time.sleep(0.2)
            console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
            task = ""
            for command in COMMANDS:
                console.print(Text("$ ", style="bold green") + Text(command, style="bold"))
                if command.startswith("task="):
                    task = shown(command.removeprefix("task=$(").removesuffix(")"), environment).strip()
                else:
                    console.print(Text.from_ansi(shown(command.replace("$task", task), environment).rstrip("\n")))
        finally:
            server.terminate()
            server.wait()
    svg = console.export_svg(title="llama-orch")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # the picture fetches nothing
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE) + "\n", "utf-8")
    print(f"wrote {PICTURE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
