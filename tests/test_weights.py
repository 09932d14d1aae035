"""Weight files: one or several, three types of numbers, and every problem of a table in one error."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.flax import save_file

from ffalora_jax.errors import InputError
from ffalora_jax.models import Model, WeightRule
from ffalora_jax.pretrained import load_pretrained
from ffalora_jax.weights import INDEX, WEIGHTS, check_complete, files_of, read_weights, weights_hash
from tests.checkpoint_files import CLASSIFIER, bert_tensors, write_checkpoint
from tests.family_files import ROBERTA, VIT, roberta_tensors, vit_tensors, write_family
from tests.llama_files import llama_tensors, write_llama


def shard(folder: Path, tensors: dict, parts: int = 3) -> list[Path]:
    """Puts the weights of a checkpoint into several files with an index, and returns the files."""
    (folder / WEIGHTS).unlink(missing_ok=True)
    files = [f"model-{part + 1:05}-of-{parts:05}.safetensors" for part in range(parts)]
    where = {name: files[index % parts] for index, name in enumerate(tensors)}
    for file in files:
        save_file({n: jnp.asarray(tensors[n]) for n in tensors if where[n] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return [folder / file for file in files]


def arrays(model: nnx.Module) -> dict[tuple, np.ndarray]:
    return {p: np.asarray(leaf[...]) for p, leaf in nnx.to_flat_state(nnx.state(model))}


WRITERS = {
    "bert": (write_checkpoint, bert_tensors),
    "roberta": (lambda folder, t: write_family(folder, ROBERTA, t), roberta_tensors),
    "vit": (lambda folder, t: write_family(folder, VIT, t), vit_tensors),
    "llama": (write_llama, llama_tensors),
}


def write_all(folder: Path, tensors: dict, family="bert") -> Path:
    """BERT's tensors are saved by a writer that knows bfloat16; the others are given as they are."""
    return WRITERS[family][0](folder, {name: jnp.asarray(x) for name, x in tensors.items()})


@pytest.mark.parametrize("family", WRITERS)
def test_several_files_hold_the_same_model_as_one(family, tmp_path):
    write, tensors = WRITERS[family][0], WRITERS[family][1]()
    whole = write(tmp_path / "whole", tensors)
    parts = write(tmp_path / "parts", tensors)
    assert files_of(parts) == [parts / WEIGHTS]
    files = shard(parts, tensors)
    assert files_of(parts) == files
    one, other = arrays(load_pretrained(whole)), arrays(load_pretrained(parts))
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(other[path], leaf, err_msg=str(path))


