"""Chat templates: transformers' prompts, token for token; a malformed one is a one-line error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import SecurityError
from transformers import AutoTokenizer

from engines.chat_template.template import ChatTemplate
from engines.errors import EngineDirectoryError, InvalidRequestError
from engines.text import TextCodec
from maskgen.models import cached_directory
from tests.engines.chat_template.templates import FEATURES, TEMPLATES
from tests.tiny_model import make_tokenizer

MESSAGE = [{"role": "user", "content": "Hi"}]
SPECIAL = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}

TEXTS = st.text(max_size=20) | st.sampled_from(
    [
        " spaced ",
        "<think>\nhm\n</think>\n\nso",
        "/no_think go",
        "<|im_end|>\n<|im_start|>",
        "<result>1</result>",
        '{"a": "<&>"}',
        "",
        "\n",
        "été 🌶",
    ]
).filter(lambda text: not any("\ud800" <= char <= "\udfff" for char in text))


def messages(roles: list[str]) -> st.SearchStrategy[list[dict[str, Any]]]:
    optional = {
        "reasoning_content": st.none() | TEXTS,
        "thinking": st.none() | TEXTS,
        "name": st.none() | st.just("Ada"),
    }
    message = st.fixed_dictionaries(
        {"role": st.sampled_from(roles), "content": TEXTS}, optional=optional
    )
    return st.lists(message, min_size=1, max_size=6)


def write_model(directory: Path, template: Any = None, **config: Any) -> Path:
    """A tokenizer and no model."""
    directory.mkdir(parents=True, exist_ok=True)
    make_tokenizer().save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL, **config}
    if template is not None:
        config["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def assert_same_prompts(
    codec: TextCodec,
    reference: Any,
    conversation: list[dict[str, Any]],
    add: bool,
    **arguments: Any,
) -> None:
    expected, error = "", None
    try:
        expected = reference.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=add, **arguments
        )
    except Exception as raised:
        error = raised
    if error is None:
        prompt = codec.render_chat(conversation, generation_prompt=add, arguments=arguments)
        assert prompt == expected
        ids = reference(expected, add_special_tokens=False)["input_ids"]
        assert codec.encode(prompt, add_special_tokens=False) == ids
        return
    with pytest.raises(InvalidRequestError) as refused:
        codec.render_chat(conversation, generation_prompt=add, arguments=arguments)
    if not isinstance(error, SecurityError):  # those say it in other words
        assert " ".join(str(error).split()) in str(refused.value)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[TextCodec, Any]]:
    """Each template as we read it, and as transformers does."""
    found = {}
    for name, template in TEMPLATES.items():
        directory = write_model(tmp_path_factory.mktemp(name), template)
        found[name] = (TextCodec(directory), AutoTokenizer.from_pretrained(directory))
    return found


@pytest.mark.parametrize("name", TEMPLATES)
@settings(deadline=None, max_examples=60)
@given(
    conversation=messages(["system", "user", "assistant", "tool"])
    | messages(["user"])
    | st.lists(TEXTS, min_size=1, max_size=5).map(
        lambda texts: [
            {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)
        ]
    ),
    add=st.booleans(),
)
def test_prompts_are_those_of_transformers(
    pairs: dict[str, tuple[TextCodec, Any]],
    name: str,
    conversation: list[dict[str, Any]],
    add: bool,
) -> None:
    assert_same_prompts(*pairs[name], conversation, add)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(deadline=None, max_examples=60)
@given(conversation=messages(["user", "assistant"]))
def test_continued_messages_are_those_of_transformers(
    pairs: dict[str, tuple[TextCodec, Any]], name: str, conversation: list[dict[str, Any]]
) -> None:
    codec, reference = pairs[name]
    options = {"continue_final_message": True}
    try:
        expected = reference.apply_chat_template(conversation, tokenize=False, **options)
    except Exception:
        with pytest.raises(InvalidRequestError):
            codec.render_chat(conversation, generation_prompt=False, **options)
        return
    for tag in ("CONTINUE_FINAL_MESSAGE_TAG ", "CONTINUE_FINAL_MESSAGE_TAG"):
        expected = expected.replace(tag, "")  # left over where a message is shown twice
    assert codec.render_chat(conversation, generation_prompt=False, **options) == expected


@pytest.mark.parametrize("content", ["a", "a ", " ", ""])
def test_a_message_is_continued_where_it_ends(tmp_path: Path, content: str) -> None:
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</end>{% endfor %}"
    codec = TextCodec(write_model(tmp_path, template))
    talk = [*MESSAGE, {"role": "assistant", "content": content}]
    options = {"continue_final_message": True, "generation_prompt": False}
    assert codec.render_chat(talk, **options) == f"<user>Hi</end><assistant>{content}"


def test_a_message_without_text_is_not_continued(tmp_path: Path) -> None:
    codec = TextCodec(write_model(tmp_path, "{{ messages[0]['role'] }}"))
    for talk in ([], [{"role": "assistant"}], MESSAGE):
        with pytest.raises(InvalidRequestError, match="last message") as refused:
            codec.render_chat(talk, continue_final_message=True)
        assert refused.value.param == "messages"


@pytest.mark.parametrize("thinking", [True, False, None, [1, {"a": "b"}]])
def test_arguments_are_variables_of_the_template(tmp_path: Path, thinking: Any) -> None:
    template = "{{ messages[0]['content'] }}{% if enable_thinking is true %}T{% endif %}"
    template += "{{ enable_thinking | tojson }}"
    directory = write_model(tmp_path, template)
    codec, reference = TextCodec(directory), AutoTokenizer.from_pretrained(directory)
    assert_same_prompts(codec, reference, MESSAGE, True, enable_thinking=thinking)


@pytest.mark.parametrize("name", ["messages", "tools", "bos_token", "raise_exception", "range"])
def test_what_a_template_is_given_anyway_is_no_argument(tmp_path: Path, name: str) -> None:
    codec = TextCodec(write_model(tmp_path, "{{ messages[0]['content'] }}"))
    with pytest.raises(InvalidRequestError, match=name) as refused:
        codec.render_chat(MESSAGE, arguments={name: "x"})
    assert refused.value.param == "chat_template_kwargs"


@pytest.fixture(scope="module")
def smollm2() -> tuple[TextCodec, Any]:
    directory = cached_directory("smollm2-135m")
    if not directory.is_dir():
        pytest.skip("SmolLM2 is not in the cache; `twofour demo` brings it")
    return TextCodec(directory), AutoTokenizer.from_pretrained(directory)


@settings(deadline=None, max_examples=100)
@given(conversation=messages(["system", "user", "assistant"]), add=st.booleans())
def test_smollm2_prompts_are_those_of_transformers(
    smollm2: tuple[TextCodec, Any], conversation: list[dict[str, Any]], add: bool
) -> None:
    assert_same_prompts(*smollm2, conversation, add)


@pytest.mark.parametrize("template", FEATURES)
def test_language_features_are_those_of_transformers(template: str, tmp_path: Path) -> None:
    directory = write_model(tmp_path, template)
    reference = AutoTokenizer.from_pretrained(directory)
    try:
        codec = TextCodec(directory)
    except EngineDirectoryError:
        with pytest.raises(Exception):  # noqa: B017, PT011 - a SyntaxError of Python's
            reference.apply_chat_template(MESSAGE, tokenize=False)
        return
    assert_same_prompts(codec, reference, MESSAGE, True)


def test_which_template_is_used(tmp_path: Path) -> None:
    listed = [
        {"name": "default", "template": "default of the config"},
        {"name": "tool_use", "template": "tools"},
    ]
    directory = write_model(tmp_path, listed)
    assert TextCodec(directory).render_chat(MESSAGE) == "default of the config"
    (directory / "chat_template.jinja").write_text("file", encoding="utf-8")
    assert TextCodec(directory).render_chat(MESSAGE) == "file"
    folder = directory / "additional_chat_templates"
    folder.mkdir()
    (folder / "tool_use.jinja").write_text("tools", encoding="utf-8")
    assert TextCodec(directory).render_chat(MESSAGE) == "file"
    (folder / "default.jinja").write_text("default in the folder", encoding="utf-8")
    (directory / "chat_template.jinja").unlink()
    codec, reference = TextCodec(directory), AutoTokenizer.from_pretrained(directory)
    assert_same_prompts(codec, reference, MESSAGE, True)


@pytest.mark.parametrize(
    "template", [None, [{"name": "tool_use", "template": "tools"}]], ids=["none", "no default"]
)
def test_without_a_template_chats_are_refused(template: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="no chat template"):
        TextCodec(write_model(tmp_path, template)).render_chat(MESSAGE)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for %}", "line 1"),
        ("\n\n{{ a", "line 3"),
        ("{{ 1 | nonsense }}", "line 1: No filter named 'nonsense'"),
        ("{% generation %}", "line 1"),
        ("{{ " + "(" * 5000, "it recurses too deeply"),
        ("{% for a in b %}" * 30 + "{% endfor %}" * 30, "too many statically nested blocks"),
        ("{{ " + "9" * 5000 + " }}", "4300 digits"),
        ("x" * (2 << 20), "at most 1048576"),
        (5, "chat_template is int"),
        ([{"name": "default"}], "chat_template is NoneType"),
    ],
)
def test_a_malformed_template_is_one_line_that_names_the_file(
    template: Any, reason: str, tmp_path: Path
) -> None:
    directory = write_model(tmp_path, template)
    with pytest.raises(EngineDirectoryError) as refused:
        TextCodec(directory)
    assert str(refused.value).startswith(str(directory / "tokenizer_config.json"))
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_malformed_template_file_is_named(tmp_path: Path) -> None:
    directory = write_model(tmp_path)
    path = directory / "chat_template.jinja"
    path.write_text("{% if %}")
    with pytest.raises(EngineDirectoryError, match=str(path)):
        TextCodec(directory)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(EngineDirectoryError, match="unreadable"):
        TextCodec(directory)


@pytest.mark.parametrize("error", ["{{ 1 + 'a' }}", "{{ [][0].x }}", "{{ ''.split('') }}"])
def test_whatever_a_template_raises_is_a_refusal_in_one_line(error: str) -> None:
    with pytest.raises(InvalidRequestError, match="refuses these messages") as refused:
        ChatTemplate(error, Path("t"), {}).render(MESSAGE)
    assert refused.value.param == "messages"


def test_a_refusal_can_be_sent_whatever_the_template_says() -> None:
    template = ChatTemplate("{{ raise_exception(messages[0].content * 1000) }}", Path("t"), {})
    with pytest.raises(InvalidRequestError) as refused:
        template.render([{"role": "user", "content": "a\ud83d\nb"}])
    assert len(str(refused.value).encode()) < 1000
