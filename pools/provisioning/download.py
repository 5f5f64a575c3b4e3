"""Fetches a file by HTTP(S) or from this machine: resumed where it broke off, bounded, held against its digest."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

from .problems import Progress, ProvisionError, Stop, disk_problem, never, silent

#: no engine is larger
MAX_BYTES: Final = 8 * 1024**3
TRIES: Final = 5
TIMEOUT_S: Final = 60.0
_PIECE: Final = 1024 * 1024
#: answers that may be others a moment later
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


def is_local(url: str) -> bool:
    """Whether it names a file of this machine."""
    return url.startswith(("/", "~", "file:"))


def without_credentials(url: str) -> str:
    """The URL as it may be written down: without user, password, query."""
    parts = urllib.parse.urlsplit(url)
    if not parts.netloc:
        return url
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def fetch(
    url: str,
    part: Path,
    *,
    sha256: str,
    limit_bytes: int = MAX_BYTES,
    progress: Progress = silent,
    stop: Stop = never,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Bring a file to ``part``, beginning where an earlier try ended.

    Args:
        url: ``https://…``, ``http://…``, ``file:…`` or an absolute path.
        part: where it goes; an earlier try's beginning may be there.
        sha256: of the whole file, 64 hex digits.
        limit_bytes: more is refused.
        progress: hears of bytes.
        stop: asked now and then; true = give up.
        pause: waits between two tries, seconds.

    Raises:
        ProvisionError: ``fetch-failed``; ``wrong-digest``, then ``part`` is gone; ``bad-configuration``; ``cancelled``.
    """
    wanted = sha256.lower()
    shown = without_credentials(url)
    if is_local(url):
        _copy(_local(url), part, limit_bytes, stop)
        got = _digest(part)
    else:
        if urllib.parse.urlsplit(url).scheme not in {"http", "https"}:
            msg = f"provisioning.url got {shown!r}, takes https://…, http://…, file:… or an absolute path"
            raise ProvisionError("bad-configuration", msg)
        resumed = part.exists()
        _download(url, part, limit_bytes, progress, stop, pause)
        got = _digest(part)
        if got != wanted and resumed:
            # What lay there was the beginning of something else.
            part.unlink()
            _download(url, part, limit_bytes, progress, stop, pause)
            got = _digest(part)
    if got != wanted:
        part.unlink()
        raise ProvisionError("wrong-digest", f"{shown} has the SHA-256 digest {got}; {wanted} is wanted")


def _local(url: str) -> Path:
    path = urllib.request.url2pathname(urllib.parse.urlsplit(url).path) if url.startswith("file:") else url
    return Path(path).expanduser()


def _copy(path: Path, part: Path, limit_bytes: int, stop: Stop) -> None:
    try:
        with path.open("rb") as source, _opened(part, fresh=True) as target:
            _pour(source, target, 0, limit_bytes, 0, silent, stop)
    except FileNotFoundError as error:
        raise ProvisionError("fetch-failed", f"there is no file {path}") from error
    except OSError as error:
        raise disk_problem(error) from error


def _download(
    url: str, part: Path, limit_bytes: int, progress: Progress, stop: Stop, pause: Callable[[float], None]
) -> None:
    """All bytes, over several connections if need be."""
    opener = urllib.request.build_opener(_SafeRedirects)
    shown, said = without_credentials(url), ""
    for number in range(TRIES):
        if number:
            pause(min(0.25 * 2**number, 8.0))
        if stop():
            break
        have = part.stat().st_size if part.exists() else 0
        request = urllib.request.Request(url, headers={"User-Agent": "llama-orch", "Accept-Encoding": "identity"})  # noqa: S310 - the scheme was checked
        if have:
            request.add_header("Range", f"bytes={have}-")
        try:
            with opener.open(request, timeout=TIMEOUT_S) as answer:
                begin = _begin(answer, have)
                length = int(answer.headers.get("Content-Length") or 0)
                with _opened(part, fresh=begin == 0) as target:
                    size = _pour(answer, target, begin, limit_bytes, begin + length if length else 0, progress, stop)
                if not length or size == begin + length:
                    return
                said = f"it broke off after {size} of {begin + length} bytes"
        except urllib.error.HTTPError as error:
            error.close()
            said = f"HTTP {error.code} {error.reason}"
            if error.code == 416 and have:  # it is shorter than what lies here, or all of it lies here
                return
            if error.code not in _PASSING:
                raise ProvisionError("fetch-failed", f"{shown} cannot be fetched: {said}") from error
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            said = str(getattr(error, "reason", "")) or str(error) or type(error).__name__
        except OSError as error:
            raise disk_problem(error) from error
    if stop():
        raise ProvisionError("cancelled", f"fetching {shown} was given up")
    raise ProvisionError("fetch-failed", f"{shown} cannot be fetched, tried {TRIES} times: {said}")


def _begin(answer: Any, have: int) -> int:
    """Which byte the answer begins with."""
    if answer.status != 206:
        return 0
    told = str(answer.headers.get("Content-Range", "")).removeprefix("bytes ").partition("-")[0].strip()
    if told != str(have):
        msg = f"asked for bytes from {have}, got Content-Range {answer.headers.get('Content-Range')!r}"
        raise ConnectionError(msg)
    return have


def _pour(
    source: IO[bytes] | Any,
    target: IO[bytes],
    size: int,
    limit_bytes: int,
    total: int,
    progress: Progress,
    stop: Stop,
) -> int:
    """Copy; the size of what then lies there."""
    while True:
        if stop():
            raise ProvisionError("cancelled", "fetching was given up")
        if max(size, total) > limit_bytes:
            target.truncate(0)
            raise ProvisionError("bad-archive", f"it is larger than {limit_bytes} bytes, which no engine is")
        piece = source.read(_PIECE)
        if not piece:
            return size
        target.write(piece)
        size += len(piece)
        progress("download", size, total, "bytes")


def _opened(part: Path, *, fresh: bool) -> IO[bytes]:
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if fresh else os.O_APPEND)
    return os.fdopen(os.open(part, flags, 0o600), "wb" if fresh else "ab")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows to HTTP servers alone, and never from an encrypted address to one that is not."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = urllib.parse.urlsplit(req.full_url).scheme, urllib.parse.urlsplit(newurl).scheme
        if new not in {"http", "https"} or (old == "https" and new == "http"):
            raise urllib.error.HTTPError(newurl, code, f"refused to follow a redirect from {old} to {new}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)
