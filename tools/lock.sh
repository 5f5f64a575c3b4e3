#!/usr/bin/env bash
# Resolves requirements/*.txt again from pyproject.toml: newest versions, every platform, Python 3.11
# and newer, with hashes. No index address is written: that is a matter of the machine that installs.
# The extra `haiku-training` is left out: PyTorch alone is larger than all the rest together.
set -euo pipefail
cd "$(dirname "$0")/.."
resolve() {
    .venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --no-header --no-annotate "$@"
}
resolve pyproject.toml --extra llamacpp --output-file requirements/runtime.txt
resolve pyproject.toml --extra llamacpp --extra nvidia --extra postgresql --group dev --constraints requirements/runtime.txt \
    --output-file requirements/dev.txt
echo hatchling | resolve - --constraints requirements/dev.txt --output-file requirements/build.txt
# The wheel that holds a Triton server. Its Python code, which is never imported, wants a NumPy of another age.
echo "nvidia-pytriton ; sys_platform == 'linux'" | resolve - --no-deps --output-file requirements/triton.txt
