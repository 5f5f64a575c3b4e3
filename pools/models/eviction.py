"""Which models go when the cache has to be smaller: pure, so that it can be shown without being done (MOD-3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A model in the cache, as far as making room goes."""

    id: str
    #: when it was last loaded, or came
    used_ns: int
    #: digests of its files
    blobs: frozenset[str]
    #: "" = it may go; else why not: "pinned", "in use", "being fetched"
    kept_because: str = ""


def choose(models: Sequence[Candidate], sizes: Mapping[str, int], excess_bytes: int) -> tuple[tuple[str, ...], int]:
    """The models to remove, least recently used first, and the bytes that this frees.

    Content that a model which stays shares with one that goes is not freed. When all that may go is not enough, all of
    it is chosen: the caller compares what is freed with what it needs.

    Args:
        models: everything in the cache.
        sizes: bytes of each blob.
        excess_bytes: how much has to be freed.
    """
    if excess_bytes <= 0:
        return (), 0
    going: list[Candidate] = []
    for model in sorted(models, key=lambda one: (one.used_ns, one.id)):
        if freed_by(going, models, sizes) >= excess_bytes:
            break
        if not model.kept_because:
            going.append(model)
    for model in reversed(list(going)):  # what turned out not to be needed stays, the most recently used first
        without = [one for one in going if one is not model]
        if freed_by(without, models, sizes) >= min(excess_bytes, freed_by(going, models, sizes)):
            going = without
    return tuple(model.id for model in going), freed_by(going, models, sizes)


def freed_by(going: Sequence[Candidate], models: Sequence[Candidate], sizes: Mapping[str, int]) -> int:
    """Bytes that are free when these models are gone and the others stay."""
    gone = {model.id for model in going}
    staying = frozenset[str]().union(*(model.blobs for model in models if model.id not in gone))
    leaving = frozenset[str]().union(*(model.blobs for model in going)) - staying
    return sum(sizes.get(blob, 0) for blob in leaving)
