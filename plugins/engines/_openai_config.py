"""What a pool's configuration tells the clients of OpenAI's API: options, headers, secrets, where the API is."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from .. import ConfigError
from ._openai_dialects import DIALECTS

WORKLOADS: Final = ("completion", "chat", "embedding", "rerank")
#: a header's value of this length is taken for a secret that messages of the server must not repeat
SECRET_LENGTH: Final = 8
#: keys of ``provisioning.options``, and what they do
OPTIONS: Final[dict[str, str]] = {
    "served_model": "the model's name at the server; without it the pool's `model`",
    "api_key_env": "name of the environment variable that holds the server's key, sent as a bearer token",
    "headers": "more headers of each request",
    "headers_env": "more headers, as names of environment variables that hold their values",
    "ca_file": "certificates that the server's has to be signed by; without it the system's",
    "dialect": "`openai`, `llamacpp`, `ollama` or `vllm`; without it what the server's list of models shows",
    "workloads": "of `completion`, `chat`, `embedding`, `rerank`; without it what the server has routes for",
    "features": "what it can besides; without it what servers of its dialect can",
    "native_n": "whether it is asked for several answers at once",
    "max_tokens_field": "`max_tokens` or `max_completion_tokens`, in chats",
    "release_ms": "time after which the slot of a task that was broken off is taken as free",
    "extra_body": "more fields of each request; `null` takes one away",
    "engine_version": "what the server is called in the journal, where it does not tell its version",
}


def split_url(url: str, below: str, name: str) -> tuple[str, str]:
    """The server's own address, and the path of its API there.

    Raises:
        ConfigError: there is none.
    """
    if not url:
        msg = f"{name} starts no server of its own, and there is no url of one that runs"
        remedy = "Say provisioning.mode: external, and its provisioning.url."
        raise ConfigError(msg, field="url", remedy=remedy)
    url = url.rstrip("/")
    path = urlsplit(url).path
    if path.endswith("/v1"):
        return url.removesuffix("/v1"), "/v1"
    if not path:
        return url, "/v1"
    return url, below


def check_options(config: Mapping[str, Any], options: Mapping[str, str], name: str) -> None:
    """See that the keys of ``provisioning.options`` are known to the plugin of this name, and have values that they take.

    Raises:
        ConfigError: one is not, or has not.
    """
    for key in config.get("options") or {}:
        if key not in options:
            near = difflib.get_close_matches(key, options, 1)
            meant = f", did you mean {near[0]!r}?" if near else ";"
            msg = f"provisioning.options.{key} is not known to {name}{meant} It takes {', '.join(options)}"
            raise ConfigError(msg, field=f"provisioning.options.{key}", got=key)
    takes: dict[str, tuple[type | tuple[type, ...], str]] = {
        "headers": (Mapping, "a mapping of names to values"),
        "headers_env": (Mapping, "a mapping of names to environment variables"),
        "extra_body": (Mapping, "a mapping"),
        "features": ((list, tuple), "a list"),
        "workloads": ((list, tuple), "a list"),
        "native_n": (bool, "true or false"),
        "batch_invariant": (bool, "true or false"),
        "release_ms": (int, "a whole number of milliseconds"),
    }
    for key, (types, what) in takes.items():
        value = config.get(key)
        if value is not None and (not isinstance(value, types) or (types is int and isinstance(value, bool))):
            raise ConfigError(
                f"provisioning.options.{key} takes {what}", field=f"provisioning.options.{key}", got=value
            )
    choices = {"dialect": tuple(DIALECTS), "max_tokens_field": ("max_tokens", "max_completion_tokens")}
    for key, known in choices.items():
        value = config.get(key)
        if value and value not in known:
            msg = f"provisioning.options.{key} takes one of {', '.join(known)}"
            raise ConfigError(msg, field=f"provisioning.options.{key}", got=value)


def names_of(config: Mapping[str, Any], key: str, known: Sequence[str]) -> tuple[str, ...] | None:
    """Configured names out of those that are known; ``None`` = none are configured.

    Raises:
        ConfigError: one is not known.
    """
    given = config.get(key)
    if given is None:
        return None
    for name in given:
        if name not in known:
            msg = f"provisioning.options.{key} takes of {', '.join(known)}"
            raise ConfigError(msg, field=f"provisioning.options.{key}", got=name)
    return tuple(given)


def headers_of(config: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Headers of each request, and those of their values that nobody else shall see.

    Raises:
        ConfigError: an environment variable is not set.
    """
    headers = {str(name): str(value) for name, value in (config.get("headers") or {}).items()}
    secrets = [value for value in headers.values() if len(value) >= SECRET_LENGTH]
    variables = {str(name): str(variable) for name, variable in (config.get("headers_env") or {}).items()}
    for name, variable in variables.items():
        secrets.append(_variable(variable, "headers_env"))
        headers[name] = secrets[-1]
    if config.get("api_key_env"):
        secrets.append(_variable(str(config["api_key_env"]), "api_key_env"))
        headers["Authorization"] = f"Bearer {secrets[-1]}"
    return headers, secrets


def _variable(name: str, option: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        msg = f"the environment variable {name} is not set"
        remedy = "Set it to the server's key where the orchestrator is started."
        raise ConfigError(msg, field=f"provisioning.options.{option}", got=name, remedy=remedy)
    return value
