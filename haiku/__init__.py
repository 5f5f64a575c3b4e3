"""The haiku model: a language model of under 3 MB that ships inside the package and answers in haiku.

It stands in for a large model wherever a real engine has to run offline and at once: the demo, the self-test of
`doctor`, the end-to-end tests. Importing this package reads no file and needs no training dependency.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Final

from .grammar import TOPICS

#: What the catalog calls the model.
MODEL_NAME: Final = "haiku"
#: Tokens that the model's context holds.
CONTEXT_TOKENS: Final = 1024

_FILE: Final = "haiku.gguf"

__all__ = ["CONTEXT_TOKENS", "MODEL_NAME", "model_path", "topics"]


def model_path(directory: Path | None = None) -> Path:
    """Where the GGUF file lies: in `directory`, or by default in the installed package.

    Raises:
        FileNotFoundError: the file is not there; the message says how to get it back.
    """
    path = (directory or Path(str(resources.files(__package__ or __name__)))) / _FILE
    if not path.is_file():
        message = f"the haiku model is missing at {path}: reinstall llama-orch, or train it (haiku/README.md)"
        raise FileNotFoundError(message)
    return path


def topics() -> tuple[str, ...]:
    """What the model was taught to write about, as a prompt would name it."""
    return tuple(topic.name for topic in TOPICS)
