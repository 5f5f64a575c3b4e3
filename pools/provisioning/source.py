"""Builds an engine from its sources: a commit of a git repository, CMake, one directory that is gone afterwards."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from .building import Workshop
from .download import without_credentials
from .problems import Progress, ProvisionError, Stop

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_REF: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,200}")
_FLAG: Final = re.compile(r"-D[A-Za-z0-9_]+(:[A-Z]+)?=[^\x00-\x1f]*")
#: before the configured ones, which win
DEFAULT_FLAGS: Final = (
    "-DCMAKE_BUILD_TYPE=Release",
    # One program: nothing to find when it is moved to its place.
    "-DBUILD_SHARED_LIBS=OFF",
    "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    # It fetches nothing: no page for browsers while it is built, no models while it runs.
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
)
#: git asks nobody, runs no hook and no helper of the repository, and speaks only these protocols
_GIT_ENVIRONMENT: Final = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
}
_GIT_SAFE: Final = ("-c", "core.hooksPath=/dev/null", "-c", "safe.directory=*", "-c", "protocol.version=2")


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """What is built."""

    git: str
    ref: str
    flags: tuple[str, ...] = ()


def checked(git: str, ref: str, flags: Sequence[str]) -> Sources:
    """Sources that are safe to name to git and CMake. :raises ProvisionError: ``bad-configuration``."""
    if not git or git.startswith("-") or re.search(r"[\x00-\x1f]|^\w+::", git):
        raise ProvisionError(
            "bad-configuration", f"provisioning.git got {git!r}, takes the URL or path of a repository"
        )
    if re.match(r"[a-z+]+://[^/@]*:[^/@]*@", git):
        shown = without_credentials(git)
        raise ProvisionError(
            "bad-configuration", f"provisioning.git holds a password for {shown}", "Use an SSH key, or a local clone."
        )
    if not _REF.fullmatch(ref) or ".." in ref:
        raise ProvisionError("bad-configuration", f"provisioning.ref got {ref!r}, takes a commit, tag or branch")
    for flag in flags:
        if not _FLAG.fullmatch(flag):
            msg = f"provisioning.cmake_flags got {flag!r}, takes definitions such as -DGGML_CUDA=ON, one an entry"
            raise ProvisionError("bad-configuration", msg)
    return Sources(git=str(Path(git).expanduser()) if git.startswith("~") else git, ref=ref, flags=tuple(flags))


class SourceBuild:
    """One build in a directory.

    Args:
        place: an empty directory; everything happens in it.
        log: what git, CMake and compilers say.
        environment: of this program.
        marker: what marks the processes.
    """

    def __init__(
        self,
        sources: Sources,
        place: Path,
        log: Path,
        *,
        environment: Mapping[str, str],
        marker: str,
        progress: Progress,
        stop: Stop,
    ) -> None:
        self._sources = sources
        self._place = place
        self._log = log
        self._progress = progress
        self._stop = stop
        self._workshop = Workshop(environment, place / "home", marker)

    def commit(self) -> str:
        """The commit that the ref names now. :raises ProvisionError: ``fetch-failed``: there is none."""
        sources = self._sources
        if _COMMIT.fullmatch(sources.ref):
            return sources.ref
        self._progress("resolve", 0, 0, "")
        shown = without_credentials(sources.git)
        said = self._git(
            "ls-remote", "--", sources.git, sources.ref, f"{sources.ref}^{{}}", what=f"git ls-remote {shown}"
        )
        lines = [line.split("\t", 1) for line in said.splitlines() if _COMMIT.match(line) and "\t" in line]
        found = {name: commit for commit, name in lines}
        # What an annotated tag points to comes before the tag itself, tags before branches.
        for name in (
            f"refs/tags/{sources.ref}^{{}}",
            f"refs/tags/{sources.ref}",
            f"refs/heads/{sources.ref}",
            sources.ref,
        ):
            if name in found:
                return found[name]
        raise ProvisionError(
            "fetch-failed", f"{shown} has no tag or branch {sources.ref!r}", "Correct provisioning.ref."
        )

    def build(self, commit: str, program: str) -> Path:
        """Fetch that commit, build its server, and put together what runs.

        Returns:
            The directory of the program and its libraries, within ``place``.

        Raises:
            ProvisionError: ``fetch-failed``, ``build-failed`` with the end of the log, ``missing-tool``, ``cancelled``.
        """
        cmake = self._workshop.tool("cmake")
        self._workshop.tool("c++", "g++", "clang++", "cc")
        tree, built = self._place / "sources", self._place / "build"
        self._fetch(tree, commit)
        self._progress("configure", 0, 0, "")
        generator = ["-G", "Ninja"] if self._has("ninja") else []
        flags = [*DEFAULT_FLAGS, *self._sources.flags]
        self._run([cmake, "-S", str(tree), "-B", str(built), *generator, *flags], what="cmake (configure)")
        self._progress("build", 0, 0, "")
        jobs = str(max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))
        self._run(
            [cmake, "--build", str(built), "--config", "Release", "--target", program, "--parallel", jobs],
            what="cmake --build",
        )
        return self._collect(built, program)

    # --- inside

    def _has(self, name: str) -> bool:
        try:
            self._workshop.tool(name)
        except ProvisionError:
            return False
        return True

    def _fetch(self, tree: Path, commit: str) -> None:
        """One commit without its history where the server gives it, else the ref with its history."""
        git, sources = self._sources.git, self._sources
        shown = without_credentials(git)
        self._progress("fetch", 0, 0, "")
        self._git("init", "--quiet", str(tree), what="git init")
        into = ("-C", str(tree))
        try:
            self._git(*into, "fetch", "--depth", "1", "--", git, commit, what=f"git fetch {shown}")
        except ProvisionError as error:
            if error.cause == "cancelled":
                raise
            self._git(*into, "fetch", "--", git, sources.ref, what=f"git fetch {shown}")
        self._git(*into, "checkout", "--quiet", "--detach", commit, what=f"git checkout {commit[:12]}")
        got = self._git(*into, "rev-parse", "HEAD", what="git rev-parse").strip()
        if got != commit:
            raise ProvisionError("wrong-digest", f"{shown} gave the commit {got}; {commit} is wanted")

    def _collect(self, built: Path, program: str) -> Path:
        """The program and the libraries that were built, in one directory."""
        found = sorted((path for path in built.rglob(program) if path.is_file()), key=lambda path: len(path.parts))
        if not found:
            raise ProvisionError("build-failed", f"the build made no {program}", "Name sources that build it.")
        tree = self._place / "tree"
        tree.mkdir(mode=0o700)
        shutil.copy2(found[0], tree / program)
        for library in sorted(built.rglob("*")):
            if re.search(r"\.(so(\.\d+)*|dylib)$", library.name) and not (tree / library.name).exists():
                shutil.copy2(library, tree / library.name)  # follows links: each name is a file of its own
        return tree

    def _git(self, *arguments: str, what: str) -> str:
        git = self._workshop.tool("git")
        argv = [git, *_GIT_SAFE, *arguments]
        return self._workshop.run(
            argv, log=self._log, what=what, stop=self._stop, cause="fetch-failed", environment=_GIT_ENVIRONMENT
        )

    def _run(self, argv: Sequence[str], *, what: str) -> None:
        self._workshop.run(argv, log=self._log, what=what, stop=self._stop)
