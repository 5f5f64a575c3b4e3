"""Every hook stands in the reference, with its exact arguments and answer."""

import inspect
from pathlib import Path

import pytest

from llama_orch.plugins import hookspecs

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "hooks.md"
HOOKS = [function for name, function in vars(hookspecs).items() if name.startswith("llama_orch_")]


def heading(hook):
    signature = inspect.signature(hook)
    arguments = ", ".join(f"{p.name}: {p.annotation}" for p in signature.parameters.values())
    return f"## `{hook.__name__}({arguments}) -> {signature.return_annotation}`"


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
def test_a_hook_has_a_section_with_its_signature_a_text_and_an_example(hook):
    sections = {part.partition("\n")[0]: part for part in PAGE.read_text().split("\n## ")}
    section = sections.get(heading(hook).removeprefix("## "))
    assert section is not None, f"docs/reference/hooks.md lacks the section {heading(hook)}"
    assert f"def {hook.__name__}(" in section, "an example shows how it is implemented"
    assert len(section.split("```")[0]) > 200, "a text says what it is for"
    assert hook.__doc__
    assert hook.__doc__.startswith("Called "), "its docstring says when it is called"


def test_the_page_describes_no_hook_that_is_gone():
    described = {
        line.split("`")[1].partition("(")[0] for line in PAGE.read_text().splitlines() if line.startswith("## `")
    }
    assert described == {hook.__name__ for hook in HOOKS}
