"""The little model of llama2.c: its file format, its tokenizer, and the story that it tells."""

import os
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffalora_jax.codec import encode_prompts
from ffalora_jax.errors import InputError
from ffalora_jax.generate import greedy
from ffalora_jax.models._rotary import rotate, turn_of
from ffalora_jax.models._score_bpe import read_pieces, score_codec
from ffalora_jax.models.stories260k import PIECES, WEIGHTS, read, read_header
from ffalora_jax.pretrained import load

SHARED = Path(os.environ.get("FFALORA_SHARED") or Path(__file__).parents[2] / "shared")
FOLDER = SHARED / "data" / "stories260k"
needs_the_model = pytest.mark.skipif(
    not (FOLDER / WEIGHTS).is_file(), reason=f"no {WEIGHTS} in $FFALORA_SHARED/data/stories260k"
)
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
)
SIZES = (8, 6, 2, 2, 1, 300, 5)
"""dim, hidden, layers, heads, kv_heads, vocab, seq."""


def file_of(sizes=SIZES) -> bytes:
    """A file of that form with counted numbers for weights."""
    dim, hidden, layers, heads, kv_heads, vocab, seq = sizes
    each = 2 * dim + 2 * dim * dim + 2 * dim * dim // heads * kv_heads + 3 * dim * hidden
    count = abs(vocab) * dim * (1 if vocab > 0 else 2) + layers * each + dim + seq * dim // heads
    return struct.pack("<7i", *sizes) + np.sin(np.arange(count), dtype="<f4").tobytes()


def pieces_of(count=300) -> bytes:
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256))]
    pieces += [bytes([letter]) for letter in b" abcdefghijklmnopqrstuvwxyz"]
    pieces += [b" a", b"ab", b" ab", b"bc", b"abc"]
    pieces += [b"@%d" % index for index in range(count - len(pieces))]
    packed = [
        struct.pack("<fi", -float(index) if index >= 286 else 0.0, len(piece)) + piece
        for index, piece in enumerate(pieces)
    ]
    return struct.pack("<i", 7) + b"".join(packed)


def write(folder, weights=None, pieces=None):
    (folder / WEIGHTS).write_bytes(file_of() if weights is None else weights)
    (folder / PIECES).write_bytes(pieces_of() if pieces is None else pieces)
    return folder


@needs_the_model
def test_it_tells_the_story(monkeypatch):
    monkeypatch.setenv("FFALORA_SHARED", str(SHARED))
    loaded = load("stories260k", num_classes=2, seed=0)
    codec = loaded.tokenizer
    prompts = ["", "Once upon a time,", "Once upon a time, there was a little girl named Lily."]
    tokens = encode_prompts(codec, prompts, 32)
    inputs = (tokens.inputs["input_ids"], tokens.inputs["attention_mask"])
    ids, _ = greedy(loaded.model, (), *inputs, 50, (codec.end_id,))
    rows = zip(inputs[0], tokens.lengths, ids, strict=True)
    told = [codec.decode([*prompt[:length], *new]) for prompt, length, new in rows]
    assert all(text.startswith(STORY) for text in told), told


@needs_the_model
def test_words_are_cut_as_by_joining_over_the_whole_text():
    pieces = read_pieces((FOLDER / PIECES).read_bytes(), 512, PIECES)
    codec = score_codec(pieces)
    # A piece with an inner space makes the codec join over the whole text: the slow twin.
    twin = score_codec([*pieces, (b"x y", -1e9)])
    texts = [STORY, "  two  spaces ", "Zoë’s 3 naïve cats\n\nran.\tFast!", "", " ", "日本"]
    assert codec.encode(texts) == twin.encode(texts)
    assert [codec.decode(ids) for ids in codec.encode(texts)] == texts


def test_the_best_score_is_joined_first_and_unknown_characters_are_bytes():
    codec = score_codec(read_pieces(pieces_of(), 300, PIECES))
    letter = {chr(byte): 260 + index for index, byte in enumerate(range(97, 123))}
    space_a, _, space_ab, _, abc = range(286, 291)
    # " a" (-286) comes before "ab" (-287): so "abc" cannot be made from "ab" and "c" after a space.
    assert codec.encode(["abc"]) == [[space_ab, letter["c"]]]
    assert codec.encode(["zabc"]) == [[259, letter["z"], abc]]
    assert codec.encode(["a", ""]) == [[space_a], []]
    assert codec.encode(["é"]) == [[259, 3 + 0xC3, 3 + 0xA9]]
    assert codec.decode([1, space_ab, letter["c"], 3 + 0xC3, 3 + 0xA9, 2]) == "abcé"
    assert (codec.start_ids, codec.end_id) == ((1,), 1)


