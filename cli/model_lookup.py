"""Finds the model that an argument means: a name of the configuration, a reference, or something that is here already."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .connect import loaded_from
from .exits import CliError, UsageError
from .shell import Shell

if TYPE_CHECKING:
    from ..pools.models.cache import Cache
    from ..pools.models.records import Record
    from .config import Loaded

_SHORTEST_ID = 6


@dataclass(frozen=True, slots=True)
class ModelPlace:
    """The cache of a data directory, and the names that its configuration gives to models."""

    loaded: Loaded
    cache: Cache

    def source(self, text: str) -> str:
        """Where a model comes from: names of the configuration, and the bundled one, are resolved.

        :raises UsageError: it is no reference to a model.
        """
        from ..pools.models.errors import StagingError
        from ..pools.models.references import parse

        source = self.loaded.settings.models.get(text, text)
        if source == "haiku":
            from ..haiku import model_path

            return f"file:{model_path()}"
        try:
            parse(source)
        except StagingError as error:
            raise UsageError(error.message, remedy=error.what_to_do) from error
        return source

    def find(self, text: str) -> Record | None:
        """A model that is here: by name, reference, path, id or digest.

        :raises CliError: several are meant.
        """
        from ..pools.models.references import default_name, parse

        try:
            record = self.cache.record(parse(self.source(text)).id)
        except UsageError:
            record = None
        if record is not None:
            return record
        found = [
            record
            for record in self.cache.records()
            if text in {record.ref, default_name(record.ref)}
            or (len(text) >= _SHORTEST_ID and record.id.startswith(text))
            or (
                len(text.removeprefix("sha256:")) >= _SHORTEST_ID
                and record.digest.removeprefix("sha256:").startswith(text.removeprefix("sha256:"))
            )
        ]
        if len(found) > 1:
            raise CliError(
                f"{text!r} may be {len(found)} models: {', '.join(record.ref for record in found)}",
                remedy="Name one by its reference.",
                code="AMBIGUOUS",
            )
        return found[0] if found else None

    def get(self, text: str) -> Record:
        """A model that is here. :raises CliError: it is not."""
        record = self.find(text)
        if record is None:
            raise CliError(
                f"there is no model {text!r} here",
                remedy="`llama-orch models list` shows what is here, `llama-orch models pull` fetches.",
                code="MODEL_NOT_FOUND",
            )
        return record

    def name(self, record: Record) -> str:
        """How clients may call a model: as the configuration does, else by its file's or repository's name."""
        from ..pools.models.errors import StagingError
        from ..pools.models.references import default_name, parse

        for name, source in self.loaded.settings.models.items():
            try:
                if parse(source).id == record.id:
                    return name
            except StagingError:
                continue
        return default_name(record.ref)


def place_of(options: argparse.Namespace, shell: Shell, *, limit_bytes: int | None = None) -> ModelPlace:
    """The models of the data directory that a command's options name."""
    from ..pools.models.cache import Cache

    loaded = loaded_from(options, shell)
    limit = loaded.settings.manager.model_cache_mib * 2**20 if limit_bytes is None else limit_bytes
    return ModelPlace(loaded, Cache(models_folder(loaded.data_dir), limit_bytes=limit))


def models_folder(data_dir: Path) -> Path:
    """Where a data directory keeps its models."""
    return data_dir / "models"
