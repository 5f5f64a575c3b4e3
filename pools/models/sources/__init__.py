"""Who speaks to which kind of place."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..references import Reference
from ..transfer import Source


def source_of(reference: Reference, environ: Mapping[str, str] | None = None) -> Source:
    """The source that a reference is fetched from.

    Args:
        reference: any but ``file``.
        environ: ``HF_ENDPOINT``, ``HF_TOKEN``; this process's by default.

    Raises:
        StagingError: ``missing-package`` with the command that installs it.
    """
    environ = os.environ if environ is None else environ
    if reference.kind == "hub":
        from .hub import HubSource

        return HubSource(reference, endpoint=environ.get("HF_ENDPOINT") or None, token=environ.get("HF_TOKEN") or None)
    if reference.kind == "objects":
        from .objects import ObjectSource

        return ObjectSource(reference)
    if reference.kind == "oci":
        from .registry import RegistrySource

        return RegistrySource(reference)
    from .web import WebSource

    return WebSource(reference)
