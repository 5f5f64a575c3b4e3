"""`doctor`: is everything there, and does it work?"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from .. import exits
from ..command import command
from ..connect import loaded_from
from ..shell import Shell

if TYPE_CHECKING:
    from ..checks import Finding

_MARKS = {"ok": "ok     ", "warning": "warning", "failed": "FAILED "}


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-self-test", action="store_true", help="look only, start nothing")


@command(
    "doctor", "check this machine, the configuration, and the whole way of a task", arguments=_arguments, needs="config"
)
def doctor(options: argparse.Namespace, shell: Shell) -> int:
    """Looks at Python, data directory, address, engine, GPUs and configuration; then runs the bundled model on a server of
    its own in a temporary directory: preload, decode, cancel, metrics, log. Exit status 1 when a check failed.
    """
    findings = []
    for finding in _findings(options, shell):
        shell.clear_status()
        findings.append(finding)
        if not shell.as_json:
            shell.line(f"{_MARKS[finding.verdict]}  {finding.name}: {finding.detail}")
            if finding.remedy and finding.verdict != "ok":
                shell.line(f"         {finding.remedy}")
            shell.stdout.flush()
        shell.status("looking …")
    shell.clear_status()
    failed = [finding for finding in findings if finding.verdict == "failed"]
    if shell.as_json:
        shell.json({"healthy": not failed, "findings": [asdict(finding) for finding in findings]})
    elif failed:
        shell.line(f"{len(failed)} of {len(findings)} checks failed.")
    else:
        shell.line(f"All {len(findings)} checks passed.")
    return exits.FAILED if failed else exits.OK


def _findings(options: argparse.Namespace, shell: Shell) -> Iterator[Finding]:
    from ...core.errors import ConfigError
    from .. import checks
    from ..detect import detect

    machine = detect()
    yield checks.python_version()
    loaded, wrong = None, None
    try:
        loaded = loaded_from(options, shell)
    except ConfigError as error:
        wrong = checks.Finding("configuration", "failed", error.message, error.what_to_do)
    yield checks.engine(machine, loaded=loaded)
    yield checks.gpus(machine)
    yield checks.bundled_model()
    if wrong is not None:
        yield wrong
    if loaded is not None:
        yield from checks.configuration(loaded)
        yield checks.data_directory(loaded.data_dir)
        yield checks.port(loaded)
    if not options.no_self_test:
        yield from checks.self_test(shell.environ, shell)
