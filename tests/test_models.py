"""BERT against PyTorch: logits, pooled features and gradients; padding and free batch axes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ffalora_jax import lora
from ffalora_jax.blocks import run_blocks
from ffalora_jax.errors import InputError
from ffalora_jax.layers import mean_pool
from ffalora_jax.pretrained import load_pretrained
from tests.checkpoint_files import CLASSIFIER, ENCODER, SIZES, write_checkpoint

IDS = jnp.arange(40).reshape(4, 10) * 7 % 100
LENGTHS = np.array([10, 6, 3, 1])
MASK = jnp.arange(10)[None] < LENGTHS[:, None]
TYPES = (jnp.arange(10)[None] >= np.array([5, 2, 3, 10])[:, None]).astype(int)
FACTORS = ("lora_a", "lora_b")
LABELS = np.array([0, 1, 2, 1])
GOLDEN = {
    CLASSIFIER: [
        [0.8445459, 0.8171083, -1.6686493],
        [-0.1601711, 1.0606282, -1.9672309],
        [1.5212005, 1.4708352, -0.0842888],
        [2.3212633, 0.7946439, -0.2836067],
    ],
    ENCODER: [
        [0.2417974, 0.856602, -1.2980971],
        [-1.2074636, -0.2292935, -1.1472247],
        [0.0221881, -0.0439007, 0.429767],
        [0.3357296, 0.1639102, 1.4786925],
    ],
}
"""What torch 2.13 and transformers 5.23 make of ``write_checkpoint`` (head: ``golden_model``)."""

both_ends = pytest.mark.parametrize("architecture", [CLASSIFIER, ENCODER])


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def golden_model(architecture, directory):
    """Our model of the formula's checkpoint; a bare encoder's head is from a formula as well."""
    model = load_pretrained(write_checkpoint(directory, architecture=architecture))
    if architecture == ENCODER:
        model.head.kernel[...] = 0.3 * jnp.sin(jnp.arange(96.0) ** 2).reshape(32, 3)
        model.head.bias[...] = jnp.array([0.1, 0.2, 0.3])
    return model


def torch_model(architecture, directory):
    """The checkpoint as Hugging Face reads it, and the module of torch."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    return getattr(transformers, architecture).from_pretrained(directory).eval(), torch


def torch_logits(architecture, directory, head):
    """Logits of the classifier, or of our head on torch's mean-pooled features."""
    model, torch = torch_model(architecture, directory)
    batch = [torch.tensor(array.tolist(), dtype=torch.long) for array in (IDS, MASK, TYPES)]
    with torch.no_grad():
        outcome = model(batch[0], attention_mask=batch[1], token_type_ids=batch[2])
        if architecture == CLASSIFIER:
            return outcome.logits.numpy()
        is_token = batch[1][..., None]
        pooled = (outcome.last_hidden_state * is_token).sum(1) / is_token.sum(1)
    return pooled.numpy() @ np.asarray(head.kernel[...]) + np.asarray(head.bias[...])


@both_ends
def test_logits_equal_torch_on_perturbed_weights(architecture, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    written = getattr(transformers, architecture)(transformers.BertConfig(**SIZES, num_labels=3))
    with torch.no_grad():
        for parameter in written.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    written.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path, num_classes=3)
    expected = torch_logits(architecture, tmp_path, model.head)
    np.testing.assert_allclose(model(IDS, MASK, TYPES), expected, atol=1e-5)


@both_ends
def test_logits_equal_golden_numbers_of_torch(architecture, tmp_path):
    model = golden_model(architecture, tmp_path)
    np.testing.assert_allclose(model(IDS, MASK, TYPES), GOLDEN[architecture], atol=1e-5)


@both_ends
def test_torch_still_gives_the_golden_numbers(architecture, tmp_path):
    head = golden_model(architecture, tmp_path).head
    found = torch_logits(architecture, tmp_path, head)
    np.testing.assert_allclose(found, GOLDEN[architecture], atol=1e-5)


@both_ends
def test_one_example_gives_its_row_of_a_padded_batch(architecture, tmp_path):
    model = golden_model(architecture, tmp_path)
    batch = model(IDS, MASK, TYPES)
    for row, length in enumerate(LENGTHS):
        alone = model(IDS[row, :length], MASK[row, :length], TYPES[row, :length])
        np.testing.assert_allclose(alone, batch[row], atol=1e-5)


@both_ends
def test_what_stands_in_the_padding_changes_nothing(architecture, tmp_path):
    model = golden_model(architecture, tmp_path)
    other = model(jnp.where(MASK, IDS, 99 - IDS), MASK, jnp.where(MASK, TYPES, 1 - TYPES))
    np.testing.assert_array_equal(other, model(IDS, MASK, TYPES))
    everything = model(IDS, jnp.ones_like(MASK), TYPES)
    assert np.abs(everything - other)[1:].max(axis=1).min() > 0.01


