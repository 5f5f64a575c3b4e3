"""What can go wrong on the way from a reference to a file, each with a stable cause and what to do about it."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from ...core.errors import OrchError

#: stable causes and what a person can do
CAUSES: Final[dict[str, str]] = {
    "bad-reference": "A reference is a path, file:PATH, hf:org/repo[@revision][/file], https://…, s3://bucket/key or oci:registry/name[:tag].",
    "not-found": "Check the name, the revision and the file; a private or gated model looks like one that is not there.",
    "unauthorized": "Give access: HF_TOKEN for the hub (accept the model's terms there first), the service's own credentials elsewhere.",
    "unreachable": "Check the address and the network; `--offline` uses what is there already.",
    "interrupted": "Do it again: what was fetched is kept, and it goes on where it stopped.",
    "wrong-length": "The server does not send what it announced; try again later, or another source.",
    "digest-mismatch": "The file is not the one that the digest names: correct the digest, or do not use this source.",
    "hostile-name": "The source names files outside of its own folder; do not use it.",
    "bad-model": "The file is broken or no model; fetch another one.",
    "offline": "Nothing is fetched while offline: run `llama-orch models pull` where the network may be used.",
    "disk-full": "Free space on the disk of the cache, or put it elsewhere with --data-dir.",
    "disk-failed": "Look at the disk and at who owns the folder; the message holds what the system answered.",
    "cache-full": "Raise manager.model_cache_mib, or free room: `llama-orch models list`, then unpin or remove something.",
    "changed": "The file changed while it was read; do it again when nobody writes to it.",
    "missing-package": "Install the package that the message names.",
    "unsupported": "Use another kind of reference; `llama-orch models pull --help` lists them.",
    "busy": "Wait until whoever uses the model is done with it, then do it again.",
    "cancelled": "It was cancelled; do it again to go on where it stopped.",
}


class StagingError(OrchError):
    """A model could not be made available. ``cause`` is one of :data:`CAUSES`."""

    code: ClassVar[str] = "MODEL_UNAVAILABLE"
    status: ClassVar[int] = 503

    def __init__(self, cause: str, message: str, *, remedy: str = "", **details: Any) -> None:
        super().__init__(message, remedy=remedy or CAUSES[cause], cause=cause, **details)
        self.cause = cause


class BrokenOffError(Exception):
    """A connection failed, or ended too early: the same request may work when it is made again."""

    def __init__(self, message: str, *, cause: str = "interrupted", retry_after_s: float = 0) -> None:
        super().__init__(message)
        self.cause = cause
        #: how long the server asks to wait
        self.retry_after_s = retry_after_s
