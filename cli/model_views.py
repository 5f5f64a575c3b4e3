"""Models as a person reads them: sizes, summaries, tables; and as programs do."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from .exits import UsageError

if TYPE_CHECKING:
    from ..pools.models.metadata import ModelMetadata
    from ..pools.models.records import Record
    from .model_lookup import ModelPlace

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def size(count: int) -> str:
    """Bytes in the unit that a person would take."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def bytes_of(text: str, option: str) -> int:
    """Bytes from ``24GiB``, ``12G``, ``500m`` or a plain number. :raises UsageError: it is none of these."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]?)i?b?", text.strip().lower())
    if found is None:
        raise UsageError(f"{option} {text!r} is no size", remedy="Say it as 24GiB or 500MiB.")
    return int(float(found[1]) * _UNITS[found[2]])


def count(parameters: int) -> str:
    """A number of parameters as models are named: 7.2B, 135M."""
    for limit, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if parameters >= limit:
            return f"{parameters / limit:.3g}{unit}"
    return str(parameters) if parameters else ""


def summary(metadata: ModelMetadata) -> dict[str, Any]:
    """What a model is, for programs: all but its chat template's text."""
    return {
        "format": metadata.format,
        "architecture": metadata.architecture,
        "parameters": metadata.parameters,
        "quantization": metadata.quantization,
        "ctx_max": metadata.ctx_max,
        "layers": metadata.layers,
        "tokenizer": metadata.tokenizer,
        "tokenizer_digest": metadata.tokenizer_digest,
        "has_chat_template": bool(metadata.chat_template),
        "kv_bytes_per_token": metadata.kv_bytes_per_token,
    }


def view(place: ModelPlace, record: Record) -> dict[str, Any]:
    """A model that is here, for programs."""
    cache = place.cache
    return {
        "name": place.name(record),
        "ref": record.ref,
        "id": record.id,
        "path": str(cache.path_of(record)),
        "digest": record.digest,
        "size_bytes": record.size_bytes,
        "source_url": record.source_url,
        "revision": record.revision,
        "verification": record.verification,
        "state": state(place, record),
        "pinned": record.pinned,
        "in_use": cache.in_use(record.id),
        "in_place": record.in_place,
        "staged_ms": record.staged_ms,
        "used_ms": cache.used_ns(record) // 1_000_000,
        **summary(record.metadata),
    }


def state(place: ModelPlace, record: Record) -> str:
    """One word: ``loaded``, ``pinned``, ``ready``, ``incomplete``, or ``gone`` of a file that is not where it was."""
    cache = place.cache
    if record.in_place and not cache.path_of(record).exists():
        return "gone"
    if not record.in_place and not cache.is_whole(record):
        return "incomplete"
    return "loaded" if cache.in_use(record.id) else "pinned" if record.pinned else "ready"


def day(milliseconds: int) -> str:
    """A moment as a person reads it, in this machine's time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(milliseconds / 1000)) if milliseconds else ""
