"""Models in OCI registries, over the distribution API (https://github.com/opencontainers/distribution-spec).

A manifest's layers are a model's files: the one with the weights by its media type, others by the title that they
carry. A registry that asks who one is gets an anonymous token from where it says, as for public images.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from ..errors import BrokenOffError, StagingError
from ..http import Client, Response
from ..names import checked_path
from ..references import Reference, is_loopback
from ..transfer import Listing, RemoteFile
from .web import WebStream, open_from

_MANIFESTS: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
#: media types of weights: of Ollama's registry, of Docker's model runner
_GGUF: Final = re.compile(r"^application/vnd\.(ollama\.image\.model|docker\.ai\.gguf\.v\d+|ollama\.model)$")
_TITLE: Final = "org.opencontainers.image.title"
_DIGEST: Final = re.compile(r"^sha256:[0-9a-f]{64}$")
_CHALLENGE: Final = re.compile(r'(realm|service|scope)="([^"]*)"')
_MAX_LAYERS: Final = 1_000


class RegistrySource:
    """A model under a name in a registry."""

    def __init__(self, reference: Reference, client: Client | None = None) -> None:
        host = urlsplit(f"//{reference.url}").hostname or ""
        scheme = "http" if is_loopback(host) else "https"
        self._reference = reference
        self._base = f"{scheme}://{reference.url}/v2/{reference.repository}"
        self._client = client or Client()
        self._secrets: dict[str, str] = {}

    def listing(self) -> Listing:
        reference = self._reference
        url = f"{self._base}/manifests/{quote(reference.revision, safe=':')}"
        with contextlib.closing(self._get(url, {"Accept": ", ".join(_MANIFESTS)})) as response:
            if response.status != 200:
                raise StagingError("not-found", f"{reference.text}: the registry has no such model ({response.status})")
            body = response.text()
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        if reference.revision.startswith("sha256:") and digest != reference.revision:
            raise StagingError("digest-mismatch", f"{reference.text}: the registry sent another manifest")
        return Listing(
            source_url=f"oci:{reference.url}/{reference.repository}",
            revision=digest,
            immutable=reference.revision == digest,
            files=self._files(body),
        )

    def open(self, file: RemoteFile, offset: int) -> WebStream:
        if not self._secrets:  # a part is taken up again by a new object: ask who one is before the bytes
            self._get(file.locator, {}, method="HEAD").close()
        return open_from(self._client, file.locator, offset, secrets=self._secrets, compare=False)

    def _files(self, body: bytes) -> list[RemoteFile]:
        where = self._reference.text
        try:
            layers = json.loads(body)["layers"]
            found = [self._file(layer) for layer in layers[:_MAX_LAYERS]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StagingError("bad-model", f"{where}: the registry's manifest is none of a model") from error
        weights = [file for file, is_weights in found if is_weights]
        named = [file for file, _ in found if file.path]
        if weights and not any(file.path.lower().endswith(".gguf") for file in named):
            name = self._reference.repository.rsplit("/", 1)[-1]
            if len(weights) > 1:
                raise StagingError("unsupported", f"{where} holds {len(weights)} layers of weights without names")
            first = weights[0]
            return [
                RemoteFile(
                    path=f"{name}.gguf",
                    size_bytes=first.size_bytes,
                    etag=first.etag,
                    sha256=first.sha256,
                    locator=first.locator,
                )
            ]
        gguf = [file for file in named if file.path.lower().endswith(".gguf")]
        files = gguf or named
        if not files:
            raise StagingError("bad-model", f"{where}: none of its {len(found)} layers is a model's file")
        return files

    def _file(self, layer: dict[str, Any]) -> tuple[RemoteFile, bool]:
        digest, size = layer["digest"], layer["size"]
        if not isinstance(digest, str) or not _DIGEST.match(digest) or not isinstance(size, int) or size < 0:
            raise ValueError(digest)
        title = (layer.get("annotations") or {}).get(_TITLE, "")
        return RemoteFile(
            path=checked_path(title) if title else "",
            size_bytes=size,
            etag=digest,
            sha256=digest.removeprefix("sha256:"),
            locator=f"{self._base}/blobs/{digest}",
        ), bool(_GGUF.match(str(layer.get("mediaType", ""))))

    def _get(self, url: str, headers: dict[str, str], *, method: str = "GET") -> Response:
        response = self._client.open(url, method=method, headers=headers, secrets=self._secrets)
        if response.status != 401 or self._secrets:
            return response
        challenge = response.header("WWW-Authenticate")
        response.close()
        self._secrets = {"Authorization": f"Bearer {self._token(challenge)}"}
        return self._client.open(url, method=method, headers=headers, secrets=self._secrets)

    def _token(self, challenge: str) -> str:
        said = dict(_CHALLENGE.findall(challenge))
        realm = said.get("realm", "")
        if not challenge.lower().startswith("bearer ") or urlsplit(realm).scheme not in {"https", "http"}:
            raise StagingError("unauthorized", f"{self._reference.text}: the registry asks who you are")
        if urlsplit(realm).scheme == "http" and not is_loopback(urlsplit(realm).hostname or ""):
            raise StagingError("unauthorized", f"{self._reference.text}: the registry's tokens come without TLS")
        query = urlencode({key: said[key] for key in ("service", "scope") if key in said})
        with contextlib.closing(self._client.open(f"{realm}?{query}" if query else realm)) as response:
            if response.status != 200:
                raise StagingError(
                    "unauthorized", f"{self._reference.text}: the registry gives no token ({response.status})"
                )
            try:
                answer = json.loads(response.text())
                token = answer.get("token") or answer.get("access_token")
            except (ValueError, AttributeError) as error:
                raise BrokenOffError("the registry's token is not understood", cause="unreachable") from error
        if not isinstance(token, str) or not token.isprintable():
            raise StagingError("unauthorized", f"{self._reference.text}: the registry gives no token")
        return token
