"""Engines of another host, over TLS: only with the key, only for the epoch that commands (RCV-3)."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from llama_orch.core.engine_ports import EngineState
from llama_orch.core.settings import HostSettings, PoolSettings, ProvisioningSettings, Settings
from llama_orch.plugins.engines._mock_machine import Machine
from llama_orch.plugins.engines._mock_server import MockServer
from llama_orch.plugins.engines.llamacpp import LlamaCpp
from llama_orch.pools.client import _remote_dialer
from llama_orch.pools.connection import Lines
from llama_orch.pools.protocol import PROTOCOL, Hello, Open, Refused, Tunnel, Welcome, from_manager
from llama_orch.pools.tunnel import read_key, server_context

from ...support.certificates import certificate
from ...support.store import Disk
from .conftest import run
from .managerd_stage import Program, desired, until
from .test_client import NAMES, server

KEY = "k" * 40


class Far:
    """Another host."""

    def __init__(self, it: Program, settings: HostSettings) -> None:
        self.it = it
        self.settings = settings

    async def dial(self) -> Lines:
        lines: Lines = await _remote_dialer(self.settings)()
        return lines

    async def ask(self, message: Hello | Tunnel) -> tuple[Lines, Any]:
        lines = await self.dial()
        lines.send(message)
        return lines, from_manager(await lines.line())


@contextlib.asynccontextmanager
async def far(folder: Path) -> AsyncIterator[Far]:
    folder.mkdir()
    public, private = certificate(folder, "host")
    key_file = folder / "key"
    key_file.write_text(f"{KEY}\n")
    key_file.chmod(0o600)
    (folder / "pools").mkdir()
    made = Program(folder / "pools", key=read_key(key_file))
    _, address = await made.start(address=("127.0.0.1", 0), tls=server_context(public, private))
    try:
        yield Far(made, HostSettings(id="far", address=address, key_file=str(key_file), ca_file=str(public)))
    finally:
        made.managerd.stop(kill_engines=False)
        await made.ended()


def test_a_pool_of_another_host_is_commanded_and_spoken_to_through_tls(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = MockServer(Machine(slots=2, ctx=64, script=None), model="m", loading_s=0.0, die=lambda: None)
        port = await engine.start(0)
        provisioning = ProvisioningSettings(mode="external", url=f"http://127.0.0.1:{port}")
        async with far(tmp_path / "far") as there:
            settings = Settings(
                hosts=[there.settings],
                pools=[PoolSettings(id="a", engine="far", model="m", host="far", provisioning=provisioning)],
            )
            NAMES["far"] = LlamaCpp  # type: ignore[assignment]
            (tmp_path / "here").mkdir()
            async with server(tmp_path / "here", settings, Disk()) as here:
                await until(lambda: there.it.pools)
                assert there.it.pools is not None
                there.it.pools.url = f"http://127.0.0.1:{port}"
                # told anew, with the URL that the engine has there
                here.clients._links["far"].abort()
                await until(lambda: here.pool.ready and here.pool.observed.url == f"http://127.0.0.1:{port}")
                client = here.clients.engine("a")
                assert isinstance(client, LlamaCpp)
                assert (await client.health()).state is EngineState.READY
                assert await client.slots_in_use() == 0
                assert there.it.fence.held.host == "far"
        engine.stop()

    run(scenario)


def test_without_the_key_nothing_is_heard(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with far(tmp_path / "far") as there:
            for key in ("", "x" * 40, KEY + "x"):
                _, answer = await there.ask(Hello(protocol=PROTOCOL, owner="j", epoch=1, key=key))
                assert isinstance(answer, Refused)
                assert answer.code == "AUTH"
                _, answer = await there.ask(Tunnel(protocol=PROTOCOL, owner="j", epoch=1, pool_id="a", key=key))
                assert isinstance(answer, Refused)
                assert answer.code == "AUTH"

    run(scenario)


def test_a_host_whose_certificate_nobody_vouches_for_is_told_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with far(tmp_path / "far") as there:
            other, _ = certificate(tmp_path, "other")
            stranger = HostSettings(id="far", address=there.settings.address, key_file="", ca_file=str(other))
            with pytest.raises(ssl.SSLError):
                await _remote_dialer(stranger)()

    run(scenario)


def test_tunnels_lead_to_ready_pools_of_the_epoch_that_commands_and_end_with_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(100):
                writer.write(data)
            writer.close()

        engine = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with far(tmp_path / "far") as there:
            commands, answer = await there.ask(Hello(protocol=PROTOCOL, owner="j", epoch=1, key=KEY))
            assert isinstance(answer, Welcome)
            commands.send(desired("a"))
            await until(lambda: there.it.pools and there.it.pools.applied)
            assert there.it.pools is not None
            there.it.pools.url = f"http://127.0.0.1:{engine.sockets[0].getsockname()[1]}"

            def tunnel(epoch: int, pool_id: str) -> Tunnel:
                return Tunnel(protocol=PROTOCOL, owner="j", epoch=epoch, pool_id=pool_id, key=KEY)

            _, answer = await there.ask(tunnel(1, "b"))
            assert isinstance(answer, Refused)
            _, answer = await there.ask(tunnel(0, "a"))
            assert isinstance(answer, Refused)
            through, answer = await there.ask(tunnel(1, "a"))
            assert isinstance(answer, Open)
            through.writer.write(b"\x00\xff anything")
            assert await through.reader.readexactly(11) == b"\x00\xff anything"
            _, answer = await there.ask(Hello(protocol=PROTOCOL, owner="j", epoch=2, key=KEY))
            assert isinstance(answer, Welcome)
            with contextlib.suppress(OSError):
                assert await through.reader.read() == b"", "a newer epoch commands"
        engine.close()

    run(scenario)


@pytest.mark.parametrize(
    "mode, text, wrong", [(0o644, KEY, "can be read"), (0o600, "short", "5 characters"), (0o600, "", "0 characters")]
)
def test_a_key_file_that_is_none_worth_the_name_is_refused(tmp_path: Path, mode: int, text: str, wrong: str) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(ValueError, match=wrong):
        read_key(path)
