"""`pool-managerd`: the program that looks after the engines of one host and data directory.

orchestratord starts one when none runs. Started by hand (or by the system, on a host of its own) it lives until it is
told to end: SIGTERM ends it and leaves its engines, which the next one adopts; SIGINT ends them too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import ssl
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llama_orch import __version__  # pyright knows no relative name for the root of the folders

if TYPE_CHECKING:
    from ..plugins.manager import PluginManager
    from ..pools.desired import Pools, PoolSink
    from ..pools.managerd import Managerd

EXIT_USAGE = 2
EXIT_FAILED = 1


class SystemClock:
    """The machine's clocks."""

    def now_ns(self) -> int:
        """Unix time, nanoseconds."""
        return time.time_ns()

    def monotonic_ns(self) -> int:
        """Time that never runs backwards, nanoseconds."""
        return time.monotonic_ns()


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="pool-managerd", description=(__doc__ or "").split("\n", 1)[0].split(": ", 1)[1], allow_abbrev=False
    )
    parser.add_argument("--data-dir", required=True, metavar="DIR", help="engines, logs and the outbox live here")
    parser.add_argument(
        "--listen", metavar="HOST:PORT", help="serve an orchestratord on another host here, with TLS and a key"
    )
    parser.add_argument("--key-file", metavar="FILE", help="what a connection to --listen has to know")
    parser.add_argument("--tls-cert", metavar="FILE", help="certificate for --listen, PEM")
    parser.add_argument("--tls-key", metavar="FILE", help="its private key, PEM")
    parser.add_argument("--linger-ms", type=int, metavar="MS", help="end, with all engines, when nobody is connected")
    parser.add_argument("--ready-fd", type=int, default=-1, help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"pool-managerd {__version__}")
    return parser


class UnusableError(Exception):
    """What was asked for cannot be done, in words."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run until told to end; the exit status."""
    options = arguments().parse_args(argv)
    os.umask(0o077)
    gc.disable()  # a start makes no garbage
    try:
        return asyncio.run(_run(options))
    except UnusableError as error:
        print(f"pool-managerd: {error}", file=sys.stderr, flush=True)
        return EXIT_USAGE
    except OSError as error:
        print(f"pool-managerd: {error}", file=sys.stderr, flush=True)
        return EXIT_FAILED


async def _run(options: argparse.Namespace) -> int:
    from ..pools.fence import Fence
    from ..pools.identity import process_table
    from ..pools.logs import BoundedLog
    from ..pools.managerd import Managerd
    from ..pools.outbox import DirectoryFiles, Outbox, new_incarnation
    from ..pools.starting import LOG_NAME, Lock

    data_dir = Path(options.data_dir).expanduser().resolve()
    directory = data_dir / "pools"
    network = _network(options)
    try:
        lock = Lock(directory)
    except BlockingIOError:
        _say_ready(options.ready_fd)  # whoever waits may connect to the other one
        print(f"pool-managerd: another one looks after {data_dir}", file=sys.stderr, flush=True)
        return EXIT_FAILED
    log = BoundedLog(form="human" if sys.stderr.isatty() else "json", path=directory / LOG_NAME)
    boot_id = process_table().boot_id()
    plugins, devices = _Plugins(), _Devices()
    try:
        managerd = Managerd(
            directory,
            lambda sink: plugins.make_pools(data_dir, sink, devices),
            Outbox(DirectoryFiles(directory / "outbox"), boot_id=boot_id, incarnation=new_incarnation(time.time_ns())),
            Fence(directory / "fence.json", network.key if network else ""),
            log,
            boot_id=boot_id,
            version=__version__,
            engine_logs=data_dir / "engines",
            linger_ms=options.linger_ms,
            look=devices.look,
        )
        where = await managerd.listen(network.address if network else None, network.tls if network else None)
        _catch_signals(managerd)
        log.say("info", "started", f"pool-managerd {__version__} listens on {', '.join(where)}.", pid=os.getpid())
        _say_ready(options.ready_fd)
        devices.sampler.start()
        plugins.load()
        asyncio.get_running_loop().call_later(1, _settle)
        await managerd.run()
        log.say("info", "ended", "pool-managerd ended in order.")
    finally:
        devices.sampler.stop()
        lock.release()
    return 0


class _Network:
    """What ``--listen`` needs."""

    def __init__(self, address: tuple[str, int], key: str, tls: ssl.SSLContext) -> None:
        self.address = address
        self.key = key
        self.tls = tls


def _network(options: argparse.Namespace) -> _Network | None:
    """:raises UnusableError: something is missing: nothing listens on the network without a key and TLS."""
    if not options.listen:
        return None
    host, colon, port = options.listen.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65_535:
        raise UnusableError(f"--listen takes HOST:PORT, not {options.listen!r}")
    if not (options.key_file and options.tls_cert and options.tls_key):
        raise UnusableError("--listen needs --key-file, --tls-cert and --tls-key")
    from ..pools.tunnel import read_key, server_context

    try:
        return _Network(
            (host.strip("[]"), int(port)),
            read_key(Path(options.key_file)),
            server_context(Path(options.tls_cert), Path(options.tls_key)),
        )
    except ValueError as error:
        raise UnusableError(str(error)) from error
    except OSError as error:  # also what TLS finds wrong with a file
        raise UnusableError(f"--key-file, --tls-cert or --tls-key: {error}") from error


class _Devices:
    """The GPUs and the memory of this host."""

    def __init__(self) -> None:
        from ..pools.telemetry.sampler import Sampler

        self.sampler = Sampler("local")

    def look(self, period_ms: int) -> bytes:
        """The latest sample, as JSON; the next ones come with this period."""
        import msgspec

        self.sampler.period_s = period_ms / 1000
        return msgspec.json.encode(self.sampler.sample())


class _Plugins:
    """Engines of all plugins; loaded while orchestratord opens its journal."""

    def __init__(self) -> None:
        self._found: PluginManager | None = None

    def load(self) -> PluginManager:
        """Load them, once."""
        from ..plugins.manager import ENGINES, PluginManager

        if self._found is None:
            self._found = PluginManager(built_in=[ENGINES])
        return self._found

    def make_pools(self, data_dir: Path, sink: PoolSink, devices: _Devices) -> Pools:
        """What looks after engines."""
        from ..pools.manager import PoolManager
        from ..pools.outfitting import Outfitter
        from ..pools.room import HostRoom

        plugins = self.load()
        launchers = plugins.launchers()
        room = HostRoom(devices.sampler.sample)
        return PoolManager(
            sink=sink,
            data_dir=data_dir,
            engines=plugins.engines(),
            launchers=launchers,
            clock=SystemClock(),
            preparer=Outfitter(launchers, {}, data_dir=data_dir, gpu_bytes=room.total_bytes),
            memory=room,
        )


def _catch_signals(managerd: Managerd) -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: managerd.stop(kill_engines=False))
    loop.add_signal_handler(signal.SIGINT, lambda: managerd.stop(kill_engines=True))


def _say_ready(descriptor: int) -> None:
    if descriptor >= 0:
        with contextlib.suppress(OSError):
            os.write(descriptor, b"ready")
            os.close(descriptor)


def _settle() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


if __name__ == "__main__":
    sys.exit(main())
