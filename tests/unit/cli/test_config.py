"""Configuration: precedence, strictness, paths, secrets."""

from __future__ import annotations

import stat

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llama_orch.cli.config import FILE_NAMES, load, make_data_directory, settings_type_keys
from llama_orch.cli.config_schema import settings_schema
from llama_orch.cli.config_types import settings_type, takes, type_at
from llama_orch.core.errors import ConfigError
from llama_orch.core.settings import Settings


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "llama-orch.yaml"):
        path = tmp_path / name
        path.write_text(text, "utf-8")
        return path

    return write


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))


def complaint(*arguments, **named) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(*arguments, **named)
    return caught.value


def refusal(path) -> str | None:
    """What is said of the file, if it is refused."""
    try:
        load(path, environ={})
    except ConfigError as error:
        return error.message
    return None


def test_without_a_file_everything_has_its_default(tmp_path):
    loaded = load(environ={})
    assert loaded.settings == Settings()
    assert loaded.path is None
    assert loaded.data_dir == tmp_path / "share" / "llama-orch"
    assert loaded.settings.bind == "127.0.0.1:8080"
    assert [pool.model for pool in loaded.settings.pools] == ["haiku"]


def test_flag_wins_over_environment_over_file_over_default(write):
    path = write("bind: 127.0.0.1:1\ndata_dir: /file\nallowed_hosts: [file]\n")
    environ = {"LLORCH_BIND": "127.0.0.1:2", "LLORCH_DATA_DIR": "/env"}
    settings = load(path, environ=environ, flags={"bind": "127.0.0.1:3"}).settings
    assert (settings.bind, settings.data_dir, settings.allowed_hosts) == ("127.0.0.1:3", "/env", ["file"])
    assert settings.streams == Settings().streams


def test_each_key_tells_who_set_it(write):
    path = write("journal:\n  commit_window_ms: 5\n")
    loaded = load(path, environ={"LLORCH_JOURNAL__WAL_BYTES": "70000"}, assignments=["streams.heartbeat_ms=200"])
    assert loaded.origin("journal.commit_window_ms") == "llama-orch.yaml:2"
    assert loaded.origin("journal.wal_bytes") == "LLORCH_JOURNAL__WAL_BYTES"
    assert loaded.origin("streams.heartbeat_ms") == "--set streams.heartbeat_ms"
    assert loaded.origin("bind") == "default"


def test_toml_and_yaml_say_the_same(write):
    in_yaml = write("bind: 127.0.0.1:1\njournal: {commit_window_ms: 5}\npools: [{id: a, slots: 2}]\n")
    in_toml = write('bind = "127.0.0.1:1"\n[journal]\ncommit_window_ms = 5\n[[pools]]\nid = "a"\nslots = 2\n', "a.toml")
    assert load(in_yaml, environ={}).settings == load(in_toml, environ={}).settings


