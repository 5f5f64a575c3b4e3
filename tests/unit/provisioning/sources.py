"""A git repository of a small CMake project that builds a stand-in for `llama-server`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

CMAKE = """
cmake_minimum_required(VERSION 3.14)
project(standin C)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
option(GGML_CUDA "build for GPUs" OFF)
option(BREAK "do not compile" OFF)
add_executable(llama-server main.c)
if(GGML_CUDA)
  add_library(ggml-cuda SHARED cuda.c)
  target_link_libraries(llama-server PRIVATE ggml-cuda)
  target_compile_definitions(llama-server PRIVATE CUDA)
endif()
if(BREAK)
  target_compile_definitions(llama-server PRIVATE BREAK)
endif()
if(DEFINED WAIT_FOR)
  add_custom_command(TARGET llama-server PRE_BUILD COMMAND cat ${WAIT_FOR})
endif()
"""
MAIN = r"""
#include <stdio.h>
#include <string.h>
#ifdef CUDA
int devices(void);
#endif
#ifdef BREAK
#error this was asked to break
#endif
int main(int count, char **words) {
#ifdef CUDA
    if (devices() != 2) return 3;
#endif
    if (count > 1 && !strcmp(words[1], "--version")) { fprintf(stderr, "version: VERSION (abc)\n"); return 0; }
    if (count > 1 && !strcmp(words[1], "--help")) { puts("--metrics --slots --fit"); return 0; }
    return 9;
}
"""


def git(place: Path, *arguments: str) -> str:
    identity = {
        f"GIT_{who}_{what}": "test@example.test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    environment = {**os.environ, **identity, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        ["git", "-C", str(place), *arguments], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def commit(place: Path, version: str) -> str:
    """The project at a version, committed; the commit."""
    (place / "CMakeLists.txt").write_text(CMAKE)
    (place / "main.c").write_text(MAIN.replace("VERSION", version))
    (place / "cuda.c").write_text("int devices(void) { return 2; }\n")
    git(place, "add", ".")
    git(place, "commit", "--quiet", "-m", version)
    return git(place, "rev-parse", "HEAD")


def repository(place: Path) -> Path:
    """Version 1 with the tag `v1`, on the branch `main`."""
    place.mkdir()
    git(place, "init", "--quiet", "-b", "main")
    commit(place, "1")
    git(place, "tag", "-a", "v1", "-m", "one")
    return place
