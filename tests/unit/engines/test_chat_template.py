"""Chat templates rendered here exactly as the engine does, or not at all."""

import pytest

from llama_orch.plugins.engines._chat_template import PROBES, ChatTemplate, TemplateError, agreeing, plain

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER = [{"role": "user", "content": "hi"}]


def test_a_chat_is_rendered_ready_for_the_answer():
    assert ChatTemplate(CHATML).render(USER) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_blocks_are_trimmed_as_hugging_face_does():
    source = "{% for m in messages %}\n    {% if m.role == 'user' %}\n[{{ m.content }}]\n    {% endif %}\n{% endfor %}"
    assert ChatTemplate(source).render(USER) == "[hi]\n"


def test_what_templates_call_is_there():
    source = "{{ bos_token }}{{ messages | tojson }}{{ eos_token }}{% for m in messages %}{% break %}{% endfor %}"
    text = ChatTemplate(source, bos_token="<s>", eos_token="</s>").render([{"role": "user", "content": "é<b>"}])
    assert text == '<s>[{"role": "user", "content": "é<b>"}]</s>'
    assert len(ChatTemplate("{{ strftime_now('%Y') }}").render(USER)) == 4


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no system here') }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ 1 / 0 }}",
        "{{ messages[7].content.x }}",
        "{% for x in range(10 ** 9) %}{% endfor %}",
    ],
)
def test_a_template_that_refuses_or_reaches_out_is_an_error_and_no_more(source):
    with pytest.raises(TemplateError):
        ChatTemplate(source).render(USER)


def test_a_template_that_does_not_compile_is_an_error():
    with pytest.raises(TemplateError, match="does not compile"):
        ChatTemplate("{% if %}")


def test_the_local_rendering_is_trusted_where_it_agrees_on_every_probe():
    told = [(probe, ChatTemplate(CHATML).render(probe)) for probe in PROBES]
    template = agreeing(CHATML, "<s>", "</s>", told)
    assert template is not None
    assert template.render(USER).startswith("<|im_start|>user\nhi")


def test_an_engine_that_leaves_the_first_token_out_is_followed():
    source = "{{ bos_token }}" + CHATML
    told = [(probe, ChatTemplate(CHATML).render(probe)) for probe in PROBES]
    template = agreeing(source, "<s>", "</s>", told)
    assert template is not None
    assert template.strip_bos is True
    assert not template.render(USER).startswith("<s>")


@pytest.mark.parametrize("source", [CHATML + " ", "{{ raise_exception('x') }}", "{% if %}"])
def test_a_template_that_renders_otherwise_here_is_left_to_the_engine(source):
    told = [(probe, ChatTemplate(CHATML).render(probe)) for probe in PROBES]
    assert agreeing(source, "<s>", "</s>", told) is None
    assert agreeing(CHATML, "<s>", "</s>", []) is None


@pytest.mark.parametrize(
    "messages, local",
    [
        (USER, True),
        ([{"role": "system", "content": "s"}, *USER, {"role": "assistant", "content": "a"}, *USER], True),
        ([*USER, {"role": "assistant", "content": "begun"}], False),
        ([{"role": "tool", "content": "x"}], False),
        ([{"role": "developer", "content": "x"}], False),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], False),
        ([{"role": "user", "content": "x", "name": "n"}], False),
        ([{"role": "assistant", "content": None}], False),
    ],
)
def test_only_chats_like_the_probes_are_rendered_here(messages, local):
    assert plain(messages) is local
