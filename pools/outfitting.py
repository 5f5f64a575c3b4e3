"""What an engine is started with: settings become the configuration of its plugin, with the files and programs it needs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from ..core.events.model import EngineInstalled, ModelStaged
from ..core.settings import ManagerSettings
from . import causes
from .lifecycle import Trouble
from .models.cache import Cache
from .models.errors import BrokenOffError, StagingError
from .models.fitting import remote_shape
from .models.locks import Locks
from .models.references import parse
from .models.sources import source_of
from .models.staging import stage
from .models.transfer import Progress as StagingProgress
from .preparing import Order, Prepared, Progress, StartError
from .provisioning.catalog import EngineCatalog, EngineRecord
from .provisioning.problems import ProvisionError
from .provisioning.provision import provision
from .sizing import Size, shape_of, size_of

#: the model that comes with this program
_BUNDLED: Final = "haiku"
#: troubles with a model that do not pass by themselves
_PERMANENT: Final = frozenset(
    {"bad-reference", "unauthorized", "digest-mismatch", "hostile-name", "bad-model", "unsupported", "missing-package"}
)
_MIB: Final = 1_048_576


class Outfitter:
    """Makes engines and models available; see :class:`~llama_orch.pools.preparing.Preparer`.

    Args:
        launched: names of engines that are started as processes, unless they are external.
        models: names of the configuration and what they stand for.
        data_dir: models are fetched to it, engines installed in it; ``None`` = both have to be there.
        gpu_bytes: total memory of the GPUs, by UUID.
    """

    def __init__(
        self,
        launched: Container[str],
        models: Mapping[str, str],
        *,
        data_dir: Path | None = None,
        gpu_bytes: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._launched = launched
        self._models = models
        self._data_dir = data_dir
        self._gpu_bytes = gpu_bytes
        self._manager = ManagerSettings()

    def configure(self, manager: ManagerSettings) -> None:
        """What holds from now on."""
        self._manager = manager

    def prepare(self, order: Order, *, progress: Progress, cancelled: threading.Event) -> Prepared:
        """Fetch, build and read what is not there yet. :raises StartError: it cannot be had."""
        config = config_of(order, launched=is_launched(order, self._launched))
        if not config["launched"]:
            return Prepared(config=config)
        if self._data_dir is None:
            return Prepared(config={**config, "model_path": str(model_path(order.model, self._models))})
        installed: list[EngineRecord] = []
        try:
            engine = provision(
                order.settings.provisioning,
                order.settings.engine,
                catalog=EngineCatalog(self._data_dir / "engine-catalog"),
                devices=order.devices,
                forbid_downloads=self._manager.forbid_downloads,
                progress=lambda phase, done, total, unit: progress(f"provisioning: {phase}", done, total, unit),
                stop=cancelled.is_set,
                installed=installed.append,
            )
        except ProvisionError as error:
            raise StartError(Trouble(error.cause, error.message, error.what_to_do, error.permanent)) from error
        model, facts = self._model(order, progress, cancelled)
        size = self._size(order, model.path, model.digest)
        totals = self._gpu_bytes()
        return Prepared(
            held=model.held,
            config={
                **config,
                "held_descriptors": model.held.descriptors if model.held is not None else (),
                "model_path": str(model.path),
                "provisioned": engine,
                "gpu_memory_bytes": {gpu: totals[gpu] for gpu in order.devices if gpu in totals},
            },
            predicted_bytes=size.predicted_bytes if size is not None else {},
            facts=(*(_installed(record) for record in installed), *facts, *((size.event,) if size is not None else ())),
        )

    def size(self, order: Order) -> Size | None:
        """What the order would take, as far as that can be told; of a model that is not here the head alone is fetched."""
        if self._data_dir is None or not is_launched(order, self._launched):
            return None
        try:
            model, _ = self._model(order, lambda *_: None, threading.Event(), offline=True)
            return self._size(order, model.path, model.digest)
        except StartError as error:
            return self._remote_size(order) if error.trouble.cause == "offline" else None

    # --- inside

    def _remote_size(self, order: Order) -> Size | None:
        if self._manager.forbid_downloads:
            return None
        try:
            source = source_of(parse(self._models.get(order.model, order.model)))
            shape, vllm = remote_shape(source, source.listing().files)
            return None if vllm else size_of(order, shape, gpu_bytes=self._gpu_bytes())
        except (StagingError, BrokenOffError, ValueError):
            return None  # it will be told when the model is fetched

    def _model(
        self, order: Order, progress: Progress, cancelled: threading.Event, *, offline: bool = False
    ) -> tuple[_Here, tuple[Any, ...]]:
        assert self._data_dir is not None
        ref = self._models.get(order.model, order.model)
        if ref == _BUNDLED:
            return _Here(path=model_path(ref, {})), ()

        def tell(one: StagingProgress) -> None:
            progress(f"staging: {one.phase}", one.done_bytes, one.total_bytes, "bytes")

        held = None if offline else Locks()
        cache = Cache(self._data_dir / "models", limit_bytes=self._manager.model_cache_mib * _MIB)
        try:
            staged = stage(
                str(Path(ref).expanduser()) if ref.startswith("~") else ref,
                cache=cache,
                strict=self._manager.strict_verification and not offline,
                hold_into=held,
                offline=offline or self._manager.forbid_downloads,
                progress=tell,
                cancel=cancelled,
            )
        except StagingError as error:
            permanent = error.cause in _PERMANENT
            raise StartError(Trouble(error.cause, error.message, error.what_to_do, permanent)) from error
        facts: tuple[Any, ...] = ()
        if not offline and cache.tell_once(staged.id, f"{staged.digest} {staged.verification}"):
            facts = (ModelStaged(host="local", **staged.event_fields()),)
        return _Here(path=Path(staged.path), digest=staged.digest, held=held), facts

    def _size(self, order: Order, path: Path, digest: str) -> Size | None:
        shape = shape_of(path)
        if shape is None:
            return None
        try:
            return size_of(order, shape, digest=digest, gpu_bytes=self._gpu_bytes())
        except ValueError as error:
            raise StartError(causes.trouble("bad-configuration", str(error))) from error


class _Here(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is here."""

    path: Path
    digest: str = ""
    held: Locks | None = None


