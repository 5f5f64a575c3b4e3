"""Each hook, as a plugin of a third party implements it."""

import types

import pytest

from llama_orch.core.errors import ConfigError
from llama_orch.plugins import LaunchPlan, hookimpl
from llama_orch.plugins.manager import PluginManager


def plugin(*functions):
    """A plugin with these hook implementations."""
    module = types.ModuleType("a_plugin")
    for function in functions:
        setattr(module, function.__name__, function)
    return module


def manager(*functions):
    return PluginManager(entry_points=False, extra=[plugin(*functions)])


def test_llama_orch_engine_offers_an_engine_beside_the_built_in_ones():
    made = []

    @hookimpl
    def llama_orch_engine():
        return "parrot", made.append

    engines = manager(llama_orch_engine).engines()
    assert list(engines) == sorted({"llamacpp", "mock", "parrot"} | set(engines))
    engines["parrot"]({"url": "http://127.0.0.1:1"})
    assert made == [{"url": "http://127.0.0.1:1"}]


def test_llama_orch_launcher_plans_the_start_of_an_engine():
    @hookimpl
    def llama_orch_launcher():
        return "parrot", lambda config: LaunchPlan(argv=("parrot", str(config["port"])), url="http://127.0.0.1:7")

    plan = manager(llama_orch_launcher).launchers()["parrot"]({"port": 7})
    assert plan.argv == ("parrot", "7")


def test_llama_orch_placement_policy_offers_a_policy_by_its_name():
    class FirstFit:
        name, version = "first-fit", "1"

        def decide(self, snapshot, task):
            return None

    @hookimpl
    def llama_orch_placement_policy():
        return FirstFit()

    policies = manager(llama_orch_placement_policy).placement_policies()
    assert {"default", "first-fit"} <= policies.keys()
    assert policies["first-fit"].version == "1"


def test_llama_orch_journal_store_serves_url_schemes():
    @hookimpl
    def llama_orch_journal_store():
        return ("mydb", "mydb+fast"), lambda url, options: (url, options)

    stores = manager(llama_orch_journal_store).journal_stores()
    assert {"mydb", "mydb+fast", "sqlite"} <= stores.keys()
    assert stores["mydb"]("mydb://x", {}) == ("mydb://x", {})


def test_a_hook_that_does_not_exist_is_an_error_that_names_it():
    @hookimpl
    def llama_orch_enigne():
        return "typo", None

    with pytest.raises(ConfigError, match="llama_orch_enigne") as caught:
        manager(llama_orch_enigne)
    assert "hooks.md" in caught.value.what_to_do


@pytest.mark.parametrize("name", ["llamacpp", "mock"])
def test_a_name_that_is_taken_is_an_error_that_names_it(name):
    @hookimpl
    def llama_orch_engine():
        return name, lambda config: None

    with pytest.raises(ConfigError, match=name):
        manager(llama_orch_engine).engines()


def test_modules_that_several_plugins_share_are_no_plugins():
    names = PluginManager(entry_points=False).names()
    assert "llama_orch.plugins.engines.llamacpp" in names
    assert not [name for name in names if name.rpartition(".")[2].startswith("_")]
