"""Kept tokens are found by what they were made from; whatever is not whole is made anew."""

import os
import threading
import zipfile

import numpy as np
import pytest

from ffalora_jax import cache, encode
from ffalora_jax.codec import load_codec
from ffalora_jax.data import Dataset, as_dataset
from ffalora_jax.text import load_tokenizer
from tests.test_codec import TEMPLATE, write_tokenizer

TEXTS = ["what is one and two", "three", "one plus two plus three ?"]
PAIRS = ["three", "what is two", "one"]
CHAT = [[{"role": "user", "content": text}] for text in TEXTS]


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """The folder of kept tokens, empty."""
    monkeypatch.setenv("FFALORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def folder(tmp_path):
    return write_tokenizer(tmp_path / "checkpoint")


class Counted:
    """A tokenizer that says how often it was asked."""

    def __init__(self, folder):
        self.real, self.calls = load_tokenizer(folder), 0

    def __call__(self, *arguments):
        self.calls += 1
        return self.real(*arguments)


def encoded(folder, texts=TEXTS, pairs=None, max_tokens=8):
    """Encodes as a new process would; returns the arrays and whether the tokenizer was asked."""
    columns = {"text": texts, "label": [index % 2 for index in range(len(texts))]}
    columns |= {} if pairs is None else {"text_pair": pairs}
    data = as_dataset(columns, text_pair=None if pairs is None else "text_pair")
    tokenizer = Counted(folder)
    return encode.encode_text(data, tokenizer, max_tokens, folder), tokenizer.calls == 1


def assert_same(one, other):
    np.testing.assert_array_equal(one.lengths, other.lengths)
    assert one.inputs.keys() == other.inputs.keys()
    for name, leaf in one.inputs.items():
        assert leaf.dtype == other.inputs[name].dtype
        np.testing.assert_array_equal(leaf, other.inputs[name])


@pytest.mark.parametrize("pairs", [None, PAIRS])
def test_the_same_texts_are_tokenised_once(pairs, folder, kept):
    first, made = encoded(folder, pairs=pairs)
    again, made_again = encoded(folder, pairs=pairs)
    assert (made, made_again) == (True, False)
    assert_same(first, again)
    assert first.may_be_cut == again.may_be_cut
    assert len(list(kept.iterdir())) == 1, "and nothing half-written lies beside it"


CHANGES = {
    "a text": {"texts": [*TEXTS[:2], "one plus two plus two ?"]},
    "a letter": {"texts": [*TEXTS[:2], "one plus two plus threE ?"]},
    "their order": {"texts": TEXTS[::-1]},
    "one text less": {"texts": TEXTS[:2]},
    "where one ends": {"texts": ["what is one and twot", "hree", TEXTS[2]]},
    "pairs": {"pairs": PAIRS},
    "another pair": {"pairs": [*PAIRS[:2], "two"]},
    "pairs for texts": {"texts": PAIRS, "pairs": TEXTS},
    "the length": {"max_tokens": 9},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_makes_a_new_entry(change, folder, kept):
    for before in ({}, {"pairs": PAIRS}):
        if before != CHANGES[change]:
            encoded(folder, **before)
    count = len(list(kept.iterdir()))
    found, made = encoded(folder, **CHANGES[change])
    assert made
    assert len(list(kept.iterdir())) == count + 1
    settings = {"texts": TEXTS, "pairs": None, "max_tokens": 8} | CHANGES[change]
    assert_same(found, load_tokenizer(folder)(*settings.values()))


def test_empty_pairs_are_not_no_pairs(folder):
    encoded(folder)
    found, made = encoded(folder, pairs=["", "", ""])
    assert made
    assert "token_type_ids" in found.inputs


@pytest.mark.parametrize("file", encode.WORD_FILES)
def test_a_change_of_any_file_of_the_tokenizer_makes_a_new_entry(file, folder):
    before = encode._name(folder, {"text": TEXTS}, 8)
    assert encode._name(folder, {"text": TEXTS}, 8) == before
    (folder / file).write_text("changed")
    changed = encode._name(folder, {"text": TEXTS}, 8)
    assert changed != before


@pytest.mark.parametrize("library", ["tokenizers", "transformers"])
def test_another_version_of_a_library_makes_a_new_entry(library, folder, monkeypatch):
    encoded(folder)
    monkeypatch.setattr(encode, "version", lambda name: f"9 {name == library}")
    assert encoded(folder)[1]


def test_another_tokenizer_in_the_same_folder_is_asked(folder):
    first, _ = encoded(folder)
    words = folder / "tokenizer.json"
    words.write_text(words.read_text().replace('"one":', '"uno":'))
    found, made = encoded(folder)
    assert made
    assert (found.inputs["input_ids"] != first.inputs["input_ids"]).any()


def damage(path, kind):
    data = path.read_bytes()
    middle = len(data) // 2
    if kind == "half-written":
        path.write_bytes(data[:middle])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "not an archive":
        path.write_bytes(b"0" * len(data))
    elif kind == "a flipped bit":
        # In the compressed ids themselves, where only the checksum can tell.
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo("input_ids.npy")
        place = entry.header_offset + 30 + len("input_ids.npy") + entry.compress_size // 2 + 20
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    elif kind == "a member less":
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files if name != "lengths"}
        np.savez_compressed(path, **arrays)
    elif kind == "rows of other texts":
        with np.load(path) as file:
            arrays = {n: file[n][:2] if file[n].ndim else file[n] for n in file.files}
        np.savez_compressed(path, **arrays)
    elif kind == "of another name":
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files} | {"name": np.array("0" * 64)}
        np.savez_compressed(path, **arrays)
    elif kind == "pickled":
        np.savez_compressed(path, lengths=np.array([{}], dtype=object))
    else:
        path.unlink()
        path.mkdir()


