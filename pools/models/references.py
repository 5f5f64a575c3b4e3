"""What a model may be called: paths, and addresses of where it can be fetched from (MOD-1)."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from pathlib import Path
from typing import Final, Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit

import msgspec

from .errors import StagingError
from .names import checked_path

Kind = Literal["file", "hub", "web", "objects", "oci"]

_SCHEME: Final = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):")
_REPOSITORY: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")
_REVISION: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,254}$")
_VARIANT: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
_OCI: Final = re.compile(
    r"^(?P<registry>(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(?::\d{1,5})?)/(?P<name>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?$"
)
#: parameters of a query that give access, and change from call to call
_CREDENTIAL: Final = re.compile(
    r"(?i)^(x-amz-|x-goog-|x-ms-)|token|signature|secret|passw|credential|api_?key|auth|expires|^(sig|key|se|sp|sv|sr|st|spr|key-pair-id|policy)$"
)
#: fsspec's names that do not lead to somebody else's store, or that open what an address should not
_NOT_REMOTE: Final = frozenset(
    "arrow_hdfs asynclocal blockcache cached dir filecache generic git jlab jupyter libarchive local reference root "
    "simplecache tar zip".split()
)


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """One model by where it comes from."""

    kind: Kind
    #: as it is known in the cache: the same text is the same model; without credentials
    text: str
    #: of ``file``
    path: str = ""
    #: of ``hub`` "org/name", of ``oci`` the name in its registry
    repository: str = ""
    #: of ``hub``: branch, tag or commit, "" = the default branch; of ``oci`` its tag or digest
    revision: str = ""
    #: of ``hub``: one file, or "" = the model that the repository holds
    file: str = ""
    #: of ``hub``: which quantization of several, e.g. "Q4_K_M"
    variant: str = ""
    #: of ``web`` and ``objects`` with everything that is needed to fetch it, of ``oci`` the registry
    url: str = msgspec.field(default="", name="url")
    #: 64 hex digits, where the reference says them
    sha256: str = ""

    @property
    def id(self) -> str:
        """Name of the model's place in the cache."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def __repr__(self) -> str:
        return f"Reference({self.text!r})"  # never `url`, which may hold credentials


def is_remote(text: str) -> bool:
    """Whether a model's text is an address rather than a path, or a name that an engine knows (``llama3:8b``)."""
    found = _SCHEME.match(text)
    return found is not None and found[1].lower() != "file" and (found[1].lower() in {"hf", "oci"} or "://" in text)


def default_name(text: str) -> str:
    """The name that a model gets when nobody gives it one: of its file, else of its repository.

    Raises:
        StagingError: ``bad-reference``, ``unsupported``: it is an address, and none that can be used.
    """
    if not is_remote(text):
        return Path(text.removeprefix("file:")).stem
    reference = parse(text)
    last = reference.file or reference.repository or urlsplit(reference.url).path.rstrip("/")
    name = last.rsplit("/", 1)[-1]
    name = name.removesuffix(".gguf")
    return f"{name}-{reference.variant}" if reference.variant else name


def parse(text: str, *, base_dir: Path | None = None) -> Reference:
    """What a text refers to.

    Args:
        text: as configured or typed.
        base_dir: relative paths are relative to it; the working directory by default.

    Raises:
        StagingError: ``bad-reference`` or ``unsupported``, with what it got and what it takes.
    """
    if not text or "\0" in text or text != text.strip():
        raise StagingError("bad-reference", f"got {text!r}, which is no reference to a model")
    try:
        return _parse(text, base_dir)
    except ValueError as error:  # of the library that takes addresses apart
        raise StagingError("bad-reference", f"got {public_or_scheme(text)}, which is no address: {error}") from error


def _parse(text: str, base_dir: Path | None) -> Reference:
    found = _SCHEME.match(text)
    scheme = found[1].lower() if found else "file"
    if scheme == "file":
        return _file(text, base_dir)
    if scheme == "hf":
        return _hub(text)
    if scheme in {"https", "http"}:
        return _web(text, scheme)
    if scheme == "oci":
        return _oci(text)
    if scheme in _NOT_REMOTE or "::" in text:
        raise StagingError("unsupported", f"{public(text)}: {scheme}: leads to no store of models")
    if "://" not in text:
        raise StagingError("bad-reference", f"got {text!r}; {scheme}: is followed by //, e.g. {scheme}://bucket/key")
    return Reference(kind="objects", text=_named(text), url=_without_digest(text), sha256=_fragment_digest(text))


