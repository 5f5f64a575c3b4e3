"""Which conversation a request belongs to: a session, or what its client calls it (SES-1, SES-2).

Agents name their conversations in headers of their own. A session has turns, a time to live and budgets, and a client has
to want that: it sends ``session_id`` in the body, or a header with the id of a session that it has open. Any other name is
affinity only: the task goes where the conversation's KV cache is, and nothing limits how often.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Final, Protocol

import msgspec

from ..core.services.caller import Caller
from ..core.services.container import Services

#: headers that name a conversation, the first that is there counts: ours and LiteLLM's, then what coding agents send
CONVERSATION_HEADERS: Final = (
    "X-Session-Id",
    "x-litellm-session-id",
    "X-Conversation-Id",
    "openai-conversation-id",
    "x-session-affinity",
    "session_id",
    "session-id",
    "conversation_id",
    "x-claude-code-session-id",
    "x-opencode-session",
)
#: for the declarations of routes
CONVERSATION_HELP: Final = {
    "X-Session-Id": "The conversation: the id of a session that is open, or any name, which keeps the conversation where its"
    " KV cache is. " + ", ".join(CONVERSATION_HEADERS[1:]) + " do the same."
}
_NAMES: Final = {name.lower().encode(): None for name in CONVERSATION_HEADERS}
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}").fullmatch


class Conversation(msgspec.Struct, frozen=True, gc=False):
    """What a request belongs to."""

    #: a session, whose turns it counts among; ``None`` = none
    session_id: str | None = None
    #: what the client calls its conversation; "" = nothing
    affinity: str = ""


class Asking(Protocol):
    """What is looked at of a request."""

    caller: Caller

    def headers(self, names: Container[bytes]) -> dict[bytes, str]:
        """Those of some headers that were sent, by their names in lower case."""
        ...


def conversation_of(call: Asking, services: Services, *, session_id: str | None = None, hint: str = "") -> Conversation:
    """The conversation of a request.

    :param session_id: what its body names as its session: that alone opens one.
    :param hint: what its body calls its conversation (``prompt_cache_key``, ``metadata.user_id``), where no header does.
    """
    if session_id is not None:
        return Conversation(session_id=session_id)
    sent = call.headers(_NAMES)
    if sent:
        for name in _NAMES:
            value = sent.get(name)
            if value:
                return _joined(value, call, services) or Conversation(affinity=value)
    return Conversation(affinity=hint)


def _joined(value: str, call: Asking, services: Services) -> Conversation | None:
    """The caller's open session of this id; ``None`` = it has none."""
    if not _UUID(value):
        return None
    journal = services.journal
    for session_id in (value, value.lower()):
        session = journal.head.sessions.by_id.get(session_id)
        if session is not None and session.owner == call.caller.owner and not session.due(journal.now_ns()):
            return Conversation(session_id=session_id)
    return None
