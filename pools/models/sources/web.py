"""One file at an https address."""

from __future__ import annotations

import contextlib
from urllib.parse import unquote, urlsplit

from ..errors import BrokenOffError, StagingError
from ..http import Client, Response
from ..names import checked_path
from ..references import Reference, public
from ..transfer import Listing, RemoteFile


class WebStream:
    """A body of HTTP as a stream of a file."""

    def __init__(self, response: Response, *, etag: str) -> None:
        self._response = response
        self.etag = etag
        if response.status == 206:
            self.offset, self.total = response.content_range
        else:
            self.offset, self.total = 0, response.length

    def read(self, size: int) -> bytes:
        return self._response.read(size)

    def interrupt(self) -> None:
        self._response.interrupt()

    def close(self) -> None:
        self._response.close()


class WebSource:
    """An address that leads to a model's only file."""

    def __init__(self, reference: Reference, client: Client | None = None) -> None:
        self._reference = reference
        self._client = client or Client()

    def listing(self) -> Listing:
        url = self._reference.url
        with contextlib.closing(self._client.open(url, method="HEAD")) as response:
            found = response.status == 200  # else the address is not made for being asked: its file will tell
            _refuse_missing(response, also_405=False)
            file = RemoteFile(
                path=checked_path(unquote(urlsplit(url).path).rsplit("/", 1)[-1]),
                size_bytes=response.length if found else -1,
                etag=response.validator if found else "",
                sha256=self._reference.sha256,
                locator=url,
            )
        return Listing(source_url=public(url), files=[file], revision=file.etag)

    def open(self, file: RemoteFile, offset: int) -> WebStream:
        return open_from(self._client, file.locator, offset, etag=file.etag)


def open_from(
    client: Client,
    url: str,
    offset: int,
    *,
    etag: str = "",
    secrets: dict[str, str] | None = None,
    compare: bool = True,
) -> WebStream:
    """A file from ``offset`` on, or from its start when the server will not do that.

    Args:
        client: makes the request.
        url: of the file.
        offset: bytes that are here already.
        etag: what the content was called when they came.
        secrets: see :meth:`Client.open`.
        compare: the server's ETag is one to compare with ``etag``.

    Raises:
        StagingError, BrokenOffError: as :meth:`Source.open`.
    """
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    if offset and etag.startswith('"'):
        headers["If-Range"] = etag
    response = client.open(url, headers=headers, secrets=secrets)
    try:
        if response.status == 416:
            response.close()
            response = client.open(url, secrets=secrets)
        _refuse_missing(response, also_405=True)
        return WebStream(response, etag=response.validator if compare else "")
    except BaseException:
        response.close()
        raise


def _refuse_missing(response: Response, *, also_405: bool) -> None:
    where = public(response.url)
    if response.status == 404:
        raise StagingError("not-found", f"there is nothing at {where}")
    if response.status == 401:
        raise StagingError("unauthorized", f"{where} asks who you are (401)")
    if response.status in {405, 501} and also_405:
        raise BrokenOffError(f"{where} answers {response.status}", cause="unreachable")
