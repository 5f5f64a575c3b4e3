"""Makes the engine of a pool available, in one of five ways (ENG-2).

``external``: it runs already. ``package``: an installed Python package brings it. ``binary``: fetched and held against its
digest. ``source``: built from a commit. ``container``: an image. What is prepared stands in the engine catalog, and what
stands there is not prepared again.
"""

from __future__ import annotations

from .catalog import EngineCatalog, EngineRecord
from .problems import ProvisionError
from .provision import Preparing, provision

__all__ = ["EngineCatalog", "EngineRecord", "Preparing", "ProvisionError", "provision"]