@both_ends
def test_batch_axes_are_free(architecture, tmp_path):
    model = golden_model(architecture, tmp_path)
    expected = model(IDS, MASK, TYPES)
    nested = model(*(array.reshape(2, 2, 10) for array in (IDS, MASK, TYPES)))
    assert nested.shape == (2, 2, 3)
    np.testing.assert_allclose(nested.reshape(4, 3), expected, atol=1e-5)
    np.testing.assert_allclose(model(IDS[0], MASK[0], TYPES[0]), expected[0], atol=1e-5)
    np.testing.assert_allclose(jax.vmap(model)(IDS, MASK, TYPES), expected, atol=1e-5)


def test_a_head_on_the_first_token_leaves_the_last_block_the_others(tmp_path):
    model = golden_model(CLASSIFIER, tmp_path)
    x = model.norm(model.words(IDS))
    seen = MASK[:, None, :]

    def hidden(x, first):
        return run_blocks(model.layers, x, seen, first=first)

    assert jnp.allclose(hidden(x, 1), hidden(x, None)[..., :1, :], atol=1e-6)
    flops = [
        jax.jit(hidden, static_argnums=1).lower(x, first).compile().cost_analysis()["flops"]
        for first in (1, None)
    ]
    assert flops[0] < (1 - 0.6 / len(model.layers)) * flops[1]


def test_a_row_of_nothing_but_padding_stays_finite(tmp_path):
    model = golden_model(ENCODER, tmp_path)
    np.testing.assert_array_equal(model(IDS, jnp.zeros_like(MASK))[0], model.head.bias[...])
    slope = jax.grad(lambda x: mean_pool(x, jnp.zeros(2, bool)).sum())(jnp.ones((2, 3)))
    np.testing.assert_array_equal(slope, 0)


def test_segments_are_zero_unless_given(tmp_path):
    model = golden_model(CLASSIFIER, tmp_path)
    np.testing.assert_array_equal(model(IDS, MASK), model(IDS, MASK, jnp.zeros_like(TYPES)))
    assert np.abs(model(IDS, MASK) - model(IDS, MASK, TYPES)).max() > 0.01


def test_more_tokens_than_positions_are_refused(tmp_path):
    model = golden_model(CLASSIFIER, tmp_path)
    with pytest.raises(InputError, match=r"at most 16 tokens.*got 17.*--model\.max-tokens"):
        model(jnp.ones((2, 17), int), jnp.ones((2, 17), bool))


@pytest.mark.parametrize(
    ("name", "value"),
    [("hidden_act", "relu"), ("position_embedding_type", "relative_key"), ("is_decoder", True)],
)
def test_a_bert_of_another_kind_is_refused_not_read_wrongly(name, value, tmp_path):
    with pytest.raises(InputError, match=f"{name}.*{value}"):
        load_pretrained(write_checkpoint(tmp_path, **{name: value}))


@pytest.mark.thorough
def test_adapter_gradients_equal_torch_autograd(key, tmp_path):
    model, torch = torch_model(CLASSIFIER, write_checkpoint(tmp_path))
    injected = lora.inject(load_pretrained(tmp_path), r".*\.(query|value|down)", 4, lora_alpha=8)
    adapters = {
        layer: {
            leaf: 0.2 * jax.random.normal(jax.random.fold_in(key, 9 * place + len(leaf)), shape)
            for leaf, shape in leaves.items()
        }
        for place, (layer, leaves) in enumerate(sorted(injected.shapes.items()))
    }
    adapters["head"] = injected.head["head"]

    def loss(adapters):
        logits = injected.apply(injected.backbone, adapters, IDS, MASK, TYPES)
        return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()

    ours = jax.grad(loss)(adapters)
    theirs = torch_gradients(model, torch, adapters, 8 / 4)
    assert theirs.keys() == adapters.keys()
    for layer, leaves in theirs.items():
        for name, expected in leaves.items():
            assert np.abs(expected).max() > 1e-3
            np.testing.assert_allclose(ours[layer][name], expected, atol=1e-5, err_msg=layer)


def torch_gradients(model, torch, adapters, scaling):
    """Autograd through hooks that add scaling * (x A) B to the layers of the same place."""
    names = {"query": "attention.self.query", "value": "attention.self.value"}
    names |= {"down": "output.dense"}
    factors = {}
    for layer in adapters.keys() - {"head"}:
        _, index, *_, last = layer.split(".")
        pair = [torch.tensor(adapters[layer][f].tolist(), requires_grad=True) for f in FACTORS]
        target = model.get_submodule(f"bert.encoder.layer.{index}.{names[last]}")
        target.register_forward_hook(lambda _, x, y, p=pair: y + scaling * (x[0] @ p[0]) @ p[1])
        factors[layer] = dict(zip(FACTORS, pair, strict=True))
    batch = [torch.tensor(array.tolist(), dtype=torch.long) for array in (IDS, MASK, TYPES)]
    logits = model(batch[0], attention_mask=batch[1], token_type_ids=batch[2]).logits
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(LABELS)).backward()
    head = model.classifier
    return {
        **{at: {f: leaf.grad.numpy() for f, leaf in pair.items()} for at, pair in factors.items()},
        "head": {"head_kernel": head.weight.grad.numpy().T, "head_bias": head.bias.grad.numpy()},
    }
