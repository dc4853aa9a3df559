"""A checkpoint folder's text side: what is read, what is refused and by which file's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from baton.errors import ConfigError, InvalidArgument
from router.request import Message, SamplingDefaults
from router.text.model_text import ModelText

CONFIG: dict[str, Any] = {
    "vocab_size": 300,
    "max_position_embeddings": 128,
    "bos_token_id": 256,
    "eos_token_id": 257,
}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}\n"
    "    {% if message.role not in ['system', 'user', 'assistant'] %}\n"
    "{{ raise_exception('no role ' + message.role) }}\n"
    "    {% endif %}\n"
    "{{ '[' + message['role'] + (message.name or '') + ']' }}"
    "{% generation %}{{ message['content'] }}{% endgeneration %}\n"
    "{% if loop.index == 3 %}{% break %}{% endif %}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def write(folder: Path, name: str, value: object) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    (folder / name).write_text(text, encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    alphabet = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 256)]
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, "config.json", CONFIG)
    write(tmp_path, "generation_config.json", {"eos_token_id": [258, 257], "temperature": 0.6})
    write(tmp_path, "tokenizer_config.json", {"bos_token": {"content": "<s>"}, "eos_token": "</s>"})
    write(tmp_path, "chat_template.jinja", TEMPLATE)
    return tmp_path


def test_encode_adds_the_bos_and_neither_cuts_nor_pads(folder: Path) -> None:
    model = ModelText.load(folder)
    ids = model.encode("héllo wörld 😀")
    assert ids[0] == 256
    assert len(ids) == 1 + len("héllo wörld 😀".encode())
    assert model.decode(ids) == "héllo wörld 😀"
    assert model.decode(ids, skip_special_tokens=False) == "<s>héllo wörld 😀"
    assert model.encode("a", add_special_tokens=False) == ids_without_bos(model, "a")
    assert model.token_bytes(256) == b"<s>"


def ids_without_bos(model: ModelText, text: str) -> list[int]:
    return model.encode(text)[1:]


def test_a_rendered_chat_has_one_bos(folder: Path) -> None:
    model = ModelText.load(folder)
    messages = [Message("system", "be <kind>"), Message("user", "hi", name="Ann")]
    assert model.render(messages) == "<s>[system]be <kind>[userAnn]hi[assistant]"
    ids = model.encode_chat(messages)
    assert ids.count(256) == 1
    assert model.decode(ids, skip_special_tokens=False) == model.render(messages)


def test_a_developer_speaks_as_the_system(folder: Path) -> None:
    model = ModelText.load(folder)
    assert model.render([Message("developer", "x")]) == model.render([Message("system", "x")])


def test_loop_controls_work(folder: Path) -> None:
    rendered = ModelText.load(folder).render([Message("user", str(i)) for i in range(9)])
    assert "[user]2" in rendered
    assert "[user]3" not in rendered


def test_what_the_template_refuses_is_the_messages_fault(folder: Path) -> None:
    with pytest.raises(InvalidArgument, match="no role tool") as caught:
        ModelText.load(folder).render([Message("tool", "x")])
    assert caught.value.field == "chat.messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[5].content.x }}",
        "{{ messages + 1 }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% include 'other' %}",
        "{% macro again(x) %}{{ again(x) }}{% endmacro %}{{ again(1) }}",
    ],
)
def test_a_template_that_fails_is_a_typed_error(folder: Path, source: str) -> None:
    write(folder, "chat_template.jinja", source)
    with pytest.raises(InvalidArgument):
        ModelText.load(folder).render([Message("user", "x")])


@pytest.mark.parametrize(
    ("file", "value", "why"),
    [
        ("chat_template.jinja", b"{% if %}", "does not parse"),
        ("chat_template.jinja", b"{{ '\xe9' }}", "UTF-8"),
        (
            "tokenizer_config.json",
            b'{"chat_template": [{"name": "tool", "template": ""}]}',
            "default",
        ),
        ("tokenizer_config.json", b'{"chat_template": 7}', "must be a template"),
    ],
)
def test_a_template_that_cannot_be_used_stops_chats_alone(
    folder: Path, file: str, value: bytes, why: str
) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / file).write_bytes(value)
    model = ModelText.load(folder)
    assert model.encode("x")
    with pytest.raises(InvalidArgument, match=why) as caught:
        model.encode_chat([Message("user", "x")])
    assert caught.value.field == "chat.messages"
    assert file in str(caught.value)


def test_the_helpers_of_templates_are_there(folder: Path) -> None:
    source = "{{ strftime_now('%Y')|length }} {{ {'a': '<é>'}|tojson }} {{ ['é']|tojson(true) }}"
    write(folder, "chat_template.jinja", source)
    rendered = ModelText.load(folder).render([Message("user", "x")])
    assert rendered == '4 {"a": "<é>"} ["\\u00e9"]'


@pytest.mark.parametrize(
    "stated",
    [
        "{{ messages[0].content }}",
        [
            {"name": "tool", "template": ""},
            {"name": "default", "template": "{{ messages[0].content }}"},
        ],
    ],
)
def test_a_template_in_tokenizer_config_is_used(folder: Path, stated: object) -> None:
    (folder / "chat_template.jinja").unlink()
    write(folder, "tokenizer_config.json", {"chat_template": stated})
    assert ModelText.load(folder).render([Message("user", "x")]) == "x"


def test_a_model_without_template_refuses_chat(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InvalidArgument, match="no chat template"):
        ModelText.load(folder).encode_chat([Message("user", "x")])


def test_the_files_say_where_samples_end_and_how_to_draw(folder: Path) -> None:
    model = ModelText.load(folder)
    assert model.eos_token_ids == (257, 258)
    assert model.config.bos_token_id == 256
    limits = model.limits(64)
    assert (limits.vocab_size, limits.max_model_len, limits.has_text) == (300, 64, True)
    assert limits.defaults == SamplingDefaults(temperature=0.6)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_token_that_ends_samples_may_stand_beside_the_tokenizer_alone(
    folder: Path, file: str
) -> None:
    write(folder, "config.json", CONFIG | {"eos_token_id": None})
    (folder / "generation_config.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    for eos, ids in (("</s>", (257,)), ({"content": "<s>"}, (256,)), ("<unknown>", ()), (None, ())):
        write(folder, file, {"eos_token": eos})
        assert ModelText.load(folder).eos_token_ids == ids


def test_tokenizer_config_goes_before_the_map_of_special_tokens(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"bos_token": "<s>"})
    write(folder, "special_tokens_map.json", {"bos_token": "</s>", "eos_token": "<end>"})
    write(folder, "chat_template.jinja", "{{ bos_token }}{{ eos_token }}")
    assert ModelText.load(folder).render([Message("user", "x")]) == "<s><end>"


def test_text_that_is_no_unicode_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidArgument) as caught:
        ModelText.load(folder).encode("\ud800")
    assert caught.value.field == "text"
    with pytest.raises(InvalidArgument) as caught:
        ModelText.load(folder).encode_chat([Message("user", "\ud800")])
    assert caught.value.field == "chat.messages"


def test_a_folder_without_tokenizer_knows_token_ids_only(tmp_path: Path) -> None:
    write(tmp_path, "config.json", CONFIG)
    model = ModelText.load(tmp_path)
    assert not model.has_tokenizer
    assert not model.limits(64).has_text
    assert model.eos_token_ids == (257,)
    assert model.detokenizer((1,)).push((2,)) == ""
    assert model.token_bytes(3) == b""
    with pytest.raises(InvalidArgument, match="no tokenizer"):
        model.encode("x")
    with pytest.raises(InvalidArgument, match="no tokenizer"):
        model.decode([1])
    with pytest.raises(InvalidArgument, match="no chat template"):
        model.render([Message("user", "x")])


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("config.json", None, "config.json"),
        ("config.json", "{", "config.json"),
        ("config.json", [], "config.json"),
        ("config.json", CONFIG | {"vocab_size": None}, "config.json.vocab_size"),
        ("config.json", CONFIG | {"vocab_size": True}, "config.json.vocab_size"),
        (
            "config.json",
            CONFIG | {"max_position_embeddings": 0},
            "config.json.max_position_embeddings",
        ),
        ("config.json", CONFIG | {"eos_token_id": "</s>"}, "config.json.eos_token_id"),
        ("generation_config.json", "x", "generation_config.json"),
        ("generation_config.json", {"eos_token_id": [-1]}, "generation_config.json.eos_token_id"),
        ("generation_config.json", {"top_p": 1.5}, "generation_config.json.top_p"),
        ("generation_config.json", {"top_k": 2.5}, "generation_config.json.top_k"),
        ("tokenizer.json", None, "tokenizer.json"),
        ("tokenizer.json", "{}", "tokenizer.json"),
        ("tokenizer.json", "not json", "tokenizer.json"),
        ("tokenizer_config.json", "[", "tokenizer_config.json"),
        ("special_tokens_map.json", "[", "special_tokens_map.json"),
    ],
)
def test_a_wrong_file_is_refused_by_name(
    folder: Path, name: str, value: object, field: str
) -> None:
    if value is None:
        (folder / name).unlink()
    else:
        write(folder, name, value)
    with pytest.raises(ConfigError) as caught:
        ModelText.load(folder)
    assert caught.value.field == field
    assert str(folder) in caught.value.message or name in str(caught.value)
