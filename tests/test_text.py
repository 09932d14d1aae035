"""Texts to token ids: deterministic, cut, paired, padded."""

import numpy as np
import pytest

from ffalora_jax.errors import InputError
from ffalora_jax.text import block_widths, hash_tokenizer, load_tokenizer

WORDS = "[PAD] [UNK] [CLS] [SEP] the film was fine ##r not bad at all".split()
TEXTS = ["The film was FINE!", "bad", "not bad at all, not at all bad"]
PAIRS = ["fine", "the film was not bad at all", "bad"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with a tokenizer.json as BERT's: WordPiece, lower case, [CLS] a [SEP] b [SEP]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    ids = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    tokenizer.enable_padding(length=99)  # published files have settings of their own
    tokenizer.enable_truncation(2)
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(params=["hash", "file"])
def tokenise(request, checkpoint):
    return hash_tokenizer(2048) if request.param == "hash" else load_tokenizer(checkpoint)


def words_of(ids):
    return [WORDS[index] for index in ids]


@pytest.mark.parametrize("pairs", [None, PAIRS])
@pytest.mark.parametrize("max_tokens", [4, 7, 32])
def test_the_mask_is_the_lengths(tokenise, pairs, max_tokens):
    tokens = tokenise(TEXTS, pairs, max_tokens)
    mask = tokens.inputs["attention_mask"]
    assert mask.shape == (3, max_tokens)
    np.testing.assert_array_equal(mask, np.arange(max_tokens) < tokens.lengths[:, None])
    assert tokens.lengths.min() >= 3
    assert not tokens.inputs["input_ids"][~mask].any()


@pytest.mark.parametrize("pairs", [None, PAIRS])
def test_texts_are_tokenised_each_on_its_own(tokenise, pairs):
    together = tokenise(TEXTS, pairs, 16)
    for index, text in enumerate(TEXTS):
        alone = tokenise([text], None if pairs is None else [pairs[index]], 16)
        for name, leaf in alone.inputs.items():
            np.testing.assert_array_equal(leaf[0], together.inputs[name][index])


def test_a_long_text_is_cut_and_still_ends_in_its_separator(tokenise):
    whole, cut = tokenise(TEXTS[2:], None, 32), tokenise(TEXTS[2:], None, 6)
    assert cut.lengths.tolist() == [6]
    ids, last = whole.inputs["input_ids"][0], whole.lengths[0] - 1
    np.testing.assert_array_equal(cut.inputs["input_ids"][0], [*ids[:5], ids[last]])


def test_pairs_have_types_and_single_texts_none(tokenise):
    assert "token_type_ids" not in tokenise(TEXTS, None, 16).inputs
    tokens = tokenise(["the film"], ["not bad at all"], 16)
    assert tokens.inputs["token_type_ids"][0].tolist() == [0] * 4 + [1] * 5 + [0] * 7


def test_a_pair_that_is_too_long_keeps_some_of_both(tokenise):
    tokens = tokenise(["not bad at all " * 5], ["the film was fine " * 5], 12)
    types = tokens.inputs["token_type_ids"][0]
    assert tokens.lengths.tolist() == [12]
    assert 4 <= types.sum() <= 7


def test_hashing_ignores_case_and_separates_punctuation():
    tokenise = hash_tokenizer(2048)
    one, other = tokenise(["Fine, THANKS!"], None, 8), tokenise(["fine , thanks !"], None, 8)
    np.testing.assert_array_equal(one.inputs["input_ids"], other.inputs["input_ids"])
    assert one.lengths.tolist() == [6]


def test_hashed_ids_are_the_same_in_every_process():
    ids = hash_tokenizer(2048)(["the film was fine"], None, 8).inputs["input_ids"][0]
    assert ids.tolist() == [1, 111, 580, 429, 1772, 2, 0, 0]


@pytest.mark.parametrize("vocab_size", [5, 2048])
def test_hashed_ids_stay_in_the_vocabulary(vocab_size):
    many = " ".join(f"word{n}" for n in range(400))
    ids = hash_tokenizer(vocab_size)([many], None, 402).inputs["input_ids"]
    assert ids.min() >= 1
    assert ids.max() < vocab_size


def test_a_tokenizer_file_is_followed(checkpoint):
    tokens = load_tokenizer(checkpoint)(["The finer film"], ["bad stuff"], 16)
    ids = tokens.inputs["input_ids"][0][: tokens.lengths[0]]
    assert words_of(ids) == "[CLS] the fine ##r film [SEP] bad [UNK] [SEP]".split()


def test_a_vocabulary_file_alone_is_enough(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    tokens = load_tokenizer(tmp_path)(["The finer film"], None, 16)
    ids = tokens.inputs["input_ids"][0][: tokens.lengths[0]]
    assert words_of(ids) == "[CLS] the fine ##r film [SEP]".split()


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"No tokenizer\.json or vocabulary"):
        load_tokenizer(tmp_path)


def test_a_broken_tokenizer_file_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"Cannot read .*tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_widths_end_with_the_full_one_and_are_public():
    assert block_widths(48) == (24, 32, 48)
    assert block_widths(24) == (24,)
