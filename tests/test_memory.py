"""The estimate of memory: exact in what can be counted, and monotone in what one can choose."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ffalora_jax import adapters as leaves
from ffalora_jax import lora, memory, registry, tasks
from ffalora_jax.errors import InputError
from ffalora_jax.memory import estimate, sizes_of
from ffalora_jax.pretrained import load_pretrained
from tests.checkpoint_files import CLASSIFIER, SIZES, write_checkpoint
from tests.family_files import ROBERTA, ROBERTA_SIZES, VIT, VIT_SIZES, write_family
from tests.llama_files import KINDS, write_llama
from tests.llama_files import SIZES as LLAMA_SIZES

LLAMA_7B = LLAMA_SIZES | {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
}
ROBERTA_LARGE = ROBERTA_SIZES | {
    "architectures": [ROBERTA],
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "max_position_embeddings": 514,
    "vocab_size": 50265,
}
TINY = {
    "bert": (write_checkpoint, SIZES | {"architectures": [CLASSIFIER]}),
    "roberta": (
        lambda folder: write_family(folder, ROBERTA),
        ROBERTA_SIZES | {"architectures": [ROBERTA]},
    ),
    "vit": (lambda folder: write_family(folder, VIT), VIT_SIZES | {"architectures": [VIT]}),
    "llama": (write_llama, LLAMA_SIZES),
    "llama, tied and grouped": (
        lambda folder: write_llama(folder, kind="modern"),
        LLAMA_SIZES | KINDS["modern"],
    ),
}


@pytest.mark.parametrize("name", TINY)
def test_parameters_are_those_of_the_loaded_module(name, tmp_path):
    write, config = TINY[name]
    model = load_pretrained(write(tmp_path), 2 if "num_labels" not in config else None)
    arrays = jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    assert sizes_of(config).parameters == sum(array.size for array in arrays)
    half = estimate(config, tokens=8, dtype="bfloat16")
    assert half.backbone * 2 == sum(array.nbytes for array in arrays)


def test_published_models_have_their_published_sizes():
    llama = sizes_of(LLAMA_7B)
    assert llama.parameters == 6_738_415_616
    assert sizes_of(ROBERTA_LARGE).parameters == 355_361_794  # with transformers' two-class head
    assert llama.trained == 32 * 2 * 8 * 4096


def test_trained_leaves_are_those_of_a_run():
    sizes = sizes_of(TINY["bert"][1], rank=2, targets="query,value")
    assert (sizes.frozen, sizes.trained) == (2 * 2 * 32 * 2, 2 * 2 * 2 * 32 + 32 * 2 + 2)


FORMS = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 320, "hidden_size": 128},
    "bert": {"intermediate_size": 320, "hidden_size": 128, "max_position_embeddings": 64},
    "vit": {"intermediate_size": 320, "hidden_size": 128, "image_size": 28},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.thorough
def test_a_blocks_share_is_what_autodiff_keeps(name, dtype):
    """Kept numbers are L k an example and what does not depend on both: second differences leave k."""
    config = TINY[name][1] | FORMS[name]
    kept = {
        (layers, examples): kept_bytes(
            name, config | {"num_hidden_layers": layers}, examples, dtype
        )
        for layers in (2, 4)
        for examples in (1, 2)
    }
    found = (kept[4, 2] - kept[4, 1] - kept[2, 2] + kept[2, 1]) / 2
    tokens = 50 if name == "vit" else 48
    expected = memory.block_bytes(sizes_of(config), tokens, memory.WIDTHS[dtype])
    np.testing.assert_allclose(found, expected, rtol=0.02)  # means and maxima of rows are left out


def kept_bytes(name, config, examples, dtype):
    """Bytes in what ``jax.vjp`` carries from the forward to the backward pass; nothing is computed."""
    family = registry.lookup("models", name)()
    model = nnx.eval_shape(lambda: family.build(config, 2, nnx.Rngs(0)))
    targets = family.placements["qv"]
    model = lora.inject(model, targets, 8, 8, head=None, scan_layers=True)
    task = tasks.language_modelling() if name == "llama" else tasks.classification()
    ids = jnp.ones((examples, 48), jnp.int32)
    inputs = {"input_ids": ids, "attention_mask": ids > 0}
    if name == "llama":
        inputs["response_mask"] = ids > 0
    if name == "vit":
        inputs = {"images": jnp.zeros((examples, 28, 28, 3))}
    zeros = jax.tree.map(jnp.zeros, model.shapes, is_leaf=lambda x: isinstance(x, tuple))
    backbone = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), model.backbone)
    frozen = leaves.select(zeros, {"lora_a"})

    def pulled(trained, backbone):
        def loss(trained, example):
            def forward(**named):
                everything = leaves.merge(frozen, trained)
                return model.apply_training(backbone, everything, None, **named)

            return task.loss(forward, example, jnp.int32(0))

        def losses(trained):
            return jax.vmap(loss, in_axes=(None, 0))(trained, inputs)

        return jax.vjp(losses, trained)[1]

    kept = jax.eval_shape(pulled, leaves.select(zeros, {"lora_b"}), backbone)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("name", TINY)
def test_more_of_anything_takes_more(name, remat):
    def at(tokens=8, **changes):
        return estimate(TINY[name][1], tokens=tokens, remat=remat, **changes)

    plain = at()
    assert plain.total == sum(plain) > 0
    for more in (at(examples=2), at(clients=2), at(tokens=9), at(rank=9)):
        assert more.total > plain.total
        assert all(new >= old for new, old in zip(more, plain, strict=True))
    assert at(clients=3, examples=4).gradients == 12 * plain.gradients
    assert at(clients=3, examples=4).activations == 12 * plain.activations
    assert at(dtype="bfloat16").total < plain.total


def test_remat_saves_most_of_a_deep_models_activations():
    kept, again = (estimate(LLAMA_7B, tokens=512, remat=remat) for remat in (False, True))
    assert again.activations < kept.activations / 8
    assert again[:3] == kept[:3]
    assert again.activations > 32 * 4 * 512 * 4096, "every block's input stays"


def test_what_cannot_be_estimated_is_refused():
    with pytest.raises(InputError, match=r"architectures of llama.*GPT2Model"):
        estimate({"architectures": ["GPT2Model"]}, tokens=8)
    with pytest.raises(InputError, match="tokens > 0"):
        estimate(LLAMA_SIZES, tokens=0)
    with pytest.raises(InputError, match="float16"):
        estimate(LLAMA_SIZES, tokens=8, dtype="float16")


def test_the_documents_table_is_what_the_formula_gives():
    text = (Path(__file__).parents[1] / "docs" / "memory.md").read_text()
    rows = re.findall(r"^\| ((?:float32|bfloat16) \|.*) \|$", text, flags=re.MULTILINE)
    assert len(rows) == 12
    for row in rows:
        dtype, clients, examples, tokens, remat, *shown = row.split(" | ")
        counts = {"clients": int(clients), "examples": int(examples), "tokens": int(tokens)}
        found = estimate(LLAMA_7B, **counts, dtype=dtype, remat=remat == "yes")
        expected = [value / 2**30 for value in (*found, found.total)]
        digits = [1, 2, 2, 1, 1]
        assert shown == [f"{v:.{d}f}" for v, d in zip(expected, digits, strict=True)], row
