"""Repositories of the Hugging Face hub, asked through ``huggingface_hub`` (``pip install 'llama-orch[models]'``).

The library knows endpoint, token, redirects of renamed repositories and errors; bytes come over the client that
resumes and digests while it writes, so that a file is written once.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from ..errors import BrokenOffError, StagingError
from ..http import Client
from ..names import checked_path
from ..references import Reference, public
from ..transfer import Listing, RemoteFile
from .web import WebStream, open_from

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_COMMIT: Final = re.compile(r"^[0-9a-f]{40}$")
_PART: Final = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
#: what llama.cpp takes when several are there and none is named
_USUAL: Final = "Q4_K_M"
#: of a repository without GGUF files: what engines read
_MODEL_SUFFIXES: Final = frozenset({".safetensors", ".json", ".model", ".txt", ".jinja", ".tiktoken"})
_METADATA_TIMEOUT_S: Final = 20.0


class HubSource:
    """One model of a repository.

    Args:
        reference: which.
        endpoint: of the hub; the library's own by default.
        token: of whoever asks; by default the one that the library finds.
        client: fetches.
    """

    def __init__(
        self,
        reference: Reference,
        *,
        endpoint: str | None = None,
        token: str | None = None,
        client: Client | None = None,
    ) -> None:
        try:
            import huggingface_hub
        except ImportError as error:
            raise StagingError(
                "missing-package",
                "hf: needs the package huggingface_hub, which is not installed",
                remedy="python -m pip install 'llama-orch[models]'",
            ) from error
        self._reference = reference
        self._client = client or Client()
        self._token: str | None = token or huggingface_hub.get_token()
        self._api: HfApi = huggingface_hub.HfApi(
            endpoint=endpoint, token=self._token or False, library_name="llama-orch"
        )

    def listing(self) -> Listing:
        reference = self._reference
        info = self._ask()
        commit = info.sha or ""
        if not _COMMIT.match(commit):
            raise StagingError("unreachable", f"the hub tells no commit of {reference.repository}")
        names = _chosen([sibling.rfilename for sibling in info.siblings or []], reference)
        files = [self._file(sibling, commit) for sibling in info.siblings or [] if sibling.rfilename in names]
        return Listing(
            source_url=public(f"{self._api.endpoint}/{reference.repository}"),
            revision=commit,
            immutable=reference.revision == commit,
            files=files,
        )

    def open(self, file: RemoteFile, offset: int) -> WebStream:
        # The hub and the store that it redirects to name one content differently: the digest tells whether it fits.
        secrets = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        return open_from(self._client, file.locator, offset, secrets=secrets, compare=False)

    def _file(self, sibling: Any, commit: str) -> RemoteFile:
        from huggingface_hub import hf_hub_url

        lfs = sibling.lfs
        return RemoteFile(
            path=checked_path(sibling.rfilename),
            size_bytes=_size(lfs.size if lfs else sibling.size),
            etag=str(lfs.sha256 if lfs else sibling.blob_id or ""),
            sha256=_hex(lfs.sha256, 64) if lfs else "",
            git_sha1=_hex(sibling.blob_id, 40) if not lfs else "",
            locator=hf_hub_url(
                self._reference.repository, sibling.rfilename, revision=commit, endpoint=self._api.endpoint
            ),
        )

    def _ask(self) -> Any:
        from huggingface_hub import errors

        reference = self._reference
        what = f"{reference.repository}@{reference.revision}" if reference.revision else reference.repository
        try:
            return self._api.model_info(
                reference.repository,
                revision=reference.revision or None,
                files_metadata=True,
                timeout=_METADATA_TIMEOUT_S,
            )
        except errors.GatedRepoError as error:
            raise StagingError("unauthorized", f"hf:{what} is gated: its terms have to be accepted") from error
        except errors.RevisionNotFoundError as error:
            raise StagingError(
                "not-found", f"hf:{reference.repository} has no revision {reference.revision!r}"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise StagingError("not-found", f"the hub has no model {what}, or not for you") from error
        except errors.OfflineModeIsEnabled as error:
            raise StagingError(
                "offline", f"hf:{what}: HF_HUB_OFFLINE is set", remedy="Unset HF_HUB_OFFLINE, and do it again."
            ) from error
        except errors.HFValidationError as error:
            raise StagingError("bad-reference", f"hf:{what}: {str(error)[:200]}") from error
        except errors.HfHubHTTPError as error:
            status = getattr(getattr(error, "response", None), "status_code", 0)
            if status in {401, 403}:
                raise StagingError("unauthorized", f"the hub refuses access to {what} ({status})") from error
            raise BrokenOffError(f"the hub answers {status or 'nothing'}", cause="unreachable") from error
        except Exception as error:  # of whichever HTTP client the library uses, or of an answer that is none of a hub
            raise BrokenOffError(
                f"the hub cannot be asked: {type(error).__name__}: {str(error)[:200]}", cause="unreachable"
            ) from error


def _chosen(names: list[str], reference: Reference) -> set[str]:
    """The files that make the model that a reference means.

    Raises:
        StagingError: ``not-found``: there is no such file, or several models of which none is named.
    """
    where = f"hf:{reference.repository}"
    if reference.file:
        if reference.file not in names:
            raise StagingError("not-found", f"{where} has no file {reference.file!r}", files=_some(names))
        return _all_parts(reference.file, names)
    models = [
        name for name in names if name.lower().endswith(".gguf") and "mmproj" not in PurePosixPath(name).name.lower()
    ]
    if not models and not reference.variant:
        return {name for name in names if "/" not in name and PurePosixPath(name).suffix in _MODEL_SUFFIXES}
    sets = {frozenset(_all_parts(name, names)) for name in models}
    wanted = reference.variant or (_USUAL if len(sets) > 1 else "")
    if wanted:
        named = re.compile(rf"(?:^|[-_./]){re.escape(wanted)}(?:[-_./]|$)", re.IGNORECASE)
        sets = {one for one in sets if all(named.search(name) for name in one)}
    if len(sets) == 1:
        return set(next(iter(sets)))
    what = f"no model {wanted!r}" if not sets else f"{len(sets)} models"
    raise StagingError(
        "not-found",
        f"{where} holds {what} among its {len(models)} GGUF files: {', '.join(_some(models))}",
        remedy=f"Name one of the files, e.g. {where}/{models[0]}" if models else "",
    )


def _all_parts(name: str, names: list[str]) -> set[str]:
    """A file, with the other parts when it is one of a split model."""
    found = _PART.search(name)
    if found is None:
        return {name}
    stem, count = name[: found.start()], int(found[2])
    parts = {
        one
        for one in names
        if one.startswith(stem) and (other := _PART.search(one[len(stem) :])) and int(other[2]) == count
    }
    if len(parts) != count:
        raise StagingError("not-found", f"{name} is one of {count} parts, and {len(parts)} of them are there")
    return parts


def _some(names: list[str]) -> list[str]:
    return sorted(names)[:20]


def _size(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else -1


def _hex(value: object, length: int) -> str:
    return value if isinstance(value, str) and re.fullmatch(rf"[0-9a-f]{{{length}}}", value) else ""
