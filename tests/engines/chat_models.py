"""Small models whose template knows tools and thoughts, so that real llama.cpp takes their answers apart.

They are of random weights: what they say is gibberish, but the marks that begin a call and end a thought are among
their likelier words, and within a call llama.cpp's own grammar holds them to the tool's schema.
"""

from __future__ import annotations

from pathlib import Path

from .tiny_gguf import Shape, write_model

#: ChatML with calls as JSON between marks
TOOLS = (
    "{% if tools %}<|im_start|>system\n# Tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
    "{% elif m.role != 'system' or not tools %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}"
    '<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>'
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: the same, where the model thinks first unless it is told not to
THINKING = TOOLS.replace(
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"
    "{% endif %}",
)
SILENT = TOOLS.replace("{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}", "")
CALLS = Shape(marks=(("<tool_call>", 1.7), ("</tool_call>", 0.5)), eos_scale=0.6, space_prefix=False)
THINKS = Shape(
    marks=(("<tool_call>", 1.5), ("</tool_call>", 0.5), ("<think>", 0.0), ("</think>", 1.5)),
    eos_scale=0.6,
    space_prefix=False,
)


def write_tool_model(path: Path) -> Path:
    """A model that calls tools when it must, and does not think."""
    return write_model(path, CALLS, template=SILENT)


def write_thinking_model(path: Path) -> Path:
    """A model that thinks, and calls tools when it must."""
    return write_model(path, THINKS, template=THINKING)
