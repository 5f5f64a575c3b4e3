"""On which GPU a model fits, and with how much context: the memory model asked for each device (MOD-1, PLC-5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import msgspec

from ...core.gguf import GgufError, GgufHead, parse_head, read_model
from ...plugins.memory.need import MemoryNeed, ModelShape, fit, need, need_vllm, shape_of_gguf, shape_of_hf
from .errors import BrokenOffError, StagingError
from .metadata import LARGEST_JSON, parse_object, read_json
from .transfer import RemoteFile, Source

_BLOCK: Final = 1024 * 1024
_STEP: Final = 256
#: of a model that does not say what it was trained for
_CTX_UNTOLD: Final = 131_072


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a model could run on."""

    #: UUID of a GPU, or "cpu"
    id: str
    name: str
    #: without what is kept in reserve
    total_bytes: int
    free_bytes: int


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """How a model fits a device, or several of them together."""

    #: UUIDs, or "cpu"
    devices: list[str]
    name: str
    total_bytes: int
    free_bytes: int
    #: largest context per slot with what is free now; 0 = it does not fit
    ctx: int
    #: when nothing else is loaded
    ctx_empty: int
    #: at ``ctx`` where it fits, else at the smallest context
    need: MemoryNeed


def shape_of(path: Path, *, hf: bool) -> ModelShape:
    """The shape of a model that is here.

    Raises:
        StagingError: ``bad-model``: it does not say what memory depends on.
    """
    try:
        if not hf:
            return shape_of_gguf(read_model(path))
        weights = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        return shape_of_hf(read_json(path / "config.json"), file_bytes=weights)
    except (GgufError, ValueError) as error:
        raise StagingError("bad-model", str(error)) from error


def remote_shape(source: Source, files: Sequence[RemoteFile]) -> tuple[ModelShape, bool]:
    """The shape of a model that is not here, and whether it is for vLLM: heads or ``config.json`` alone are fetched.

    Raises:
        StagingError: ``unsupported``: its heads cannot be had; ``bad-model``: they do not tell.
        BrokenOffError: the connection failed.
    """
    parts = sorted((file for file in files if file.path.lower().endswith(".gguf")), key=lambda file: file.path)
    named = {file.path: file for file in files}
    if any(file.size_bytes < 0 for file in parts) or not (parts or "config.json" in named):
        raise StagingError(
            "unsupported",
            "the heads of these files cannot be read where they are",
            remedy="Run `llama-orch models pull` first.",
        )
    try:
        if parts:
            heads = [_remote_head(source, file) for file in parts]
            whole = msgspec.structs.replace(
                heads[0],
                tensors=tuple(tensor for head in heads for tensor in head.tensors),
                file_bytes=sum(head.file_bytes for head in heads),
            )
            return shape_of_gguf(whole), False
        weights = sum(max(0, file.size_bytes) for file in files if file.path.endswith(".safetensors"))
        return shape_of_hf(_remote_object(source, named["config.json"]), file_bytes=weights), True
    except (GgufError, ValueError) as error:
        raise StagingError("bad-model", str(error)) from error


def _remote_head(source: Source, file: RemoteFile) -> GgufHead:
    return parse_head(cast("BinaryIO", _Remote(source, file)), file_bytes=file.size_bytes, name=file.path)


def _remote_object(source: Source, file: RemoteFile) -> dict[str, Any]:
    stream = source.open(file, 0)
    try:
        raw = bytearray()
        while len(raw) <= LARGEST_JSON and (piece := stream.read(_BLOCK)):
            raw += piece
    finally:
        stream.close()
    return parse_object(bytes(raw), file.path)


def fits(shape: ModelShape, devices: Sequence[Device], *, slots: int, ctx: int, hf: bool) -> list[Fit]:
    """How a model fits each device, and all GPUs together when there are several.

    Args:
        shape: the model.
        devices: what there is.
        slots: tasks at once.
        ctx: the context that is wanted; 0 = as large as possible.
        hf: it runs under vLLM, else under llama.cpp.
    """
    groups: list[list[Device]] = [[device] for device in devices if not (hf and device.id == "cpu")]
    gpus = [device for device in devices if device.id != "cpu"]
    if len(gpus) > 1:
        groups.append(gpus)
    return [_fit(shape, group, slots=slots, ctx=ctx, hf=hf) for group in groups]


def _fit(shape: ModelShape, group: Sequence[Device], *, slots: int, ctx: int, hf: bool) -> Fit:
    free, total = [one.free_bytes for one in group], [one.total_bytes for one in group]
    cpu = group[0].id == "cpu"
    if hf:
        now, empty = _vllm_ctx(shape, free), _vllm_ctx(shape, total)
    elif cpu:
        now, empty = fit(shape, free[0], slots=slots), fit(shape, total[0], slots=slots)
    else:
        now, empty = (fit(shape, room, slots=slots, tensor_split=_shares(room)) for room in (free, total))
    if ctx:
        now, empty = (ctx if now >= ctx else 0), (ctx if empty >= ctx else 0)
    at = now or empty or ctx or _STEP
    if hf and empty:
        needed = need_vllm(shape, ctx=at, device_bytes=total if not now else free)
    else:
        split = () if cpu or len(group) == 1 else tuple(_shares(free))
        needed = need(shape, ctx=at, slots=slots, devices=0 if cpu else len(group), tensor_split=split)
    return Fit(
        devices=[one.id for one in group],
        name=group[0].name if len(group) == 1 else f"{len(group)} GPUs together",
        total_bytes=sum(total),
        free_bytes=sum(free),
        ctx=now,
        ctx_empty=empty,
        need=needed,
    )


def _shares(room: Sequence[int]) -> list[int]:
    """Shares of several GPUs by their room, whole MiB."""
    return [max(1, size // _BLOCK) for size in room] if len(room) > 1 else []


def _vllm_ctx(shape: ModelShape, room: Sequence[int]) -> int:
    low, high = 0, max(1, (shape.ctx_train or _CTX_UNTOLD) // _STEP)
    while low < high:
        middle = (low + high + 1) // 2
        try:
            need_vllm(shape, ctx=middle * _STEP, device_bytes=[max(1, size) for size in room])
            low = middle
        except ValueError:
            high = middle - 1
    return low * _STEP


class _Remote:
    """A file at its source, read in blocks where it is asked for; as much of a file as the reader of heads uses."""

    def __init__(self, source: Source, file: RemoteFile) -> None:
        self._source = source
        self._file = file
        self._blocks: dict[int, bytes] = {}
        self._at = 0

    def seek(self, offset: int) -> int:
        """The next read begins here."""
        self._at = offset
        return offset

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes, fewer at a block's end; b"" at the file's."""
        number, start = divmod(self._at, _BLOCK)
        if number not in self._blocks:
            self._blocks[number] = self._fetch(number * _BLOCK)
        piece = self._blocks[number][start : start + size]
        self._at += len(piece)
        return piece

    def _fetch(self, offset: int) -> bytes:
        if offset >= self._file.size_bytes:
            return b""
        stream = self._source.open(self._file, offset)
        try:
            if stream.offset != offset:
                raise StagingError("unsupported", "the source cannot send a part of a file")
            block = bytearray()
            wanted = min(_BLOCK, self._file.size_bytes - offset)
            while len(block) < wanted and (piece := stream.read(wanted - len(block))):
                block += piece
        finally:
            stream.close()
        if len(block) < wanted:
            raise BrokenOffError(f"{self._file.path}: the connection ended")
        return bytes(block)
