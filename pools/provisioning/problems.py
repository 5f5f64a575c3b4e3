"""What can go wrong while an engine is made available: stable causes, each with what to do."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

#: cause -> what to do about it, and whether trying again cannot help by itself
CAUSES: Final[dict[str, tuple[str, bool]]] = {
    "bad-configuration": ("Correct what the message names under `provisioning` of the pool.", True),
    "missing-package": ("Install the engine's package: pip install 'llama-orch[llamacpp]'.", True),
    "missing-tool": ("Install the program that the message names, and see that it is on the PATH.", True),
    "missing-library": ("Install the library that the message names, or take a build that does not need it.", True),
    "wrong-architecture": ("The program is for another kind of processor: name the build for this one.", True),
    "wrong-digest": ("Check where the file comes from, and correct provisioning.sha256 only if you trust it.", True),
    "bad-archive": (
        "Name an archive (tar or zip) that holds the engine's server program, or that program itself.",
        True,
    ),
    "fetch-failed": ("Check the network and the address; it is tried again.", False),
    "build-failed": ("The build log says more; its end stands in the message.", True),
    "downloads-forbidden": (
        "Prepare it with `llama-orch engines install` where downloads are allowed, or set manager.forbid_downloads to false.",
        True,
    ),
    "disk-full": ("Free space on the disk of the data directory; it is tried again.", False),
    "disk-failed": (
        "Look at the disk and at who owns the data directory; the message holds what the system said.",
        False,
    ),
    "cpu-build": ("Get the build for the GPU: llama-orch engines install llamacpp --cuda", True),
    "cancelled": ("Nothing was installed; ask for it again.", False),
}

#: hears of progress: phase, done, total (0 = not known), unit
Progress = Callable[[str, int, int, str], None]
#: asked now and then; true = give up
Stop = Callable[[], bool]


class ProvisionError(Exception):
    """An engine could not be made available; nothing counts as installed.

    Args:
        cause: a key of :data:`CAUSES`.
        message: what is wrong, with what was got.
        what_to_do: instead of the cause's own advice.
    """

    def __init__(self, cause: str, message: str, what_to_do: str = "") -> None:
        super().__init__(message)
        advice, permanent = CAUSES[cause]
        self.cause = cause
        self.message = message
        self.what_to_do = what_to_do or advice
        #: trying again cannot help by itself
        self.permanent = permanent


def disk_problem(error: OSError) -> ProvisionError:
    """What the system says of the disk, as a cause."""
    full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    where = f"{error.filename}: " if error.filename else ""
    return ProvisionError("disk-full" if full else "disk-failed", f"{where}{error.strerror or error}")


def silent(_phase: str, _done: int, _total: int, _unit: str) -> None:
    """Nobody wants to hear of progress."""


def never() -> bool:
    """Nobody gives up."""
    return False