DAMAGES = ["half-written", "empty", "not an archive", "a flipped bit", "a member less"]
DAMAGES += ["rows of other texts", "of another name", "pickled", "a folder"]


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_entry_is_never_used(kind, folder, kept):
    first, _ = encoded(folder)
    (entry,) = kept.iterdir()
    damage(entry, kind)
    found, made = encoded(folder)
    assert made
    assert_same(found, first)
    again, made = encoded(folder)
    assert made == (kind == "a folder"), "it was written anew, where that can be done"
    assert_same(again, first)


def test_a_run_that_dies_while_writing_leaves_nothing_that_is_read(folder, kept, monkeypatch):
    def die(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            encoded(folder)
    assert list(kept.iterdir()) == []
    # A process that is killed has no time to tidy up: its part has another name.
    name = encode._name(folder, {"text": TEXTS}, 8)
    (kept / f".{name}.npz.abc").write_bytes(b"half")
    assert encoded(folder)[1]
    assert not encoded(folder)[1]


def test_runs_at_the_same_time_read_whole_entries_only(folder, kept):
    expected = load_tokenizer(folder)(TEXTS, None, 8)
    found, wrong = [], []

    def work():
        for _ in range(5):
            try:
                found.append(encoded(folder)[0])
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(found) == 20
    for one in found:
        assert_same(one, expected)
    assert len(list(kept.iterdir())) == 1


def test_a_cache_that_cannot_be_written_costs_only_time(folder, monkeypatch):
    def full(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(cache, "write_atomically", full)
    assert encoded(folder)[1]
    assert encoded(folder)[1]


def test_without_a_checkpoints_folder_nothing_is_kept(folder, kept):
    data = as_dataset({"text": TEXTS, "label": [0, 1, 0]})
    encode.encode_text(data, load_tokenizer(folder), 8, None)
    assert not kept.exists()


@pytest.mark.parametrize("prompts", [TEXTS, CHAT])
def test_instructions_are_kept_too(prompts, folder, kept, monkeypatch):
    write_tokenizer(folder, template=TEMPLATE)
    codec, asked = load_codec(folder), []
    real = encode.codecs.encode_instructions
    monkeypatch.setattr(
        encode.codecs, "encode_instructions", lambda *given: asked.append(1) or real(*given)
    )

    def made(prompts, responses, max_tokens=12):
        inputs = {"prompt": prompts, "response": responses}
        data = Dataset(inputs, np.zeros(len(prompts), np.int64), ("response",))
        asked.clear()
        found = encode.encode_instructions(data, codec, max_tokens, folder)
        assert_same(found, real(codec, prompts, responses, max_tokens))
        return bool(asked)

    assert made(prompts, PAIRS)
    assert not made(prompts, PAIRS)
    assert made(prompts, [*PAIRS[:2], "two"])
    assert made(prompts[::-1], PAIRS)
    assert made(prompts, PAIRS, max_tokens=13)
    assert made(CHAT if prompts is TEXTS else TEXTS, PAIRS)
    (folder / "tokenizer_config.json").write_text("{}")
    assert made(prompts, PAIRS)
