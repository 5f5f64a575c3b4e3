"""`estimates`: how good predicted starts are, and what they are made from."""

from __future__ import annotations

import argparse
from typing import Any

from .. import exits
from ..command import command
from ..connect import client_of
from ..shell import Shell


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--learnt", action="store_true", help="the rates and lengths that predictions are made from")


@command("estimates", "show how predicted starts came out", arguments=_arguments, needs="server")
def estimates(options: argparse.Namespace, shell: Shell) -> int:
    """Per model and load band: predicted starts, how many fell into the 80 % interval, how wide it was, and its pinball
    loss beside that of a moving average of past waits (less is better). With --learnt what was measured of pools and
    answers.
    """
    found = client_of(options, shell).get("/v1/estimates")
    if shell.as_json:
        shell.json(found)
    elif options.learnt:
        _show_learnt(found, shell)
    else:
        _show_scores(found, shell)
    return exits.OK


def _show_scores(found: dict[str, Any], shell: Shell) -> None:
    rows = [
        (
            group["group"] or "(all)",
            band["band"],
            band["n"],
            f"{band['coverage_permille'] / 10:.1f} %",
            _seconds(band["width_ms"]),
            _seconds(band["pinball_us"] / 1000),
            _seconds(band["average_pinball_us"] / 1000),
        )
        for group in found["groups"]
        for band in group["bands"]
    ]
    shell.table(
        ("GROUP", "LOAD", "STARTS", "COVERED", "WIDTH", "PINBALL", "MOVING AVERAGE"),
        rows,
        empty="No task with a prediction has started yet.",
    )


def _show_learnt(found: dict[str, Any], shell: Shell) -> None:
    rates = [
        (
            pool["pool_id"],
            pool["group"],
            ", ".join(f"{n}: {rate / 1000:.1f}" for n, rate in pool["decode_mtok_s"].items()) or "not measured",
            f"{pool['prefill_mtok_s'] / 1000:.0f}" if pool["prefill_mtok_s"] else "not measured",
            f"{pool['accept_us'] / 1000:.1f} ms",
            _seconds(pool["load_ms"]) if pool["load_ms"] else "not measured",
        )
        for pool in found["pools"]
    ]
    shell.table(
        ("POOL", "GROUP", "TOKENS/S BY STREAMS", "PROMPT TOKENS/S", "TAKES OVER IN", "LOADS IN"),
        rates,
        empty="There are no pools.",
    )
    lengths = [
        (
            one["group"],
            one["owner"] or "(all)",
            one["n"],
            one["mean_tokens"],
            one["p10_tokens"],
            one["p50_tokens"],
            one["p90_tokens"],
        )
        for one in found["lengths"]
    ]
    shell.line()
    shell.table(
        ("GROUP", "CALLER", "ANSWERS", "MEAN TOKENS", "10 %", "50 %", "90 %"), lengths, empty="No task has ended yet."
    )


def _seconds(milliseconds: float) -> str:
    return f"{milliseconds:.1f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"
