"""Models on this host: fetch, list, look at, fit, pin and remove them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import exits
from ..command import command
from ..exits import CliError, UsageError
from ..model_lookup import ModelPlace, place_of
from ..model_progress import bars
from ..model_views import bytes_of, count, day, size, state, summary, view
from ..shell import Shell

if TYPE_CHECKING:
    from ...pools.models.provenance import StagedModel
    from ...pools.models.records import Record


def _pull_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="+",
        metavar="MODEL",
        help="hf:org/repo[@revision][/file], hf:org/repo:QUANTIZATION, https://…, s3://bucket/key, oci:registry/name[:tag],"
        " file:PATH, or a name of the configuration",
    )
    parser.add_argument("--digest", metavar="SHA256", default="", help="refuse another content than this")
    parser.add_argument(
        "--strict", action="store_true", help="read what is here already again, and hold it against its digest"
    )
    parser.add_argument("--offline", action="store_true", help="use what is here, ask nobody")
    parser.add_argument("--pin", action="store_true", help="keep it whatever else needs room")


@command("models pull", "fetch models, or what changed of them", arguments=_pull_arguments, needs="config")
def pull(options: argparse.Namespace, shell: Shell) -> int:
    """A transfer that ends early is taken up again, by itself and by the next call. What is here and unchanged is not
    fetched and nothing is written. Prints the path that an engine is given.

    Example: llama-orch models pull hf:org/repo:Q4_K_M
    """
    from ...pools.models.sources import source_of
    from ...pools.models.staging import stage

    if options.digest and len(options.model) > 1:
        raise UsageError("--digest is for one model", remedy="Pull them one by one, or write model#sha256=….")
    place = place_of(options, shell)
    manager = place.loaded.settings.manager
    done: list[StagedModel] = []
    for text in options.model:
        with bars(shell) as progress:
            staged = stage(
                place.source(text),
                cache=place.cache,
                expected_digest=options.digest,
                strict=options.strict or manager.strict_verification,
                offline=options.offline or manager.forbid_downloads,
                progress=progress,
                source=lambda reference: source_of(reference, shell.environ),
            )
        if options.pin:
            place.cache.pin(staged.id, pinned=True)
        done.append(staged)
        for warning in staged.warnings:
            shell.note(f"{staged.ref}: {warning}")
        if not shell.as_json:
            shell.line(staged.path)
            shell.note(_told(staged))
    if shell.as_json:
        shell.json({"models": [_staged_view(place, staged) for staged in done]})
    return exits.OK


def _told(staged: StagedModel) -> str:
    came = f"fetched {size(staged.fetched_bytes)}" if staged.fetched_bytes else "was here"
    said = staged.metadata
    parts = [
        said.architecture,
        count(said.parameters),
        said.quantization,
        f"context {said.ctx_max}" if said.ctx_max else "",
    ]
    return f"{size(staged.size_bytes)}, {came}, {staged.verification}: {', '.join(part for part in parts if part)}"


def _staged_view(place: ModelPlace, staged: StagedModel) -> dict[str, Any]:
    record = place.cache.record(staged.id)
    shown = view(place, record) if record is not None else {}
    return shown | {"fetched_bytes": staged.fetched_bytes, "changed": staged.changed, "warnings": staged.warnings}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a GGUF file, or a folder with config.json and safetensors files")
    parser.add_argument(
        "--name", metavar="NAME", default="", help="how clients shall call it (default: the file's name)"
    )
    parser.add_argument("--digest", metavar="SHA256", default="", help="refuse another content than this")


@command("models add", "take a model that is on this disk already", arguments=_add_arguments, needs="config")
def add(options: argparse.Namespace, shell: Shell) -> int:
    """Reads it once, and prints the lines of the configuration that serve it. The file stays where it is."""
    import json

    from ...pools.models.references import default_name, is_remote
    from ...pools.models.staging import stage

    if is_remote(options.path):
        raise UsageError(f"{options.path} is an address", remedy=f"llama-orch models pull {options.path}")
    place = place_of(options, shell)
    with bars(shell) as progress:
        staged = stage(
            "file:" + options.path.removeprefix("file:"),
            cache=place.cache,
            expected_digest=options.digest,
            strict=place.loaded.settings.manager.strict_verification,
            progress=progress,
        )
    name = options.name or default_name(staged.ref)
    if shell.as_json:
        shell.json(_staged_view(place, staged) | {"name": name})
        return exits.OK
    shell.note(_told(staged))
    shell.line("models:")
    shell.line(f"  {json.dumps(name)}: {json.dumps(staged.path)}")
    return exits.OK


@command("models list", "list the models that are here", needs="config")
def list_models(options: argparse.Namespace, shell: Shell) -> int:
    """With sizes, what they are, and whether one is loaded or pinned. Content that several share counts once in the cache."""
    place = place_of(options, shell)
    records = place.cache.records()
    if shell.as_json:
        shell.json(
            {
                "models": [view(place, record) for record in records],
                "cache": {
                    "path": str(place.cache.root),
                    "used_bytes": place.cache.used_bytes(),
                    "limit_bytes": place.cache.limit_bytes,
                },
            }
        )
        return exits.OK
    rows = [
        (
            place.name(record),
            state(place, record),
            size(record.size_bytes),
            count(record.metadata.parameters),
            record.metadata.quantization,
            record.metadata.architecture,
            record.metadata.ctx_max or "",
            day(place.cache.used_ns(record) // 1_000_000),
            record.ref,
        )
        for record in records
    ]
    columns = ("NAME", "STATE", "SIZE", "PARAMETERS", "QUANTIZATION", "ARCHITECTURE", "CONTEXT", "USED", "REFERENCE")
    shell.table(columns, rows, empty="There are no models. `llama-orch models scan` finds those of other programs.")
    limit = f" of {size(place.cache.limit_bytes)}" if place.cache.limit_bytes else ""
    shell.note(f"{size(place.cache.used_bytes())}{limit} in {place.cache.root}")
    return exits.OK


def _model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="its name, reference, path, or the beginning of its digest")


@command("models show", "show all that is known of a model", arguments=_model_argument, needs="config")
def show(options: argparse.Namespace, shell: Shell) -> int:
    """Where it came from, whether that was verified, its files with their digests, and what its head says."""
    place = place_of(options, shell)
    record = place.get(options.model)
    shown = view(place, record)
    files = [
        {"path": one.path, "digest": one.digest, "size_bytes": one.size_bytes, "verified": one.verified}
        for one in record.files
    ]
    if shell.as_json:
        shell.json(
            shown
            | {
                "files": files,
                "chat_template": record.metadata.chat_template,
                "handoff": str(place.cache.handoff_path(record.id)),
            }
        )
        return exits.OK
    for key, value in shown.items():
        if value not in ("", 0, False):
            text = day(value) if key in {"staged_ms", "used_ms"} else size(value) if key.endswith("_bytes") else value
            label = key.removesuffix("_ms") if key in {"staged_ms", "used_ms"} else key.removesuffix("_bytes")
            shell.line(f"{label + ':':<20} {text}")
    shell.line()
    shell.table(
        ("FILE", "SIZE", "DIGEST"), [(one["path"], size(int(str(one["size_bytes"]))), one["digest"]) for one in files]
    )
    return exits.OK


def _rm_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="+", metavar="MODEL", help="its name, reference, path, or the beginning of its digest"
    )
    parser.add_argument("--force", action="store_true", help="also when it is pinned")


@command("models rm", "remove models from the cache", arguments=_rm_arguments, needs="config")
def rm(options: argparse.Namespace, shell: Shell) -> int:
    """Content that another model shares stays, and so do files that were added where they lie. What is loaded is not removed."""
    place = place_of(options, shell)
    records = [place.get(text) for text in options.model]
    for record in records:
        if record.pinned and not options.force:
            raise CliError(
                f"{record.ref} is pinned",
                remedy="`llama-orch models unpin` it, or remove it with --force.",
                code="PINNED",
            )
    freed = {record.ref: place.cache.remove(record.id) for record in records}
    if shell.as_json:
        shell.json({"removed": [{"ref": ref, "freed_bytes": amount} for ref, amount in freed.items()]})
        return exits.OK
    for ref, amount in freed.items():
        shell.note(f"{ref}: removed, {size(amount)} freed")
    return exits.OK


@command("models pin", "keep a model whatever else needs room", arguments=_model_argument, needs="config")
def pin(options: argparse.Namespace, shell: Shell) -> int:
    """It is never removed to keep the cache below its limit."""
    return _pin(options, shell, pinned=True)


@command("models unpin", "let a model go when its room is needed", arguments=_model_argument, needs="config")
def unpin(options: argparse.Namespace, shell: Shell) -> int:
    """The opposite of pin."""
    return _pin(options, shell, pinned=False)


def _pin(options: argparse.Namespace, shell: Shell, *, pinned: bool) -> int:
    place = place_of(options, shell)
    record: Record = place.cache.pin(place.get(options.model).id, pinned=pinned)
    if shell.as_json:
        shell.json({"ref": record.ref, "pinned": record.pinned})
    else:
        shell.note(f"{record.ref}: {'pinned' if record.pinned else 'not pinned'}")
    return exits.OK


def _scan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="*", metavar="FOLDER", help="look here too, and below")


@command("models scan", "find the models that other programs have on this disk", arguments=_scan_arguments)
def scan(options: argparse.Namespace, shell: Shell) -> int:
    """Looks into the caches of the Hugging Face hub, Ollama, LM Studio and llama.cpp. A path that it prints is a model as
    it is: for `models add`, for a pool, for `models:` of the configuration.
    """
    from ...pools.models.scan import scan as look

    home = Path(shell.environ["HOME"]) if shell.environ.get("HOME") else Path.home()
    folders = tuple(Path(folder).expanduser().absolute() for folder in options.folder)
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder} is no folder", remedy="Name a folder that you may read.")
    found = look(home, shell.environ, folders)
    if shell.as_json:
        shell.json(
            {
                "models": [
                    {
                        "program": one.program,
                        "name": one.name,
                        "path": one.path,
                        "size_bytes": one.size_bytes,
                        "problem": one.problem or None,
                        **(summary(one.metadata) if one.metadata is not None else {}),
                    }
                    for one in found
                ]
            }
        )
        return exits.OK
    rows = [
        (
            one.program,
            one.name,
            size(one.size_bytes),
            count(one.metadata.parameters) if one.metadata else "",
            one.metadata.quantization if one.metadata else "",
            one.metadata.architecture if one.metadata else f"not usable: {one.problem}",
            one.path,
        )
        for one in found
    ]
    columns = ("PROGRAM", "NAME", "SIZE", "PARAMETERS", "QUANTIZATION", "ARCHITECTURE", "PATH")
    shell.table(columns, rows, empty="Nothing was found. Name folders to look into, or `llama-orch models pull`.")
    return exits.OK


def _gc_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    parser.add_argument("--limit", metavar="SIZE", help="as if manager.model_cache_mib were this, e.g. 100GiB")


@command(
    "models gc",
    "remove what nothing needs, and what is over the cache's limit",
    arguments=_gc_arguments,
    needs="config",
)
def gc(options: argparse.Namespace, shell: Shell) -> int:
    """Content that no model has, parts of transfers that were given up, and then the least recently used models until the
    cache is below its limit. What is loaded, pinned or being fetched stays.
    """
    limit = bytes_of(options.limit, "--limit") if options.limit else None
    place = place_of(options, shell, limit_bytes=limit)
    removals = place.cache.collect(dry_run=options.dry_run)
    freed = sum(removal.size_bytes for removal in removals)
    if shell.as_json:
        shell.json(
            {
                "dry_run": options.dry_run,
                "freed_bytes": freed,
                "used_bytes": place.cache.used_bytes(),
                "limit_bytes": place.cache.limit_bytes,
                "removed": [
                    {"kind": one.kind, "what": one.what, "size_bytes": one.size_bytes, "reason": one.reason}
                    for one in removals
                ],
            }
        )
        return exits.OK
    rows = [(one.kind, one.what, size(one.size_bytes), one.reason) for one in removals]
    shell.table(("KIND", "WHAT", "SIZE", "WHY"), rows, empty="Nothing has to go.")
    shell.note(f"{size(freed)} {'would be' if options.dry_run else 'were'} freed")
    return exits.OK
