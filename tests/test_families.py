"""RoBERTa and ViT against PyTorch: logits on perturbed and golden weights, gradients through PEFT."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ffalora_jax import lora, registry
from ffalora_jax.errors import InputError
from ffalora_jax.images import normalise
from ffalora_jax.pretrained import load_pretrained
from tests.family_files import (
    ROBERTA,
    ROBERTA_SIZES,
    VIT,
    VIT_SIZES,
    roberta_tensors,
    write_family,
)

LENGTHS = np.array([10, 6, 3, 1])
MASK = np.arange(10)[None] < LENGTHS[:, None]
IDS = np.where(MASK, np.arange(40).reshape(4, 10) * 7 % 96 + 3, 1)
IMAGES = np.sin(np.arange(4 * 12 * 12 * 3.0) ** 2).reshape(4, 12, 12, 3).astype(np.float32)
LABELS = np.array([0, 1, 2, 1])
INPUTS = {ROBERTA: (jnp.asarray(IDS), jnp.asarray(MASK)), VIT: (jnp.asarray(IMAGES),)}
GOLDEN = {
    ROBERTA: [
        [1.535598, 0.9827092, 0.0344944],
        [1.6672679, 1.5865901, -0.0978674],
        [1.2864583, 1.5384946, 0.152911],
        [1.5321549, 1.4842567, 0.2925826],
    ],
    VIT: [
        [-0.1008559, 1.2525368, 1.7931523],
        [-0.0504171, 1.3936424, 2.0111325],
        [-0.0677001, 1.0769572, 1.7965751],
        [-0.4315145, 1.274911, 1.7571735],
    ],
}
"""What torch 2.13 and transformers 5.23 make of ``write_family``."""
both = pytest.mark.parametrize("architecture", [ROBERTA, VIT])


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def torch_inputs(architecture):
    import torch

    if architecture == VIT:
        return {"pixel_values": torch.from_numpy(IMAGES).permute(0, 3, 1, 2)}
    mask = torch.from_numpy(MASK.astype(np.int64))
    return {"input_ids": torch.from_numpy(IDS.astype(np.int64)), "attention_mask": mask}


def torch_logits(architecture, directory):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = getattr(transformers, architecture).from_pretrained(directory).eval()
    with torch.no_grad():
        return model(**torch_inputs(architecture)).logits.numpy()


@both
def test_logits_equal_torch_on_perturbed_weights(architecture, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config, sizes = {
        ROBERTA: (transformers.RobertaConfig, ROBERTA_SIZES),
        VIT: (transformers.ViTConfig, VIT_SIZES),
    }[architecture]
    written = getattr(transformers, architecture)(config(**sizes, num_labels=3))
    with torch.no_grad():
        for parameter in written.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    written.save_pretrained(tmp_path)
    found = load_pretrained(tmp_path)(*INPUTS[architecture])
    np.testing.assert_allclose(found, torch_logits(architecture, tmp_path), atol=1e-5)


@both
def test_logits_equal_golden_numbers_of_torch(architecture, tmp_path):
    model = load_pretrained(write_family(tmp_path, architecture))
    np.testing.assert_allclose(model(*INPUTS[architecture]), GOLDEN[architecture], atol=1e-5)


@both
def test_torch_still_gives_the_golden_numbers(architecture, tmp_path):
    found = torch_logits(architecture, write_family(tmp_path, architecture))
    np.testing.assert_allclose(found, GOLDEN[architecture], atol=1e-5)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # inside PEFT
@both
@pytest.mark.thorough
def test_adapter_gradients_equal_torch_autograd_through_peft(architecture, key, tmp_path):
    peft = pytest.importorskip("peft")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = load_pretrained(write_family(tmp_path, architecture))
    injected = lora.inject(model, "query,value", 4, lora_alpha=8, head=None)
    adapters = {
        layer: {
            leaf: 0.2 * jax.random.normal(jax.random.fold_in(key, 9 * place + len(leaf)), shape)
            for leaf, shape in leaves.items()
        }
        for place, (layer, leaves) in enumerate(sorted(injected.shapes.items()))
    }

    def loss(adapters):
        logits = injected.apply(injected.backbone, adapters, *INPUTS[architecture])
        return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()

    ours = jax.grad(loss)(adapters)
    base = getattr(transformers, architecture).from_pretrained(tmp_path).eval()
    targets = ["q_proj", "v_proj"] if architecture == VIT else ["query", "value"]
    wrapped = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    there = dict(wrapped.named_parameters())
    names = {name: _peft_name(architecture, name) for name in adapters}
    with torch.no_grad():
        for layer, name in names.items():
            for factor, leaf in (("lora_A", "lora_a"), ("lora_B", "lora_b")):
                value = torch.tensor(np.asarray(adapters[layer][leaf]).T.copy())
                there[f"base_model.model.{name}.{factor}.default.weight"].copy_(value)
    logits = wrapped(**torch_inputs(architecture)).logits
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(LABELS)).backward()
    for layer, name in names.items():
        theirs = there[f"base_model.model.{name}.lora_B.default.weight"].grad.numpy().T
        assert np.abs(theirs).max() > 1e-3
        np.testing.assert_allclose(ours[layer]["lora_b"], theirs, atol=1e-5, err_msg=layer)


def _peft_name(architecture, layer):
    family = registry.lookup("models", "vit" if architecture == VIT else "roberta")()
    matches = [(re.fullmatch(ours, layer), theirs) for ours, theirs in family.hf_names]
    return next(match.expand(theirs) for match, theirs in matches if match)


@both
def test_one_example_gives_its_row_of_the_batch(architecture, tmp_path):
    model = load_pretrained(write_family(tmp_path, architecture))
    batch = model(*INPUTS[architecture])
    for row in range(4):
        alone = model(*(leaf[row] for leaf in INPUTS[architecture]))
        np.testing.assert_allclose(alone, batch[row], atol=1e-5)
    np.testing.assert_allclose(jax.vmap(model)(*INPUTS[architecture]), batch, atol=1e-5)


def test_robertas_padding_changes_nothing(tmp_path):
    model = load_pretrained(write_family(tmp_path, ROBERTA))
    batch = model(*INPUTS[ROBERTA])
    other = model(jnp.where(MASK, IDS, 9), jnp.asarray(MASK))
    np.testing.assert_allclose(other, batch, atol=1e-6)
    for row, length in enumerate(LENGTHS):
        alone = model(jnp.asarray(IDS[row, :length]), jnp.asarray(MASK[row, :length]))
        np.testing.assert_allclose(alone, batch[row], atol=1e-5)


@pytest.mark.parametrize("name", ["RobertaModel", "RobertaForMaskedLM"])
def test_a_bare_roberta_gets_the_familys_head_from_the_seed(name, tmp_path):
    tensors = {k: v for k, v in roberta_tensors().items() if not k.startswith("classifier")}
    if name == "RobertaModel":
        tensors = {k.removeprefix("roberta."): v for k, v in tensors.items()}
    write_family(tmp_path, ROBERTA, tensors, architectures=[name])
    one, same, other = (load_pretrained(tmp_path, 5, seed=seed) for seed in (3, 3, 4))
    logits = one(*INPUTS[ROBERTA])
    assert logits.shape == (4, 5)
    np.testing.assert_array_equal(logits, same(*INPUTS[ROBERTA]))
    assert np.abs(logits - other(*INPUTS[ROBERTA])).max() > 1e-4
    assert not np.allclose(one.pooler.kernel[...][:, :5], one.head.kernel[...])


def test_more_tokens_than_robertas_positions_are_refused(tmp_path):
    model = load_pretrained(write_family(tmp_path, ROBERTA))
    assert model.max_positions == 16
    with pytest.raises(InputError, match="at most 16 tokens"):
        model(jnp.full((2, 17), 5), jnp.ones((2, 17), bool))


def test_uint8_images_are_normalised_inside_the_model(tmp_path):
    model = load_pretrained(write_family(tmp_path, VIT))
    pixels = jnp.asarray((np.abs(IMAGES) * 255).astype(np.uint8))
    expected = model(normalise(pixels, model.image_settings))
    np.testing.assert_allclose(jax.jit(model)(pixels), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_size": 13}, "multiple of patch_size 4.*13"),
        ({"num_channels": 1}, "num_channels 3.*1"),
        ({"hidden_act": "relu"}, "hidden_act 'gelu'.*'relu'"),
    ],
)
def test_a_vit_of_another_kind_is_refused(config, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load_pretrained(write_family(tmp_path, VIT, **config))


def test_images_of_another_size_are_refused(tmp_path):
    model = load_pretrained(write_family(tmp_path, VIT))
    with pytest.raises(InputError, match="12 x 12 x 3, got 16 x 12 x 3"):
        model(jnp.zeros((2, 16, 12, 3)))


def test_a_second_text_has_no_segment_of_its_own_in_roberta(tmp_path):
    """Tokenizers may number it 1; RoBERTa's table has one row, and an index outside would give NaN."""
    model = load_pretrained(write_family(tmp_path, ROBERTA))
    ids = jnp.arange(5, 15)[None]
    ones = jnp.ones_like(ids)
    np.testing.assert_array_equal(model(ids, ones, ones), model(ids, ones))
