"""Text in and out for language models: ids and back, end tokens, chat templates, instructions."""

import json

import numpy as np
import pytest

from ffalora_jax.codec import TextCodec, encode_instructions, encode_prompts, load_codec
from ffalora_jax.errors import InputError
from ffalora_jax.text import load_tokenizer

WORDS = "<unk> <s> </s> <pad> <|user|> <|end|> what is one two three and plus ?".split()
SPECIAL = WORDS[:6]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}"
    "{% endif %}<|user|> {{ m.content }} <|end|>{% endfor %}{% if add_generation_prompt %} two{% endif %}"
)


def write_tokenizer(folder, template=None, **settings):
    """A folder with a tokenizer of whole words, as language models have: <s> in front of a text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    ids = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", ids["<s>"])]
    )
    tokenizer.enable_padding(length=99)  # published files have settings of their own
    tokenizer.enable_truncation(2)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    known = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "unk_token": "<unk>"}
    known |= {"eos_token": "</s>", "pad_token": "<pad>", "chat_template": template} | settings
    known = {name: value for name, value in known.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(known))
    return folder


@pytest.fixture
def codec(tmp_path):
    return load_codec(write_tokenizer(tmp_path))


def words_of(tokens, row, name="attention_mask"):
    return [WORDS[index] for index in tokens.inputs["input_ids"][row][tokens.inputs[name][row]]]


def test_ids_come_without_special_tokens_and_text_comes_back_without_them(codec):
    assert codec.encode(["what is one", ""]) == [[6, 7, 8], []]
    assert codec.start_ids == (1,)
    assert (codec.end_id, codec.pad_id) == (2, 3)
    assert codec.decode(np.array([1, 6, 8, 2, 3])) == "whatone"


def test_a_codec_is_a_tokenizer_too(codec, tmp_path):
    texts = ["what is one", "two"]
    ours, plain = codec(texts, None, 8), load_tokenizer(tmp_path)(texts, None, 8)
    for name in ("input_ids", "attention_mask"):
        np.testing.assert_array_equal(ours.inputs[name], plain.inputs[name])
    assert words_of(codec(["one"], ["two three"], 3), 0) == ["<s>", "one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("tokenizer_config.json", {"eos_token": {"content": "<|end|>"}}, 5),
        ("special_tokens_map.json", {"eos_token": "<|end|>"}, 5),
        ("generation_config.json", {"eos_token_id": [5, 2]}, 5),
        ("config.json", {"eos_token_id": 2}, 2),
    ],
)
def test_the_end_token_is_found_where_it_is_written(name, content, expected, tmp_path):
    write_tokenizer(tmp_path, eos_token=None, pad_token=None)
    with pytest.raises(InputError, match=r"No end token in .*eos_token"):
        load_codec(tmp_path)
    (tmp_path / name).write_text(json.dumps(content))
    codec = load_codec(tmp_path)
    assert codec.end_id == codec.pad_id == expected


def test_a_folder_without_a_tokenizer_or_with_a_broken_one_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"No tokenizer\.json"):
        load_codec(tmp_path)
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config\.json is not JSON"):
        load_codec(tmp_path)


def test_instructions_are_prompt_response_end_and_the_mask_is_on_the_last_two(codec):
    tokens = encode_instructions(codec, ["what is one", "two"], ["two three", ""], 8)
    assert words_of(tokens, 0) == "<s> what is one two three </s>".split()
    assert words_of(tokens, 0, "response_mask") == "two three </s>".split()
    assert words_of(tokens, 1) == "<s> two </s>".split()
    assert words_of(tokens, 1, "response_mask") == ["</s>"]
    assert tokens.lengths.tolist() == [7, 3]
    assert set(tokens.inputs) == {"input_ids", "attention_mask", "response_mask"}
    assert all(leaf.shape == (2, 8) for leaf in tokens.inputs.values())


@pytest.mark.parametrize(
    ("max_tokens", "row", "learnt"),
    [
        (6, "<s> is one two three </s>", "two three </s>"),
        (5, "<s> one two three </s>", "two three </s>"),
        (4, "one two three </s>", "two three </s>"),
        (3, "one two three", "two three"),
        (2, "one two", "two"),
    ],
)
def test_the_prompt_is_cut_first_and_the_response_never_to_nothing(max_tokens, row, learnt, codec):
    tokens = encode_instructions(codec, ["what is one"], ["two three"], max_tokens)
    assert words_of(tokens, 0) == row.split()
    assert words_of(tokens, 0, "response_mask") == learnt.split()


def test_prompts_are_those_before_the_responses(codec):
    prompts = ["what is one plus two", "one"]
    alone = encode_prompts(codec, prompts, 4)
    trained = encode_instructions(codec, prompts, ["three", "three"], 6)
    for row in range(2):
        before = trained.inputs["attention_mask"][row] & ~trained.inputs["response_mask"][row]
        np.testing.assert_array_equal(
            trained.inputs["input_ids"][row][before],
            alone.inputs["input_ids"][row][alone.inputs["attention_mask"][row]],
        )
    assert words_of(alone, 0) == "<s> one plus two".split()


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja"])
def test_messages_go_through_the_chat_template(place, tmp_path):
    write_tokenizer(tmp_path, TEMPLATE if place == "tokenizer_config.json" else None)
    if place == "chat_template.jinja":
        (tmp_path / place).write_text(TEMPLATE)
    codec = load_codec(tmp_path)
    messages = [{"role": "user", "content": "what is one ?"}]
    tokens = encode_instructions(codec, [messages, "one"], ["one", "one"], 16)
    assert words_of(tokens, 0) == "<s> <|user|> what is one ? <|end|> two one </s>".split()
    assert words_of(tokens, 1) == "<s> one one </s>".split()
    assert words_of(encode_prompts(codec, [messages], 4), 0) == "<s> ? <|end|> two".split()
    with pytest.raises(InputError, match=r"chat template.*'tool'.*no tools"):
        encode_prompts(codec, [[{"role": "tool", "content": ""}]], 4)


def test_a_template_that_writes_todays_date_writes_a_fixed_one(tmp_path):
    template = (
        "{% if date_string is not defined %}{% set date_string = strftime_now('%d') %}{% endif %}"
    )
    codec = load_codec(write_tokenizer(tmp_path, template + "{{ date_string }}"))
    assert codec.chat([{"role": "user", "content": "one"}]) == "26 Jul 2024"


def test_messages_without_a_template_and_unmatched_responses_are_refused(codec):
    with pytest.raises(InputError, match=r"no chat template.*chat_template\.jinja"):
        encode_instructions(codec, [[{"role": "user", "content": "one"}]], ["two"], 8)
    with pytest.raises(InputError, match="response for each of 2 prompts, got 1"):
        encode_instructions(codec, ["one", "two"], ["two"], 8)
    with pytest.raises(InputError, match="max_tokens >= 2, got 1"):
        encode_instructions(codec, ["one"], ["two"], 1)


def test_a_tokenizer_that_ends_its_texts_does_not_end_prompts():
    def encode(texts):
        return [[ord(letter) for letter in text] for text in texts]

    codec = TextCodec(encode, lambda ids: "".join(map(chr, ids)), (), 0, 0)
    tokens = encode_instructions(codec, ["ab"], ["c"], 4)
    assert tokens.inputs["input_ids"].tolist() == [[97, 98, 99, 0]]
    assert tokens.inputs["response_mask"].tolist() == [[False, False, True, True]]