def public(url: str) -> str:
    """An address without user, password, query and fragment: for logs, records and people."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def is_loopback(host: str) -> bool:
    """Whether a host's name is this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _file(text: str, base_dir: Path | None) -> Reference:
    named = text[5:] if text[:5].lower() == "file:" else text
    if named.startswith("//"):  # file:///path of RFC 8089
        parts = urlsplit(f"file:{named}")
        if parts.netloc not in {"", "localhost"}:
            raise StagingError("bad-reference", f"got {text!r}, which names another machine; file: is on this one")
        named = unquote(parts.path)
    if not named:
        raise StagingError("bad-reference", "file: is followed by a path")
    try:
        path = ((base_dir or Path.cwd()) / Path(named).expanduser()).absolute()
    except RuntimeError as error:
        raise StagingError("bad-reference", f"got {text!r}; there is no such user, or no home is known") from error
    return Reference(kind="file", text=f"file:{path}", path=str(path))


def _hub(text: str) -> Reference:
    rest, _, digest = text[3:].removeprefix("//").partition("#")
    head = rest.split("/", 2)
    if len(head) < 2:
        raise StagingError("bad-reference", f"got {text!r}; hf: is followed by org/repo[@revision][/file]")
    file = head[2] if len(head) == 3 else ""
    name, _, revision = head[1].partition("@")
    name, _, variant = name.partition(":")
    if not variant:
        revision, _, variant = revision.partition(":")
    repository, revision = f"{head[0]}/{name}", unquote(revision)
    wrong = (
        not _REPOSITORY.match(repository)
        or ".." in repository
        or (revision and (not _REVISION.match(revision) or ".." in revision))
        or (variant and not _VARIANT.match(variant))
        or (variant and file)
        or rest.endswith(("/", "@", ":"))
    )
    if wrong:
        raise StagingError(
            "bad-reference",
            f"got {text!r}; hf: is followed by org/repo[@revision][/file], or org/repo:QUANTIZATION",
        )
    if file:
        checked_path(file)
    plain = f"hf:{repository}" + (f"@{quote(revision, safe='')}" if revision else "")
    plain += f":{variant}" if variant else f"/{file}" if file else ""
    return Reference(
        kind="hub",
        text=plain,
        repository=repository,
        revision=revision,
        file=file,
        variant=variant,
        sha256=_digest_of(digest, text),
    )


def _web(text: str, scheme: str) -> Reference:
    parts = urlsplit(text)
    host = parts.hostname or ""
    _ = parts.port  # it is a number, or this raises
    if not host:
        raise StagingError("bad-reference", f"got {public(text)!r}; {scheme}:// is followed by a host and a path")
    if scheme == "http" and not is_loopback(host):
        raise StagingError("bad-reference", f"{public(text)}: plain http is for this machine only", remedy="Use https.")
    return Reference(kind="web", text=_named(text), url=_without_digest(text), sha256=_fragment_digest(text))


def _named(url: str) -> str:
    """The public address; a query that says which file it is stands in it as a digest, signatures and keys do not."""
    said = [item for item in parse_qsl(urlsplit(url).query, keep_blank_values=True) if not _CREDENTIAL.search(item[0])]
    return public(url) + (f"?{hashlib.sha256(repr(sorted(said)).encode()).hexdigest()[:12]}" if said else "")


def _oci(text: str) -> Reference:
    rest, _, digest = text[4:].removeprefix("//").partition("#")
    found = _OCI.match(rest)
    if found is None:
        raise StagingError(
            "bad-reference", f"got {text!r}; oci: is followed by registry/name[:tag] or registry/name@sha256:…"
        )
    return Reference(
        kind="oci",
        text=f"oci:{rest}",
        repository=found["name"],
        revision=found["digest"] or found["tag"] or "latest",
        url=found["registry"],
        sha256=_digest_of(digest, text),
    )


def public_or_scheme(text: str) -> str:
    """An address that may be malformed, for a message."""
    try:
        return public(text)
    except ValueError:
        return text.split(":", 1)[0] + ":…"


def _without_digest(url: str) -> str:
    return url.split("#", 1)[0]


def _fragment_digest(url: str) -> str:
    return _digest_of(url.partition("#")[2], public(url))


def _digest_of(fragment: str, where: str) -> str:
    """``sha256=<64 hex digits>`` behind a reference's #."""
    if not fragment:
        return ""
    name, _, value = fragment.partition("=")
    if name != "sha256" or not re.fullmatch(r"[0-9A-Fa-f]{64}", value):
        raise StagingError("bad-reference", f"{where}: what stands behind # is sha256= and 64 hex digits, if anything")
    return value.lower()
