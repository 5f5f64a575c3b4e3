"""Every hook has a test of its own in test_hooks.py, through which a plugin of a third party would come."""

import ast
from pathlib import Path

import pytest

from llama_orch.plugins import hookspecs

TESTS = ast.parse((Path(__file__).parent / "test_hooks.py").read_text())
HOOKS = [name for name in vars(hookspecs) if name.startswith("llama_orch_")]


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_is_implemented_and_asked_for_in_a_test(hook):
    tests = [node for node in TESTS.body if isinstance(node, ast.FunctionDef) and node.name.startswith(f"test_{hook}_")]
    assert tests, f"test_hooks.py has no test_{hook}_…"
    implemented = {node.name for test in tests for node in ast.walk(test) if isinstance(node, ast.FunctionDef)}
    assert hook in implemented, f"no test_{hook}_… implements the hook"