def test_tables_of_several_layers_merge_and_lists_are_replaced(write):
    path = write("journal: {commit_window_ms: 5, wal_bytes: 70000}\nmodels: {a: haiku}\npools: [{id: a}, {id: b}]\n")
    environ = {"LLORCH_JOURNAL__COMMIT_WINDOW_MS": "6", "LLORCH_MODELS__B": "haiku", "LLORCH_POOLS": '[{"id": "c"}]'}
    settings = load(path, environ=environ).settings
    assert (settings.journal.commit_window_ms, settings.journal.wal_bytes) == (6, 70_000)
    assert settings.models == {"a": "haiku", "b": "haiku"}
    assert [pool.id for pool in settings.pools] == ["c"]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("bnd: x", "llama-orch.yaml:1: bnd is no setting; did you mean 'bind'?"),
        ("journal:\n  commit_window: 3", "llama-orch.yaml:2: journal.commit_window is no setting; did you mean 'commit_window_ms'?"),
        ("pools:\n- id: a\n  slotz: 1", "llama-orch.yaml:3: pools[0].slotz is no setting; did you mean 'slots'?"),
        ("bind: 8080", "llama-orch.yaml:1: bind got 8080, takes a text"),
        ("journal:\n  commit_window_ms: 500", "llama-orch.yaml:2: journal.commit_window_ms got 500, takes an integer from 0 to 100"),
        ("journal: {commit_window_ms: true}", "journal.commit_window_ms got True, takes an integer from 0 to 100"),
        ("journal: {commit_window_ms: 1.5}", "journal.commit_window_ms got 1.5, takes an integer from 0 to 100"),
        ("streams: {compat_cancel_on_disconnect: 1}", "got 1, takes true or false"),
        ("prices: {m: {input: 0.5}}", "prices.m.input got 0.5, takes a decimal with at most six places, in quotes"),
        ("budgets: {keys: [{tokens: many}]}", "budgets.keys[0].tokens got 'many', takes an integer from 0 to 9007199254740991"),
        ("budgets: {keys: [{cost: '-1'}]}", "budgets.keys[0].cost got '-1', takes a decimal with at most twelve places"),
        ("log: {level: loud}", "log.level got 'loud', takes debug or error or info or warning"),
        ("pools: [{engine: mock}]", "pools[0].id is missing; it takes a name of at most 64"),
        ("pools: [{id: 'a b'}]", "pools[0].id got 'a b', takes a name of at most 64"),
        ("pools: haiku", "llama-orch.yaml:1: pools got 'haiku', takes a list, each entry a table with the keys id, engine"),
        ("pools: [haiku]", "pools[0] got 'haiku', takes a table with the keys id, engine"),
        ("journal: fast", "journal got 'fast', takes a table with the keys url"),
        ("models: {1: haiku}", "models.1 must be a text key: put quotes around it"),
        ("bind: a\nbind: b", "llama-orch.yaml:2: bind stands twice; first on line 1"),
        ("- a", "holds list, takes keys with values"),
        ("bind: [", "llama-orch.yaml:1: not YAML:"),
        ("a: &x\n  b: *x", "not YAML"),
        ("bind: !!python/object:os.system x", "not YAML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(write, text, expected):
    error = complaint(write(text), environ={})
    assert expected in error.message
    assert error.what_to_do


def test_all_faults_of_all_layers_are_told_at_once(write):
    error = complaint(
        write("bnd: x\njournal: {commit_window_ms: 500}\n"),
        environ={"LLORCH_LIMITS__BODY_BYTES": "much", "LLORCH_JURNAL__URL": "x"},
        assignments=["log.level=loud", "novalue", "no.such=1"],
    )
    assert len(error.details["faults"]) == 7
    assert "LLORCH_JURNAL__URL is no setting; did you mean 'LLORCH_JOURNAL__URL'?" in error.message
    assert "LLORCH_LIMITS__BODY_BYTES: limits.body_bytes got 'much'" in error.message


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("missing.yaml", None, "cannot be read: No such file or directory"),
        ("file.json", b"{}", "takes .yaml, .yml or .toml"),
        ("latin.yaml", b"bind: \xff", "is not UTF-8 (byte 6)"),
        ("bad.toml", b"bind = ", "not TOML"),
        ("large.yaml", b"#" * 5_000_000, "is larger than"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_by_name(tmp_path, name, content, expected):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    error = complaint(path, environ={})
    assert str(path) in error.message
    assert expected in error.message


def test_an_empty_file_changes_nothing(write):
    assert load(write("# nothing\n"), environ={}).settings == Settings()


def test_paths_are_relative_to_the_file_that_names_them(write, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    path = write(
        "data_dir: data\njournal: {url: 'sqlite:///j/journal.db'}\n"
        "pools: [{id: a, model: models/m.gguf}, {id: b, model: file:../n.gguf}, {id: c},"
        " {id: d, model: m, provisioning: {mode: external, url: 'http://127.0.0.1:1'}}]\n"
    )
    loaded = load(path, environ={})
    assert loaded.data_dir == tmp_path / "data"
    assert loaded.settings.journal.url == f"sqlite:///{tmp_path}/j/journal.db"
    models = [pool.model for pool in loaded.settings.pools]
    assert models == ["m", "n", "haiku", "m"]
    assert loaded.settings.models == {"m": f"{tmp_path}/models/m.gguf", "n": f"{tmp_path.parent}/n.gguf"}
    assert load(path, environ={"LLORCH_DATA_DIR": "here"}).data_dir == elsewhere / "here"


def test_a_model_file_gets_the_name_that_models_gives_it_and_more_names_are_aliases(write, tmp_path):
    path = write("models: {small: m.gguf, other: m.gguf, fast: small}\npools: [{id: a, model: ./m.gguf}]\n")
    settings = load(path, environ={}).settings
    assert settings.pools[0].model == "small"
    assert settings.models == {"small": f"{tmp_path}/m.gguf", "other": "small", "fast": "small"}


@pytest.mark.parametrize(
    "text",
    ["pools: [{id: a, model: x/m.gguf}, {id: b, model: y/m.gguf}]", "pools: [{id: a, model: x/haiku.gguf}]"],
)
def test_two_model_files_of_one_name_are_refused(write, text):
    assert "which is taken" in complaint(write(text), environ={}).message


def test_the_file_comes_from_the_flag_then_the_variable_then_the_users_directory(write, tmp_path):
    named, by_variable = write("bind: 127.0.0.1:1", "a.yaml"), write("bind: 127.0.0.1:2", "b.yaml")
    environ = {"LLORCH_CONFIG": str(by_variable)}
    assert load(named, environ=environ).settings.bind == "127.0.0.1:1"
    assert load(environ=environ).settings.bind == "127.0.0.1:2"
    folder = tmp_path / "config" / "llama-orch"
    folder.mkdir(parents=True)
    (folder / FILE_NAMES[0]).write_text("bind: 127.0.0.1:3")
    assert load(environ={}).settings.bind == "127.0.0.1:3"
    (folder / FILE_NAMES[2]).write_text("")
    assert "there are 2 configuration files" in complaint(environ={}).message


def test_a_password_is_in_no_message_of_any_error(write):
    secret = "hunter2-canary"
    url = f"postgresql://user:{secret}@host/db?password={secret}"
    error = complaint(write(f"journal: {{url: {url}, wal_bytes: 1}}\n"), environ={"LLORCH_JOURNAL": f"{{urll: {url}}}"})
    assert secret not in str(error.to_dict())
    assert secret not in error.message


@pytest.mark.parametrize(
    "text, value",
    [("true", True), ("1", True), ("on", True), ("No", False), ("0", False)],
)
def test_a_variable_says_yes_and_no_in_the_usual_words(text, value):
    settings = load(environ={"LLORCH_STREAMS__COMPAT_CANCEL_ON_DISCONNECT": text}).settings
    assert settings.streams.compat_cancel_on_disconnect is value


def test_a_list_in_a_variable_is_split_at_commas():
    assert load(environ={"LLORCH_ALLOWED_HOSTS": "a, b,"}).settings.allowed_hosts == ["a", "b"]
    assert load(environ={"LLORCH_ALLOWED_HOSTS": '["a", "b"]'}).settings.allowed_hosts == ["a", "b"]


def test_setting_a_whole_and_a_part_of_it_is_refused():
    error = complaint(environ={"LLORCH_JOURNAL": "x", "LLORCH_JOURNAL__URL": "y"})
    assert "LLORCH_JOURNAL__URL" in error.message


def test_every_key_can_be_set_by_a_variable_of_its_name():
    for key in settings_type_keys():
        kind = type_at(settings_type(), key.split("__"))
        assert kind is not None
        assert takes(kind)


def test_every_key_has_a_meaning_in_the_reference():
    undescribed = []
    for definition in settings_schema()["$defs"].values():
        for name, field in definition["properties"].items():
            nested = "$ref" in field or "$ref" in field.get("items", {})
            if not nested and not field.get("description"):
                undescribed.append(f"{definition['title']}.{name}")
    assert undescribed == []


def _plain_settings() -> st.SearchStrategy[dict[str, object]]:
    """Valid configurations, as plain values."""
    name = st.from_regex(r"[a-z][a-z0-9-]{0,10}", fullmatch=True)
    pool = st.fixed_dictionaries(
        {"id": name},
        optional={"engine": name, "slots": st.integers(0, 65_535), "aliases": st.lists(name, max_size=3), "devices": st.text()},
    )  # fmt: skip
    return st.fixed_dictionaries(
        {},
        optional={
            "bind": st.text(),
            "journal": st.fixed_dictionaries({}, optional={"commit_window_ms": st.integers(0, 100)}),
            "models": st.dictionaries(name, name, max_size=3),
            "pools": st.lists(pool, max_size=3),
        },
    )


@given(_plain_settings())
def test_any_valid_configuration_comes_through_a_file_unchanged(tmp_path_factory, plain):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(plain), "utf-8")
    assert load(path, environ={}).settings == msgspec.convert(plain, Settings)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12))  # fmt: skip
def test_whatever_a_file_holds_is_loaded_or_refused_in_words(tmp_path_factory, plain):
    path = tmp_path_factory.getbasetemp() / "odd.yaml"
    path.write_text(yaml.safe_dump({"journal": plain, "pools": plain, "models": plain}), "utf-8")
    told = refusal(path)
    assert told is None or path.name in told


@given(st.binary(max_size=200))
def test_whatever_bytes_a_file_holds_are_loaded_or_refused_in_words(tmp_path_factory, raw):
    for name in ("raw.yaml", "raw.toml"):
        path = tmp_path_factory.getbasetemp() / name
        path.write_bytes(raw)
        told = refusal(path)
        assert told is None or path.name in told


def test_the_data_directory_is_for_its_owner_alone(tmp_path):
    made = make_data_directory(tmp_path / "a" / "b")
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    made.chmod(0o755)
    make_data_directory(made)
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_a_data_directory_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file/data cannot be used: Not a directory"):
        make_data_directory(tmp_path / "file" / "data")