@pytest.mark.parametrize("vocab", [300, -300])
def test_a_folder_of_such_files_is_a_model(vocab, tmp_path):
    write(tmp_path, file_of((*SIZES[:5], vocab, SIZES[6])))
    loaded = load(str(tmp_path), num_classes=2, seed=0)
    ids = jnp.asarray(loaded.tokenizer(["a b"], None, 5).inputs["input_ids"])
    logits = jax.jit(lambda ids: loaded.model(ids, ids > 0))(ids)
    assert logits.shape == (1, 5, 300)
    assert hasattr(loaded.model, "head") is (vocab < 0)
    kernel = loaded.model.layers[1].attention.v_proj.kernel[...]
    first = 300 * 8 + 2 * 8 + 2 * 64 + 2 * 32 + 32  # embedding, norms, q, k, v of layer 0
    np.testing.assert_allclose(kernel[:2, 0], np.sin([first, first + 1]), atol=1e-6)


def test_neighbouring_pairs_turn_as_halves(tmp_path):
    """Scores of the file's own layout, computed with complex numbers, are those of the module."""
    loaded = load(str(write(tmp_path)), num_classes=2, seed=0)
    attention = loaded.model.layers[0].attention
    raw = np.frombuffer(file_of(), "<f4", offset=28)[300 * 8 + 16 :]
    wq, wk = raw[:64].reshape(8, 8), raw[128:160].reshape(4, 8)
    x = np.cos(np.arange(24)).reshape(3, 8)

    def turned(weight, x):
        pairs = (x @ weight.T).reshape(3, -1, 2, 2)
        angles = np.arange(3)[:, None] * 10_000.0 ** -np.array([0, 0.5])
        return (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angles)[:, None]

    expected = np.einsum("qhc,kc->hqk", turned(wq, x), turned(wk, x)[:, 0].conj()).real
    turn = turn_of(jnp.arange(3), loaded.model.radians)
    query = rotate(attention.q_proj(jnp.asarray(x, jnp.float32)).reshape(3, 2, 4), turn)
    key = rotate(attention.k_proj(jnp.asarray(x, jnp.float32)).reshape(3, 1, 4), turn)
    found = jnp.einsum("qhc,kgc->hqk", query, key, precision="highest")
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, 0, "1 <= dim <= .*got 0"),
        (0, 9, "dim 9, heads 2"),
        (1, -6, "hidden.*got -6"),
        (2, 2**31 - 1, "layers.*2147483647"),
        (3, 3, "heads 3"),
        (5, -(2**31), "vocab.*2147483648"),
        (6, 2**30, "seq"),
        (6, 6, r"has \d+ bytes, expected \d+ by its header"),
    ],
)
def test_absurd_headers_are_refused_before_anything_is_made_of_them(
    place, value, message, tmp_path
):
    sizes = [*SIZES]
    sizes[place] = value
    weights = struct.pack("<7i", *sizes) + file_of()[28:]
    with pytest.raises(InputError, match=message):
        read(write(tmp_path, weights))


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        (pieces_of(299), "299 pieces, expected the model's vocabulary of 300"),
        (pieces_of()[:-1], "Piece 299 .* length 2, expected 0 to 1"),
        (pieces_of() + b"12345", "ends inside piece 300"),
        (struct.pack("<ifi", 7, 0.0, -1), "Piece 0 .*length -1"),
        (struct.pack("<ifi", 7, 0.0, 2**31 - 1), "Piece 0 .*length 2147483647"),
        (b"", "0 pieces"),
    ],
)
def test_broken_tokenizer_files_are_refused(pieces, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read(write(tmp_path, pieces=pieces))


def test_short_and_absent_files_are_refused_with_a_way_out(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="27 bytes, expected a header"):
        read_header(file_of()[:27], WEIGHTS)
    with pytest.raises(InputError, match=r"expected .* by its header"):
        read(write(tmp_path, file_of()[:-4]))
    monkeypatch.setenv("FFALORA_SHARED", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"Cannot read .*stories260K\.bin.*--model\.name FOLDER"):
        load("stories260k", num_classes=2, seed=0)