def _installed(record: EngineRecord) -> EngineInstalled:
    return EngineInstalled(
        host="local",
        engine=record.engine,
        mode=record.mode,
        version=record.version,
        digest=record.digest,
        flags=" ".join(record.flags),
        build=record.build,
    )


def is_launched(order: Order, launchers: Container[str]) -> bool:
    """Whether the order's engine is a process that is started here."""
    return order.settings.provisioning.mode != "external" and order.settings.engine in launchers


def config_of(order: Order, *, launched: bool) -> dict[str, Any]:
    """What an engine's plugin gets, but for ``url``, ``port`` and what was prepared."""
    settings = order.settings
    provisioning = settings.provisioning
    return {
        **provisioning.options,
        "model": settings.model,
        "alias": settings.model,
        "slots": settings.slots,
        "ctx": settings.ctx,
        "threads": provisioning.threads,
        "device": settings.devices,
        "devices": list(order.devices),
        "tensor_split": list(settings.tensor_split),
        "options": provisioning.options,
        "env": dict(provisioning.env),
        "launched": launched,
    }


def model_path(model: str, aliases: Mapping[str, str]) -> Path:
    """The file of a model: through ``models`` of the configuration, the bundled one, or a path (``file:`` or plain)."""
    model = aliases.get(model, model)
    if model == "haiku":
        from .. import haiku

        try:
            return haiku.model_path()
        except FileNotFoundError as error:
            # The launcher names the path in its own error, as for every model.
            return Path(str(error.filename or "haiku.gguf"))
    return Path(model.removeprefix("file:")).expanduser()
