"""A merged model is plain transformers; other weights keep their bits."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.flax import save_file

from ffalora_jax import merge, peft_io
from ffalora_jax.errors import InputError
from tests.peft_files import (
    FAMILIES,
    case,
    hf_base,
    hf_logits,
    write,
)

families = pytest.mark.parametrize("family", FAMILIES)
heads = pytest.mark.parametrize("head", ["trained", "frozen"])


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@heads
@families
def test_a_merged_model_is_plain_transformers(family, head, tmp_path):
    pytest.importorskip("torch")
    classes = 3 if head == "trained" else 7
    found = case(write(tmp_path / "base", family), family, head, classes, targets="qkvo")
    (tmp_path / "merged").mkdir()
    names = tuple(f"class {n}" for n in range(classes))
    merge.write_merged(tmp_path / "merged", found.loaded, found.model, found.adapters, names)
    model = hf_base(family, tmp_path / "merged", classes=classes)
    np.testing.assert_allclose(hf_logits(family, model), found.logits(), atol=1e-5)
    if family != "llama":
        assert list(model.config.id2label.values()) == list(names)
    if family != "vit":
        assert (tmp_path / "merged" / "tokenizer.json").is_file()


def test_a_merge_keeps_shards_and_types_and_changes_adapted_layers_alone(tmp_path):
    from tests.llama_files import llama_tensors

    directory = write(tmp_path / "base", "llama", kind="plain")
    tensors = {n: jnp.asarray(x, "bfloat16") for n, x in llama_tensors().items()}
    (directory / "model.safetensors").unlink()
    halves = sorted(tensors)[::2], sorted(tensors)[1::2]
    where = {}
    for number, half in enumerate(halves):
        file = f"model-{number}.safetensors"
        save_file({n: tensors[n] for n in half}, str(directory / file), metadata={"format": "pt"})
        where |= dict.fromkeys(half, file)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    found = case(directory, "llama", layers="1")
    (tmp_path / "merged").mkdir()
    merge.write_merged(tmp_path / "merged", found.loaded, found.model, found.adapters, ())
    assert json.loads((tmp_path / "merged" / index.name).read_text())["weight_map"] == where
    changed = set()
    for number in range(2):
        file = f"model-{number}.safetensors"
        for name, tensor in peft_io.load_file(str(tmp_path / "merged" / file)).items():
            assert tensor.dtype == "bfloat16"
            changed |= {name} if bool((tensor != tensors[name]).any()) else set()
    at = "model.layers.1.self_attn"
    assert changed == {f"{at}.q_proj.weight", f"{at}.v_proj.weight"}


def test_a_merge_in_a_narrow_type_rounds_once(tmp_path):
    directory = write(tmp_path / "base", "roberta")
    file = directory / "model.safetensors"
    narrow = {n: x.astype("float16") for n, x in peft_io.load_file(str(file)).items()}
    save_file(narrow, str(file), metadata={"format": "pt"})
    found = case(directory, "roberta")
    (tmp_path / "merged").mkdir()
    merge.write_merged(tmp_path / "merged", found.loaded, found.model, found.adapters, ("a",) * 3)
    name = "roberta.encoder.layer.1.attention.self.value.weight"
    leaves = found.adapters["layers.1.attention.value"]
    whole = (
        np.asarray(narrow[name], np.float64)
        + 1.5
        * np.asarray(leaves["lora_a"], np.float64).dot(np.asarray(leaves["lora_b"], np.float64)).T
    )
    merged = peft_io.load_file(str(tmp_path / "merged" / "model.safetensors"))
    np.testing.assert_array_equal(merged[name], whole.astype(np.float16))
    assert {x.dtype.name for x in merged.values()} == {"float16"}
    large = {**found.adapters, "layers.1.attention.value": {n: 1e4 * x for n, x in leaves.items()}}
    with pytest.raises(InputError, match=rf"{name} reaches .*float16 cannot hold"):
        merge.write_merged(tmp_path / "merged", found.loaded, found.model, large, ("a",) * 3)
