"""A chat template that the configuration brings, for engines that have none to ask for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from .. import ConfigError
from ._chat_template import ChatTemplate, TemplateError

_FIELD: Final = "provisioning.options.chat_template"


def own_template(config: Mapping[str, Any]) -> tuple[str, ChatTemplate | None]:
    """The template's source and what renders it; ("", ``None``) where the configuration has none.

    Args:
        config: optional ``chat_template`` (Jinja text, or the path of a file that holds it), ``bos_token``, ``eos_token``.

    Raises:
        ConfigError: the file cannot be read, or the template does not compile.
    """
    source = str(config.get("chat_template") or "")
    if not source:
        return "", None
    if "{%" not in source and "{{" not in source:
        path = Path(source).expanduser()
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            remedy = "Name a file that holds the model's Jinja template, or write the template itself."
            msg = f"the chat template cannot be read: {error}"
            raise ConfigError(msg, field=_FIELD, got=str(path), remedy=remedy) from error
    bos, eos = (str(config.get(name) or "") for name in ("bos_token", "eos_token"))
    try:
        return source, ChatTemplate(source, bos_token=bos, eos_token=eos)
    except TemplateError as error:
        raise ConfigError(str(error), field=_FIELD, got=source[:200]) from error
