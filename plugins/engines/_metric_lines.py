"""Prometheus' text format, as far as engines tell numbers with it."""

from __future__ import annotations


def prometheus(body: bytes) -> dict[str, float]:
    """Values by name, with their labels in the name as they stand there; lines that are no sample are skipped."""
    values: dict[str, float] = {}
    for line in body.decode("utf-8", "replace").splitlines():
        name, _, value = line.rpartition(" ")
        if name and not line.startswith("#"):
            try:
                values[name] = float(value)
            except ValueError:
                continue
    return values
