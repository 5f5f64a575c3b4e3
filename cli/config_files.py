"""Reads a configuration file as plain values, and remembers on which line each key stands."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from ..core.errors import ConfigError
from .config_types import Fault

_LARGEST_BYTES = 4_194_304


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, int], list[Fault]]:
    """Values, ``{dotted key: line}`` (line 0 where it is not known; ``""`` is the file), and what is wrong with it.

    :raises ConfigError: the file cannot be read or is no YAML or TOML.
    """
    text = _text(path)
    if path.suffix == ".toml":
        try:
            values: Any = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: not TOML: {error}", field=str(path)) from error
        lines: dict[str, int] = {"": 0}
        faults: list[Fault] = []
    else:
        values, lines, faults = _yaml(path, text)
    if values is None:
        return {}, {"": 0}, faults
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: holds {type(values).__name__}, takes keys with values, such as `bind: 127.0.0.1:8080`",
            field=str(path),
        )
    return values, lines, faults


def _text(path: Path) -> str:
    if path.suffix not in {".yaml", ".yml", ".toml"}:
        raise ConfigError(
            f"{path}: the name ends with {path.suffix or 'nothing'!r}, takes .yaml, .yml or .toml", field=str(path)
        )
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror or error}",
            field=str(path),
            remedy="Name another file with --config; `llama-orch init` writes a first one.",
        ) from error
    if len(raw) > _LARGEST_BYTES:
        raise ConfigError(f"{path}: is larger than {_LARGEST_BYTES} bytes; is it a configuration?", field=str(path))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 (byte {error.start})", field=str(path)) from error


def _yaml(path: Path, text: str) -> tuple[Any, dict[str, int], list[Fault]]:
    lines: dict[str, int] = {"": 0}
    faults: list[Fault] = []
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None, lines, faults
        _locate(node, "", path, lines, faults, set())
        return loader.construct_document(node), lines, faults
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not YAML: {error.problem or error}", field=str(path)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = re.sub(r"\s+", " ", str(error))
        raise ConfigError(f"{path}: not YAML: {first}", field=str(path)) from error


def _locate(node: yaml.Node, key: str, path: Path, lines: dict[str, int], faults: list[Fault], above: set[int]) -> None:
    """Note the line of every key, and keys that stand twice (YAML would silently take the last)."""
    if id(node) in above:
        raise yaml.YAMLError(f"{key} contains itself")
    above = above | {id(node)}
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for name_node, value_node in node.value:
            name = str(name_node.value)
            below = f"{key}.{name}" if key else name
            line = name_node.start_mark.line + 1
            if name in seen and name != "<<":
                faults.append(Fault(f"{path.name}:{line}", "", below, f"stands twice; first on line {lines[below]}"))
            seen.add(name)
            lines.setdefault(below, line)
            _locate(value_node, below, path, lines, faults, above)
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            below = f"{key}[{number}]"
            lines[below] = item.start_mark.line + 1
            _locate(item, below, path, lines, faults, above)
