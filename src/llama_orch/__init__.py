"""llama-orch: one queue, one journal and explainable placement for local LLM engines."""

from __future__ import annotations

__all__ = ["__version__"]

#: The version of the distribution; the build reads it from here.
__version__ = "0.1.0"