def test_the_hash_of_several_files_depends_on_each(tmp_path):
    files = shard(write_checkpoint(tmp_path), bert_tensors())
    before = weights_hash(files)
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert weights_hash(files) != before
        file.write_bytes(content)
    assert weights_hash(files) == before


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "sharded"])
@pytest.mark.parametrize("kept", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_numbers_of_any_width_are_read_as_they_are_and_cast_once(kept, wanted, sharded, tmp_path):
    tensors = {name: jnp.asarray(x, kept) for name, x in bert_tensors().items()}
    write_all(tmp_path, tensors)
    if sharded:
        shard(tmp_path, tensors)
    found = arrays(load_pretrained(tmp_path, dtype=wanted))
    assert {leaf.dtype for leaf in found.values()} == {jnp.dtype(wanted)}
    name = "bert.encoder.layer.1.output.dense.weight"
    np.testing.assert_array_equal(
        found["layers", 1, "down", "kernel"], tensors[name].T.astype(wanted)
    )


TWO_RULES = Model(
    family="made up",
    rules=(
        WeightRule(r"first\.(\w+)", r"first.\1"),
        WeightRule(r"first\.twice", r"first.other"),
        WeightRule(r"second", "second.kernel", lambda x: x.T),
        WeightRule(r"third", "third.kernel", lambda x: x[:, 0]),
        WeightRule(r"known", ""),
    ),
)


@pytest.mark.parametrize("split", [False, True], ids=["one file", "two files"])
def test_every_problem_of_the_weight_table_is_in_one_error(split, tmp_path):
    tensors = {
        "first.twice": jnp.zeros(2),
        "first.bias": jnp.zeros(3),
        "first.unexpected": jnp.zeros(3),
        "second": jnp.zeros((4, 5)),
        "third": jnp.zeros(4),
        "whole": jnp.zeros(7),
        "known": jnp.zeros(9),
    }
    wanted = {
        ("first", "twice"): jnp.zeros(2),
        ("first", "bias"): jnp.zeros(3),
        ("second", "kernel"): jnp.zeros((4, 5)),
        ("third", "kernel"): jnp.zeros(4),
        ("fourth", "kernel"): jnp.zeros((2, 2)),
    }
    halves = [dict(list(tensors.items())[:3]), dict(list(tensors.items())[3:])]
    files = []
    for index, part in enumerate(halves if split else [tensors]):
        files.append(tmp_path / f"{index}.safetensors")
        save_file(part, files[-1])
    found, problems = read_weights(files, TWO_RULES, wanted, "float32")
    with pytest.raises(InputError) as caught:
        check_complete(found, wanted, problems, tmp_path)
    said = str(caught.value).partition(": ")[2].removesuffix(".").split("; ")
    assert sorted(line.partition(" (in")[0].partition(" (Too")[0] for line in said) == [
        "first.twice is missing",
        "first.twice matches 2 rules, expected 1",
        "first.unexpected has no place in the model",
        "fourth.kernel is missing",
        "second.kernel has shape (5, 4), expected (4, 5)",
        "third has another form",
        "third.kernel is missing",
        "whole matches 0 rules, expected 1",
    ]


def test_a_tensor_in_two_files_is_an_error(tmp_path):
    tensors = bert_tensors()
    files = shard(write_checkpoint(tmp_path), tensors)
    name = "bert.embeddings.word_embeddings.weight"
    for file in files:
        save_file({name: jnp.asarray(tensors[name]), f"cls.{file.stem}": jnp.zeros(1)}, file)
    with pytest.raises(InputError, match=r"word_embeddings\.weight is a second words\.embedding"):
        load_pretrained(tmp_path)


def test_quantised_weights_are_not_taken_for_numbers(tmp_path):
    name = "bert.encoder.layer.0.output.dense.weight"
    tensors = bert_tensors() | {name: np.zeros((32, 64), np.int8)}
    with pytest.raises(InputError, match=rf"{name} has another form .*got int8"):
        load_pretrained(write_checkpoint(tmp_path, tensors))


def test_a_part_that_the_index_names_and_nobody_has_is_named(tmp_path):
    files = shard(write_checkpoint(tmp_path), bert_tensors())
    files[1].unlink()
    with pytest.raises(InputError, match=f"names {files[1].name}, which is not beside it"):
        load_pretrained(tmp_path)
    files[2].unlink()
    with pytest.raises(InputError, match=f"names {files[1].name}, {files[2].name}, which are not"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/outside.safetensors",
        "folder/inside.safetensors",
        "..",
        ".hidden.safetensors",
        "pytorch_model.bin",
        "model.safetensors\n",
        7,
    ],
)
def test_an_index_names_only_safetensors_beside_it(name, tmp_path):
    folder = tmp_path / "model"
    shard(write_checkpoint(folder), bert_tensors())
    for outside in (tmp_path / "outside.safetensors", folder / "pytorch_model.bin"):
        save_file({"bert.pooler.dense.bias": jnp.zeros(32)}, outside)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["bert.pooler.dense.bias"] = name
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match="expected safetensors files that lie beside it"):
        load_pretrained(folder)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_a_broken_index_is_refused(content, tmp_path):
    shard(write_checkpoint(tmp_path), bert_tensors())
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(InputError, match="index"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("names", [["pytorch_model.bin"], ["b-00001-of-00002.bin", "model.pt"]])
def test_pickled_weights_are_refused_with_the_command_that_converts_them(names, tmp_path):
    (write_checkpoint(tmp_path) / WEIGHTS).unlink()
    for name in names:
        (tmp_path / name).write_bytes(b"could run code")
    with pytest.raises(InputError) as caught:
        load_pretrained(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert ", ".join(names) in message
    assert f"transformers.{CLASSIFIER}.from_pretrained('{tmp_path}')" in message


@pytest.mark.thorough
def test_the_command_converts_and_the_folder_then_loads(tmp_path):
    torch = pytest.importorskip("torch")
    folder = write_checkpoint(tmp_path)
    expected = arrays(load_pretrained(folder))
    (folder / WEIGHTS).unlink()
    tensors = {name: torch.from_numpy(x) for name, x in bert_tensors().items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(InputError) as caught:
        load_pretrained(folder)
    python, *words = shlex.split(str(caught.value).partition("is installed: ")[2])
    assert python == "python"
    subprocess.run([sys.executable, *words], check=True, capture_output=True, timeout=300)
    for path, leaf in arrays(load_pretrained(folder)).items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=str(path))
