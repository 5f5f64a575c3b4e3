"""orchestratord: settings become plugins, journal, services, pools and the web application, and live until a signal.

This is the composition root: the one place that knows all rooms. What can fail for a reason that a person can mend
comes first: address, data directory, journal. Only then does anything start.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import hashlib
import json
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Literal

import msgspec

from llama_orch import __version__  # pyright knows no relative name for the root of the folders

from ..core.errors import JournalError, JournalLockedError, JournalUnavailableError
from . import exits, server_file
from .access import access_of
from .config import Loaded, make_data_directory
from .config_check import require_sound
from .exits import CliError
from .journal_access import make_store, place_of
from .redact import redact
from .server_file import STOP_AND_KEEP_ENGINES
from .shell import Shell
from .snapshots import Snapshots

if TYPE_CHECKING:
    from ..api.logs import EventLog
    from ..core.journal.journal import Journal
    from ..core.services.container import Services
    from ..pools.client import PoolClients
    from ..pools.starting import Starter

#: how long answers may take after the first signal; streams are told at once
_GRACE_S = 1.0
#: how long ending in order may take
_END_S = 25.0
#: how long ending may take after the second signal; what was accepted is in the journal
_HURRY_S = 2.0
_SWITCH_INTERVAL_S = 0.0005
#: of a server that is started for one call
_TEMPORARY_LINGER_MS = 5_000


class SystemClock:
    """The machine's clocks."""

    def now_ns(self) -> int:
        """Unix time, nanoseconds."""
        return time.time_ns()

    def monotonic_ns(self) -> int:
        """Time that never runs backwards, nanoseconds."""
        return time.monotonic_ns()


def serve(loaded: Loaded, shell: Shell, *, until_eof: bool = False) -> int:
    """Run the server until it is told to stop; the exit status.

    :param until_eof: stop also when standard input ends and no task is left.
    :raises CliError: it cannot start, or lost its journal, with the reason and the remedy.
    """
    os.umask(0o077)
    require_sound(loaded)
    make_data_directory(loaded.data_dir)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    # Nothing that a start makes is garbage: looking for some costs an eighth of its time. `_announce` turns it on again.
    gc.disable()
    try:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_Daemon(loaded, shell, until_eof=until_eof).run())
    finally:
        gc.enable()


