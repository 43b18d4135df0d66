import json

import pytest

from kvtier.errors import InvalidSettings
from kvtier.router.learn.prompts import ChatPrompt, conversation_of
from kvtier.router.learn.template import ChatTemplate, TemplateError

CHAT = ChatPrompt(messages=[{"role": "user", "content": "hello"}])


def template(folder, source, **config) -> ChatTemplate:
    config |= {"chat_template": source}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return ChatTemplate(folder)


def test_template_renders_chat(tmp_path) -> None:
    made = template(
        tmp_path,
        "{{ bos_token }}{% for m in messages %}\n  {% if m.role %}[{{ m.role }}]{% endif %}\n"
        "{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}>{% endif %}",
        bos_token={"content": "<s>"},
    )
    assert made.render(CHAT) == "<s>[user]hello\n>"


def test_template_gets_contents_as_text_or_parts(tmp_path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = ChatPrompt(messages=[{"role": "user", "content": parts}])
    assert template(tmp_path, "{{ messages[0]['content'] }}").render(chat) == "a\nb"
    for place in ("m['content']", "m.content"):
        source = (
            "{% for m in messages %}{% for p in CONTENT %}({{ p.text }}){% endfor %}{% endfor %}"
        )
        assert template(tmp_path, source.replace("CONTENT", place)).render(chat) == "(a)(b)"


def test_template_gets_tools_arguments_and_kwargs(tmp_path) -> None:
    chat = conversation_of(
        {
            "messages": [
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}],
                }
            ],
            "tools": [{"name": "fä"}],
            "chat_template_kwargs": {"enable_thinking": False},
            "add_generation_prompt": False,
        }
    )
    assert chat is not None
    source = (
        "{{ tools | tojson }}{{ messages[0].tool_calls[0].function.arguments.x }}"
        "{{ enable_thinking }}{{ add_generation_prompt }}{{ messages[0].content }}"
    )
    assert template(tmp_path, source).render(chat) == '[{"name": "fä"}]1FalseFalse'


def test_template_of_file_precedes_those_of_configuration(tmp_path) -> None:
    listed = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    made = template(tmp_path, listed)
    assert made.render(CHAT) == "plain"
    assert made.render(ChatPrompt(messages=[], tools=[{}])) == "tools"
    (tmp_path / "chat_template.jinja").write_text("{% generation %}own{% endgeneration %}")
    assert ChatTemplate(tmp_path).render(CHAT) == "own"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no') }}",
        "{{ messages[5].content.x }}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    ],
)
def test_failing_template_raises_template_error(tmp_path, source) -> None:
    with pytest.raises(TemplateError):
        template(tmp_path, source).render(CHAT)


def test_template_can_format_date(tmp_path) -> None:
    assert template(tmp_path, "{{ strftime_now('%Y') }}").render(CHAT) >= "2024"


@pytest.mark.parametrize("content", [None, "{}", '{"chat_template": "{% if %}"}', "nothing", "[]"])
def test_folder_without_valid_template_is_an_error(tmp_path, content) -> None:
    if content is not None:
        (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(InvalidSettings):
        ChatTemplate(tmp_path)
