"""LLaMA against PyTorch: logits and adapter gradients; padding, causality and free batch axes."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ffalora_jax import lora
from ffalora_jax.lora_init import LoraInit
from ffalora_jax.pretrained import load_pretrained
from tests.llama_files import KINDS, LLAMA3, SIZES, write_llama

IDS = jnp.arange(36).reshape(3, 12) * 7 % 50
LENGTHS = np.array([12, 7, 1])
MASK = jnp.arange(12)[None] < LENGTHS[:, None]
SOME = ([0, 0, 1, 2], [11, 5, 6, 0])
"""Rows and tokens whose first five logits are in GOLDEN."""
GOLDEN = {
    "plain": [
        [-1.3527709, -1.0700371, -0.9871786, -1.2597468, 0.9127964],
        [-1.189163, -0.4176384, -1.2140824, 0.5307975, 2.346749],
        [-0.1858505, 0.7912056, 1.3177712, -1.9277608, -2.2465549],
        [0.2424704, 2.4267538, -1.7838546, -1.1188245, 2.0166726],
    ],
    "modern": [
        [-0.3808404, -1.0978708, 1.0411631, -2.1970208, 0.9638024],
        [-1.8043447, 2.4711864, 2.7919695, 1.9114866, -1.3840425],
        [0.4294155, -1.6974896, 0.229867, 0.7424083, -0.5140622],
        [0.6158354, -1.3772172, -0.4401298, 0.1981062, -0.0664102],
    ],
}
"""What torch 2.13 and transformers 5.23 make of ``write_llama``."""
OLD = {
    "linear": {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 3.0}},
    "llama3": {
        "rope_theta": 500.0,
        "rope_scaling": {name: LLAMA3[name] for name in LLAMA3 if name != "rope_theta"},
    },
    "plain": {"rope_theta": 10_000.0, "rope_scaling": None},
}

golden_kinds = pytest.mark.parametrize("kind", sorted(GOLDEN))


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@partial(jax.jit, static_argnums=0)
def _compiled(call, leaves, *inputs):
    graph, named = call
    return nnx.merge(graph, leaves)(*inputs, **dict(named))


def run(model, *inputs, **named):
    """The model in one compiled call: operation by operation each test would take seconds."""
    graph, leaves = nnx.split(model)
    return _compiled((graph, tuple(named.items())), nnx.to_pure_dict(leaves), *inputs)


def tensors_of(torch):
    return torch.tensor(IDS.tolist()), torch.tensor(np.asarray(MASK), dtype=torch.long)


def torch_model(directory):
    """The checkpoint as Hugging Face reads it, and the module of torch."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    return transformers.LlamaForCausalLM.from_pretrained(directory).eval(), torch


def torch_logits(directory):
    model, torch = torch_model(directory)
    ids, mask = tensors_of(torch)
    with torch.no_grad():
        return model(ids, attention_mask=mask).logits.numpy()