class _Daemon:
    """One run of the server."""

    def __init__(self, loaded: Loaded, shell: Shell, *, until_eof: bool) -> None:
        self._loaded = loaded
        self._shell = shell
        self._until_eof = until_eof
        self._stop = asyncio.Event()
        self._signals = 0
        #: the engines shall outlive this server
        self._keep_engines = False
        #: why it had to stop by itself
        self._lost = ""
        self._access = access_of(loaded.settings, shell.environ)
        #: a key that this start made, told once
        self._first_key = ""

    async def run(self) -> int:
        """Compose and serve; what was composed is taken apart in the opposite order."""
        from ..api.app import create_app
        from ..api.logs import start_logging
        from ..api.server import listening_socket, reaches_out
        from ..api.server import serve as serve_http
        from ..api.tls import server_context
        from ..core.services.container import build_services
        from ..plugins.manager import PluginManager
        from ..pools.client import PoolClients

        loaded, settings = self._loaded, self._loaded.settings
        async with contextlib.AsyncExitStack() as undo:
            tls = server_context(settings.tls)
            listener = undo.enter_context(contextlib.closing(listening_socket(settings.bind)))
            exposed = reaches_out(listener) and not self._asks_who()
            self._catch_signals()
            log = start_logging(settings.log.level, self._log_form(), loop=asyncio.get_running_loop())
            undo.callback(log.flush)
            starter = None if exposed else self._start_managerd()
            journal = await self._open_journal(log)
            undo.push_async_callback(journal.close)
            if exposed:
                self._require_keys(journal)
                starter = self._start_managerd()
            if reaches_out(listener) and tls is None:
                self._shell.note("Keys and prompts travel unencrypted from other machines; tls.cert_file changes that.")
            plugins, clock = PluginManager(), SystemClock()
            engines, launchers = plugins.engines(), plugins.launchers()
            pools = PoolClients(
                journal,
                settings,
                data_dir=loaded.data_dir,
                engines=engines,
                launchers=launchers,
                starter=starter,
                linger_ms=self._linger_ms,
                version=__version__,
            )
            services = build_services(
                journal,
                settings=settings,
                engines=pools,
                policy=plugins.placement_policies()[settings.policies.placement],
                clock=clock,
                api_version=__version__,
                launched=launchers,
            )
            self._declare(journal, services)
            undo.callback(self._note_stop, journal)
            undo.push_async_callback(self._end_pools, pools, services)
            # Attempts are given up before their engines are: the next start takes them up as after a crash.
            undo.push_async_callback(services.close)
            services.start()
            await pools.start(services.pools, services.gpus.receive)
            undo.push_async_callback(Snapshots(journal, loaded).close)
            self._watch_input(journal)
            await self._make_first_key(services)
            app = create_app(services, settings, secrets=self._access.secrets())
            undo.callback(server_file.remove, loaded.data_dir, os.getpid())
            await serve_http(
                app,
                settings,
                stop=self._stop,
                listener=listener,
                ready=self._announce,
                grace_s=_GRACE_S,
                tls=tls,
            )
        if self._lost:
            raise CliError(self._lost, remedy="`llama-orch status` shows whether another server took over.")
        return exits.OK

    def _log_form(self) -> Literal["json", "human"]:
        """What is configured; else sentences where a person reads, JSON lines where a program does."""
        if self._loaded.origin("log.format") == "default" and self._shell.stderr.isatty():
            return "human"
        return self._loaded.settings.log.format

    # --- who may call --------------------------------------------------------------------------------------------

    def _asks_who(self) -> bool:
        """Whether the configuration alone makes sure that callers have to say who they are."""
        auth, tls = self._loaded.settings.auth, self._loaded.settings.tls
        return bool(
            self._access.bootstrap or auth.first_key or auth.oidc.issuer or auth.proxy.header or tls.client_identity
        )

    def _require_keys(self, journal: Journal) -> None:
        """:raises ConfigError: others can reach the address, and there are no keys."""
        from ..api.server import unprotected

        if not journal.head.keys.by_id:
            raise unprotected(self._loaded.settings.bind)

    async def _make_first_key(self, services: Services) -> None:
        """A key with all scopes, if one is wanted and there never was one."""
        from ..api.auth import LOCAL
        from ..core.services.keys import KeySpec

        if self._loaded.settings.auth.first_key and not services.keys.any and not self._access.bootstrap:
            spec = KeySpec(name="first", scopes=["admin"])
            _, self._first_key = await services.keys.create(spec, LOCAL, "")

    # --- composing -----------------------------------------------------------------------------------------------

    @property
    def _linger_ms(self) -> int:
        """How long pool-managerd lives when this server does not come back: one that was started for a call won't."""
        configured = self._loaded.settings.manager.linger_ms
        return min(configured, _TEMPORARY_LINGER_MS) if self._until_eof else configured

    def _start_managerd(self) -> Starter | None:
        """Let pool-managerd start while the journal is opened; ``None`` when that is somebody else's business."""
        from ..pools.starting import ManagerdStartError, Starter

        if self._loaded.settings.manager.start == "never":
            return None
        starter = Starter(self._loaded.data_dir, linger_ms=self._linger_ms, environment=os.environ)
        with contextlib.suppress(ManagerdStartError):  # the connection tries again, and says so
            starter.begin()
        return starter

    async def _open_journal(self, log: EventLog) -> Journal:
        from ..core.journal.journal import Journal, JournalOptions

        loaded, settings = self._loaded, self._loaded.settings
        options = JournalOptions(
            version=__version__,
            window_s=settings.journal.commit_window_ms / 1000,
            pending_bytes=settings.journal.pending_bytes,
            buffer_bytes=settings.streams.buffer_bytes,
            snapshots=loaded.data_dir / "snapshots" if settings.journal.snapshot_every else None,
        )
        journal = Journal(make_store(loaded), SystemClock(), options)
        journal.on_fatal(self._lose)
        log.subscribe(journal)
        try:
            await journal.open()
        except JournalLockedError as error:
            running = server_file.read(loaded.data_dir)
            who = f" (process {running.pid} at {running.url})" if running else ""
            raise CliError(
                f"another server{who} uses the journal {place_of(loaded)}",
                remedy="Use that one, stop it with `llama-orch stop`, or start this one with another --data-dir.",
                code="JOURNAL_LOCKED",
            ) from error
        except (JournalError, OSError) as error:
            said = error.message if isinstance(error, JournalError) else f"{error.strerror or error}"
            remedy = (
                error.what_to_do if isinstance(error, JournalError) and error.what_to_do != JournalError.remedy else ""
            )
            raise CliError(
                f"the journal {place_of(loaded)} cannot be opened: {said}",
                remedy=remedy or "Free disk space or repair the database; `llama-orch journal verify` locates damage.",
                code="JOURNAL_UNAVAILABLE",
            ) from error
        return journal

    def _declare(self, journal: Journal, services: Services) -> None:
        from ..core.events.server import ConfigApplied

        plain = redact(msgspec.to_builtins(self._loaded.settings))
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        digest = hashlib.sha256(text.encode()).hexdigest()
        journal.append([ConfigApplied(digest=digest, config=text)], actor="config", correlation="")
        services.pools.declare(self._loaded.settings)

    def _announce(self, url: str) -> None:
        """Connections are accepted: write it down, tell it, and put the start's objects out of the collector's way."""
        loaded = self._loaded
        running = server_file.ServerFile(
            pid=os.getpid(),
            started=server_file.process_start(os.getpid()),
            url=url,
            version=__version__,
            data_dir=str(loaded.data_dir),
            temporary=self._until_eof,
            token=self._access.local,
            ca_file=loaded.settings.tls.cert_file,
        )
        server_file.write(loaded.data_dir, running)
        if self._shell.as_json:
            self._shell.json_line(
                {"url": url, "data_dir": str(loaded.data_dir), "openai_base_url": f"{url}/v1", "pid": os.getpid()}
                | ({"first_key": self._first_key} if self._first_key else {})
            )
        else:
            self._shell.line(f"llama-orch {__version__}")
            self._shell.line(f"  url:  {url}")
            self._shell.line(f"  data: {loaded.data_dir}")
            self._shell.line(f"  export OPENAI_BASE_URL={url}/v1")
            if self._first_key:
                self._shell.line(f"  first key, with all scopes, shown this once: {self._first_key}")
        self._shell.stdout.flush()
        gc.collect()
        gc.freeze()
        # What is made per token and per task is mostly out of the collector's sight; full passes can be rare.
        gc.set_threshold(50_000, 20, 50)
        gc.enable()

    # --- ending --------------------------------------------------------------------------------------------------

    async def _end_pools(self, pools: PoolClients, services: Services) -> None:
        """Engines end with a server that is stopped in order, unless they shall be kept for the next one."""
        ends = self._loaded.settings.manager.on_stop == "stop" and not self._keep_engines
        if ends:
            with contextlib.suppress(JournalUnavailableError):
                services.loading.shut_down()
        await pools.stop(end_engines=ends)

    @staticmethod
    def _note_stop(journal: Journal) -> None:
        from ..core.events.server import ServerStopped

        with contextlib.suppress(JournalUnavailableError):
            journal.append([ServerStopped(epoch=journal.epoch)], actor="server", correlation="")

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        if hasattr(signal, "SIGHUP"):
            loop.add_signal_handler(signal.SIGHUP, self._on_signal)
        loop.add_signal_handler(STOP_AND_KEEP_ENGINES, self._on_keep)

    def _on_keep(self) -> None:
        self._keep_engines = True
        self._on_signal()

    def _on_signal(self) -> None:
        self._signals += 1
        self._stop.set()
        if self._signals == 1:
            timer = threading.Timer(_END_S, self._give_up)  # a thread: it ends a loop that hangs, too
            timer.daemon = True
            timer.start()
        if self._signals == 2:
            asyncio.get_running_loop().call_later(_HURRY_S, os._exit, exits.TERMINATED)
        elif self._signals > 2:
            os._exit(exits.TERMINATED)

    @staticmethod
    def _give_up() -> None:
        """The orderly end hangs, which is a defect; the journal holds all that was accepted, so nothing is lost."""
        message = f"llama-orch: the server did not end in order within {_END_S:g} s and is ended now\n"
        with contextlib.suppress(OSError):
            os.write(2, message.encode())
        if os.environ.get("LLORCH_DEBUG"):
            faulthandler.dump_traceback(all_threads=True)
        os._exit(exits.FAILED)

    def _lose(self, error: JournalError) -> None:
        self._lost = f"the journal is lost: {error.message}"
        self._stop.set()

    def _watch_input(self, journal: Journal) -> None:
        """With ``until_eof``: once standard input ended, stop as soon as no task is left."""
        if not self._until_eof:
            return
        loop = asyncio.get_running_loop()
        ended = False

        def stop_when_idle(_records: object = None) -> None:
            if ended and not journal.head.tasks.live:
                self._stop.set()

        def on_end() -> None:
            nonlocal ended
            ended = True
            stop_when_idle()

        def read() -> None:
            with contextlib.suppress(OSError):
                while os.read(0, 65_536):
                    pass
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                loop.call_soon_threadsafe(on_end)

        journal.on_committed(stop_when_idle)
        threading.Thread(target=read, name="standard-input", daemon=True).start()
