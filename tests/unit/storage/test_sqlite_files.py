"""What the SQLite store keeps on disk: private files, a bounded log, a lock that names its holder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llama_orch.plugins import ConfigError, JournalLockedError
from llama_orch.plugins.manager import PluginManager
from llama_orch.plugins.storage._files import network_file_system
from llama_orch.plugins.storage.sqlite import SqliteStore
from llama_orch.plugins.testing.covers import covers
from llama_orch.plugins.testing.frames import Chain


def test_files_are_private(tmp_path: Path) -> None:
    store = SqliteStore(f"sqlite:///{tmp_path}/data/journal.db", {})
    chain = Chain(store.open())
    store.commit(chain.unit())
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    files = sorted((tmp_path / "data").iterdir())
    assert [file.name for file in files] == [f"journal.db{end}" for end in ("", "-shm", "-wal", ".head", ".lock")]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    store.close()


@covers("JRN-3")
def test_the_lock_names_the_process_that_holds_it(tmp_path: Path) -> None:
    first = SqliteStore(f"sqlite:///{tmp_path}/journal.db", {})
    first.open()
    with pytest.raises(JournalLockedError, match=f"process {os.getpid()} holds"):
        SqliteStore(f"sqlite:///{tmp_path}/journal.db", {}).open()
    first.close()


def test_the_log_begins_again_above_its_size(tmp_path: Path) -> None:
    store = SqliteStore(f"sqlite:///{tmp_path}/journal.db", {"wal_bytes": 100_000})
    chain = Chain(store.open())
    sizes = []
    for n in range(400):
        unit = chain.unit(chunks=1, size=2000)
        store.commit(unit)
        chain.took(unit)
        if n % 10 == 0:
            store.maintain()
            sizes.append((tmp_path / "journal.db-wal").stat().st_size)
    assert max(sizes) < 250_000
    store.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory"])
def test_a_url_without_a_file_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SqliteStore(url, {})
    assert caught.value.field == "journal.url"


@pytest.mark.parametrize("scheme", ["sqlite", "postgresql"])
def test_an_unknown_option_is_refused_by_name(scheme: str) -> None:
    factory = PluginManager(entry_points=False).journal_stores()[scheme]
    with pytest.raises(ConfigError) as caught:
        factory(f"{scheme}:///x", {"wal_byte": 1})
    assert caught.value.field == "wal_byte"


_MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 22 0:35 / /srv/share rw - nfs4 server:/share rw
41 40 254:1 / /srv/share/fast\\040disk rw - xfs /dev/vdb rw
42 22 0:36 / /mnt rw,nosuid - fuse.sshfs me@host: rw
"""


@pytest.mark.parametrize(
    "folder,kind",
    [
        ("/var/lib/llama-orch", ""),
        ("/srv/share/data", "nfs4"),
        ("/srv/share/fast disk/data", ""),
        ("/mnt", "fuse.sshfs"),
        ("/mnt2", ""),
    ],
)
def test_a_network_file_system_is_known_by_its_mount(folder: str, kind: str) -> None:
    assert network_file_system(_MOUNTS, Path(folder)) == kind
    assert network_file_system("", Path(folder)) == ""
