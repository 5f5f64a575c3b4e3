"""`explain`: why a task or a model is where it is, or is not."""

from __future__ import annotations

import argparse
import re
from typing import Any
from urllib.parse import quote

from .. import exits
from ..command import command
from ..connect import client_of
from ..shell import Shell

_TASK_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="TASK|MODEL", help="a task's id, or the name of a model")


@command("explain", "say why a task or a model is where it is", arguments=_arguments, needs="server")
def explain(options: argparse.Namespace, shell: Shell) -> int:
    """For a task: which pools were considered, which were excluded and why, the predicted ends, and what decided; or what
    it waits for. For a model: where its pools are, what they need, what else is on those devices, and who waits.

    Example: llama-orch explain haiku
    """
    client = client_of(options, shell)
    if _TASK_ID.fullmatch(options.what):
        said = client.get(f"/v1/tasks/{options.what}/decision")
        words = task_words(said)
    else:
        said = client.get(f"/v1/placement/{quote(options.what, safe='')}")
        words = said["words"]
    if shell.as_json:
        shell.json(said)
    else:
        for sentence in words:
            shell.line(sentence)
    return exits.OK


def task_words(said: dict[str, Any]) -> list[str]:
    """A task's decisions in sentences."""
    out = []
    for decision in said["decisions"]:
        out.append(
            f"Attempt {decision['attempt']} went to pool {decision['selected_pool_id']}: {decision['decision_reason']}."
        )
        considered = decision["candidates_considered"]
        out.append(f"Considered: {', '.join(considered) or 'none'}.")
        for one in decision["filters_applied"]:
            reasons = "; ".join(f"{pool} ({why})" for pool, why in sorted(one["excluded"].items()))
            out.append(f"Excluded by {one['name']}: {reasons}.")
        if decision["scores_ms"]:
            ends = ", ".join(f"{pool} in {ms} ms" for pool, ms in sorted(decision["scores_ms"].items()))
            out.append(f"Predicted ends: {ends}.")
        if decision["tie_breakers_applied"]:
            out.append(f"Ties were broken by {', '.join(decision['tie_breakers_applied'])}.")
        if decision["pinned"]:
            out.append("The caller pinned the pool.")
        if decision["fallback_used"]:
            out.append("None of the preferred pools was free, so another was taken.")
        out.append(f"Decided by the policy {decision['policy']} {decision['policy_version']}.")
    for pool, why in sorted(said["waiting_for"].items()):
        out.append(f"Waits for pool {pool}: {why}.")
    if said.get("waits"):
        out.append(f"Its model waits because {said['waits']}.")
    return out or [f"The task is {said['state']} and was never placed."]