def save_perturbed(directory, **config):
    """Lets transformers save a random model whose norms are not ones and whose biases are not zeros."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    written = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES | config))
    with torch.no_grad():
        for parameter in written.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    written.save_pretrained(directory)
    return directory


def assert_close_at_tokens(found, expected):
    """Padding has logits too, and nobody's are right."""
    np.testing.assert_allclose(found[MASK], expected[np.asarray(MASK)], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_torch_on_perturbed_weights(kind, tmp_path):
    save_perturbed(tmp_path, **KINDS[kind])
    assert_close_at_tokens(run(load_pretrained(tmp_path), IDS, MASK), torch_logits(tmp_path))


@pytest.mark.parametrize("kind", OLD)
def test_the_old_spelling_of_rotary_settings_is_the_new_one(kind, tmp_path):
    new = load_pretrained(write_llama(tmp_path / "new", kind=kind))
    old = load_pretrained(write_llama(tmp_path / "old", **OLD[kind]))
    assert old.radians == new.radians
    assert "rope_parameters" not in json.loads((tmp_path / "old/config.json").read_text())
    theirs = torch_model(tmp_path / "old")[0].model.rotary_emb.inv_freq.numpy()
    np.testing.assert_allclose(old.radians, theirs, rtol=3e-7)


def test_rotary_frequencies_of_published_models_equal_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    from ffalora_jax.models._rotary import frequencies

    stretched = {**LLAMA3, "rope_theta": 5e5, "original_max_position_embeddings": 8192}
    for channels, parameters in (
        (64, {"rope_type": "default", "rope_theta": 1e5}),
        (128, stretched),
    ):
        config = {"hidden_size": 8 * channels, "num_attention_heads": 8}
        config |= {"max_position_embeddings": 131_072, "rope_parameters": parameters}
        theirs = LlamaRotaryEmbedding(transformers.LlamaConfig(**config)).inv_freq.numpy()
        np.testing.assert_allclose(frequencies(config, channels), theirs, rtol=3e-7)


@golden_kinds
def test_logits_equal_golden_numbers_of_torch(kind, tmp_path):
    logits = run(load_pretrained(write_llama(tmp_path, kind=kind)), IDS, MASK)
    np.testing.assert_allclose(logits[*SOME, :5], GOLDEN[kind], atol=1e-5)


@golden_kinds
def test_torch_still_gives_the_golden_numbers(kind, tmp_path):
    logits = torch_logits(write_llama(tmp_path, kind=kind))
    np.testing.assert_allclose(logits[*SOME, :5], GOLDEN[kind], atol=1e-5)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_adapter_gradients_equal_torch_autograd_through_peft(key, tmp_path):
    peft = pytest.importorskip("peft")
    theirs, torch = torch_model(save_perturbed(tmp_path, **KINDS["modern"]))
    ours = lora.inject(load_pretrained(tmp_path), r".*(q_proj|v_proj|down_proj)", 3, 6, head=None)
    adapters = {
        layer: {
            leaf: 0.2 * jax.random.normal(jax.random.fold_in(key, 2 * place + half), shape)
            for half, (leaf, shape) in enumerate(sorted(leaves.items()))
        }
        for place, (layer, leaves) in enumerate(sorted(ours.shapes.items()))
    }
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"])
    theirs = peft.get_peft_model(theirs, config)
    pairs = {layer: peft_pair(theirs, layer) for layer in adapters}
    for layer, leaves in adapters.items():
        for name, parameter in pairs[layer].items():
            parameter.requires_grad_(True)
            parameter.data = torch.tensor(leaves[name].T.tolist())

    def loss(adapters):
        logits = ours.apply(ours.backbone, adapters, IDS, MASK)
        each = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], IDS[:, 1:])
        return jnp.sum(jnp.where(MASK[:, 1:], each, 0.0)) / MASK[:, 1:].sum()

    ids, mask = tensors_of(torch)
    theirs(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss.backward()
    found = jax.jit(jax.grad(loss))(adapters)
    for layer, pair in pairs.items():
        for name, parameter in pair.items():
            expected = parameter.grad.numpy().T
            assert np.abs(expected).max() > 1e-3
            np.testing.assert_allclose(found[layer][name], expected, atol=1e-5, err_msg=layer)


def peft_pair(model, layer):
    """PEFT's two parameters at one of our layers."""
    _, index, part, name = layer.split(".")
    part = {"attention": "self_attn"}.get(part, part)
    module = model.get_submodule(f"base_model.model.model.layers.{index}.{part}.{name}")
    return {"lora_a": module.lora_A.default.weight, "lora_b": module.lora_B.default.weight}


def test_one_example_gives_its_row_of_a_padded_batch(tmp_path):
    model = load_pretrained(write_llama(tmp_path, kind="modern"))
    batch = run(model, IDS, MASK)
    for row, length in list(enumerate(LENGTHS))[1:]:
        alone = run(model, IDS[row, :length], MASK[row, :length])
        np.testing.assert_allclose(alone, batch[row, :length], atol=1e-5)
    last = run(model, IDS, MASK, last_only=True)
    np.testing.assert_allclose(last, batch[np.arange(3), LENGTHS - 1], atol=1e-5)


def test_batch_axes_are_free(tmp_path):
    model = load_pretrained(write_llama(tmp_path, kind="modern"))
    expected = run(model, IDS, MASK)
    nested = run(model, IDS[None], MASK[None])
    assert nested.shape == (1, 3, 12, 50)
    np.testing.assert_allclose(nested[0], expected, atol=1e-5)
    each = jax.jit(jax.vmap(lambda *example: model(*example)))(IDS, MASK)
    np.testing.assert_allclose(each, expected, atol=1e-5)


def test_what_stands_in_the_padding_changes_nothing(tmp_path):
    model = load_pretrained(write_llama(tmp_path))
    other = run(model, jnp.where(MASK, IDS, 49 - IDS), MASK)
    np.testing.assert_array_equal(other[MASK], run(model, IDS, MASK)[MASK])


def test_no_token_sees_a_later_one(tmp_path):
    model = load_pretrained(write_llama(tmp_path))
    before, changed = run(model, IDS, MASK)[0], run(model, IDS.at[0, 6].add(1), MASK)[0]
    np.testing.assert_array_equal(changed[:6], before[:6])
    assert np.abs(changed - before)[6:].max(axis=-1).min() > 1e-3


def test_a_row_of_nothing_but_padding_stays_finite(key, tmp_path):
    model = load_pretrained(write_llama(tmp_path, num_hidden_layers=1))
    injected = lora.inject(model, r".*q_proj", 2, 4, head=None)
    adapters = lora.init_factors(
        injected, LoraInit("", lambda k, f, r: jnp.ones((f, r))), key, "lora_b"
    )
    adapters = {
        layer: {**leaves, "lora_a": jnp.ones(injected.shapes[layer]["lora_a"])}
        for layer, leaves in adapters.items()
    }

    def total(adapters):
        return injected.apply(injected.backbone, adapters, IDS, jnp.zeros_like(MASK)).sum()

    found = jax.tree.leaves(jax.jit(jax.value_and_grad(total))(adapters))
    assert all(np.isfinite(leaf).all() for leaf in found)


@pytest.mark.parametrize("kind", ["plain", "tied"])
def test_bfloat16_stays_finite_and_close(kind, tmp_path):
    model = load_pretrained(write_llama(tmp_path, kind=kind))
    graph, leaves = nnx.split(model)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), nnx.to_pure_dict(leaves))
    logits = run(nnx.merge(graph, half), IDS, MASK)
    assert logits.dtype == jnp.bfloat16
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(
        logits[MASK].astype(np.float32), run(model, IDS, MASK)[MASK], atol=0.1
    )


def test_rematerialised_blocks_give_the_same_gradients(tmp_path):
    model = load_pretrained(write_llama(tmp_path, kind="modern", num_hidden_layers=1))
    gradients, counts = [], []
    for model.remat in (False, True):
        graph, leaves = nnx.split(model)

        def loss(leaves, graph=graph):
            return jnp.mean(nnx.merge(graph, leaves)(IDS, MASK)[MASK] ** 2)

        leaves = nnx.to_pure_dict(leaves)
        equations = jax.make_jaxpr(loss)(leaves).eqns
        counts.append(sum("remat" in equation.primitive.name for equation in equations))
        gradients.append(jax.tree.leaves(jax.jit(jax.grad(loss))(leaves)))
    assert counts == [0, 1]
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
