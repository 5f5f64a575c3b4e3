"""llama.cpp's C++ server from the `xllamacpp` package, as a process of its own that SIGTERM ends.

Run as ``python -m llama_orch.pools.llamacpp_server --model FILE --port N``. It binds to loopback, closes itself to
browsers' cross-origin requests, and says in one line on standard error why it could not start:
``error: <cause>: <what happened>``. Its arguments are called as those of upstream's `llama-server`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EXIT_START = 3
_FLASH = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="llama_orch.pools.llamacpp_server", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--parallel", type=int, default=1, help="slots")
    parser.add_argument(
        *("--ctx", "--ctx-size"), type=int, default=0, help="tokens of all slots together; 0 = the model's context"
    )
    parser.add_argument("--threads", type=int, default=0, help="0 = llama.cpp's default")
    parser.add_argument("--alias", default="", help="name under which the model is served")
    parser.add_argument("--batch-size", type=int, default=0)
    parser.add_argument("--ubatch-size", type=int, default=0)
    parser.add_argument("--cache-ram", type=int, default=-1, help="MiB of RAM for cached prompts")
    parser.add_argument("--n-gpu-layers", type=int, default=-1)
    parser.add_argument("--split-mode", choices=("none", "layer"), default="layer")
    parser.add_argument("--main-gpu", type=int, default=0)
    parser.add_argument("--tensor-split", default="", help="shares of the GPUs, with commas between")
    parser.add_argument("--cache-type-k", default="")
    parser.add_argument("--cache-type-v", default="")
    parser.add_argument("--flash-attn", choices=("on", "off", "auto"), default="auto")
    parser.add_argument("--embedding", action="store_true", help="make embeddings")
    parser.add_argument("--reranking", action="store_true", help="rank texts; the model needs a head for it")
    parser.add_argument("--pooling", choices=("mean", "cls", "last"), default="")
    parser.add_argument(
        "--slot-save-path", default="", help="folder for what slots hold; without it none can be erased"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; the exit status is 0 then, 3 when the server could not start."""
    args = arguments().parse_args(argv)
    # Blocked before the server starts its threads, so that they inherit it and the signals wait for sigwait below.
    ending = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    if not Path(args.model).is_file():
        return _fail("bad-model", f"there is no file {args.model}")
    taken = _port_taken(args.host, args.port)
    if taken:
        return _fail("port-taken", taken)
    try:
        xllamacpp: Any = importlib.import_module("xllamacpp")
    except ImportError as error:
        return _fail("missing-package", f"{error}")
    try:
        server = xllamacpp.Server(_params(xllamacpp, args))
    except Exception as error:
        # The binding raises RuntimeError for a model that does not load; its log above says why.
        return _fail("start-failed", str(error))
    print(f"listening on {server.listening_address}", flush=True)
    signal.sigwait(ending)
    # The server's destructor waits for its threads, and does not always return when the signal comes at once. There
    # is nothing to save: the system takes back memory, sockets and devices.
    os._exit(0)


def _params(xllamacpp: Any, args: argparse.Namespace) -> Any:
    """What the server is told: what is asked for is what is given, no more is open than this project uses."""
    params = xllamacpp.CommonParams()
    wanted: dict[str, Any] = {
        "hostnames": [args.host],
        "port": args.port,
        "n_parallel": args.parallel,
        "n_ctx": args.ctx,
        # No silent fitting to the memory that is free, no context that is shifted or shared between slots.
        "fit_params": False,
        "ctx_shift": False,
        "kv_unified": False,
        "endpoint_slots": True,
        "endpoint_metrics": True,
        "endpoint_props": False,  # changing properties of the server over HTTP; reading them stays
        "ui": False,
        "cors_origins": "http://127.0.0.1",
        "cors_origins_explicit": True,
        "split_mode": getattr(xllamacpp.llama_split_mode, f"LLAMA_SPLIT_MODE_{args.split_mode.upper()}"),
        "main_gpu": args.main_gpu,
        "flash_attn_type": getattr(xllamacpp.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{_FLASH[args.flash_attn]}"),
        "verbosity": 2,
    }
    if args.alias:
        wanted["model_alias"] = {args.alias}
    if args.batch_size:
        wanted["n_batch"] = args.batch_size
    if args.ubatch_size:
        wanted["n_ubatch"] = args.ubatch_size
    if args.cache_ram >= 0:
        wanted["cache_ram_mib"] = args.cache_ram
    if args.embedding or args.reranking:
        wanted["embedding"] = True
    pooling = "rank" if args.reranking else args.pooling
    if pooling:
        wanted["pooling_type"] = getattr(xllamacpp.llama_pooling_type, f"LLAMA_POOLING_TYPE_{pooling.upper()}")
    if args.slot_save_path:
        wanted["slot_save_path"] = args.slot_save_path
    if args.n_gpu_layers >= 0:
        wanted["n_gpu_layers"] = args.n_gpu_layers
    if args.tensor_split:
        shares = [float(share) for share in args.tensor_split.split(",")]
        wanted["tensor_split"] = shares + [0.0] * (len(params.tensor_split) - len(shares))
    for name in ("cache_type_k", "cache_type_v"):
        if getattr(args, name):
            wanted[name] = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{getattr(args, name).upper()}")
    for name, value in wanted.items():
        setattr(params, name, value)
    setattr(params.model, "path", args.model)  # noqa: B010 - an attribute of the binding, as those above
    if args.threads:
        for cpu in (params.cpuparams, params.cpuparams_batch):
            setattr(cpu, "n_threads", args.threads)  # noqa: B010
    return params


def _port_taken(host: str, port: int) -> str:
    """Why the port cannot be bound, or "". llama.cpp itself would only say that it could not start."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return f"{host}:{port}: {error.strerror}"
    return ""


def _fail(cause: str, what: str) -> int:
    print(f"error: {cause}: {what}", file=sys.stderr, flush=True)
    return EXIT_START


if __name__ == "__main__":
    sys.exit(main())
