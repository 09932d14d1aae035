"""LoRA by surgery: what is chosen, what is computed, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ffalora_jax import rng
from ffalora_jax.blocks import run_blocks
from ffalora_jax.errors import InputError
from ffalora_jax.lora import init_factors, inject
from ffalora_jax.lora_init import LoraInit
from ffalora_jax.targets import parse_blocks

INPUTS = jnp.sin(jnp.arange(24.0)).reshape(4, 6)


class Block(nnx.Module):
    def __init__(self, features, rngs):
        self.query = nnx.Linear(features, features + 4, rngs=rngs)
        self.value = nnx.Linear(features + 4, features, use_bias=False, rngs=rngs)
        self.norm = nnx.LayerNorm(features, rngs=rngs)

    def __call__(self, x):
        return self.norm(x + self.value(jnp.tanh(self.query(x))))


class Mine(nnx.Module):
    """A user's own model: no BERT, no tokens."""

    def __init__(self, seed=0, use_bias=True):
        rngs = nnx.Rngs(seed)
        self.first = nnx.Linear(6, 8, rngs=rngs)
        self.blocks = nnx.List([Block(8, rngs) for _ in range(3)])
        self.head = nnx.Linear(8, 3, use_bias=use_bias, rngs=rngs)
        for leaf in jax.tree.leaves(nnx.state(self), is_leaf=lambda x: isinstance(x, nnx.Param)):
            leaf[...] += 0.1 * jnp.sin(jnp.arange(leaf.size) + 1.0).reshape(leaf.shape)

    def __call__(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def _normal(key, features, rank):
    return jax.random.normal(key, (features, rank))


normal = LoraInit("of the tests", _normal)


def injected(model=None, targets=r".*(query|value)", rank=2, lora_alpha=6.0, **settings):
    return inject(Mine() if model is None else model, targets, rank, lora_alpha, **settings)


def factors(model):
    """A and B of every layer, both drawn; and the head as it starts."""
    a = init_factors(model, normal, rng.public_root(0), "lora_a")
    b = init_factors(model, normal, rng.public_root(1), "lora_b")
    return {name: a[name] | b[name] for name in a} | model.head


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("head", ["head", None])
def test_a_model_with_zero_b_is_unchanged(head, use_bias):
    original = Mine(use_bias=use_bias)
    model = injected(original, head=head)
    adapters = factors(model)
    for name in model.adapted:
        adapters[name]["lora_b"] = jnp.zeros_like(adapters[name]["lora_b"])
    found = model.apply(model.backbone, adapters, INPUTS)
    np.testing.assert_allclose(found, original(INPUTS), atol=1e-6)


@pytest.mark.parametrize(("rank", "lora_alpha"), [(1, 1.0), (2, 6.0), (5, 16)])
def test_scaling_is_alpha_over_rank_and_merged_weights_give_the_same_model(rank, lora_alpha):
    merged = Mine()
    model = injected(rank=rank, lora_alpha=lora_alpha)
    adapters = factors(model)
    assert {found.scaling for found in model.adapted.values()} == {lora_alpha / rank}
    for index, block in enumerate(merged.blocks):
        for name in ("query", "value"):
            leaves, kernel = adapters[f"blocks.{index}.{name}"], getattr(block, name).kernel
            kernel[...] = kernel[...] + lora_alpha / rank * leaves["lora_a"] @ leaves["lora_b"]
    found = model.apply(model.backbone, adapters, INPUTS)
    np.testing.assert_allclose(found, merged(INPUTS), atol=1e-5)
    assert np.abs(found - Mine()(INPUTS)).max() > 0.1


def test_a_trained_head_replaces_the_head():
    model, expected = injected(), Mine()
    adapters = factors(model)
    for name in model.adapted:
        adapters[name]["lora_b"] = jnp.zeros_like(adapters[name]["lora_b"])
    adapters["head"] = {"head_kernel": jnp.ones((8, 3)), "head_bias": jnp.arange(3.0)}
    expected.head.kernel[...], expected.head.bias[...] = jnp.ones((8, 3)), jnp.arange(3.0)
    found = model.apply(model.backbone, adapters, INPUTS)
    np.testing.assert_allclose(found, expected(INPUTS), atol=1e-5)


@pytest.mark.parametrize(
    ("targets", "layers", "expected"),
    [
        (r".*query", "all", ["blocks.0.query", "blocks.1.query", "blocks.2.query"]),
        (r".*query", "1", ["blocks.1.query"]),
        (r".*query", "0-1", ["blocks.0.query", "blocks.1.query"]),
        (r".*value", "0,2", ["blocks.0.value", "blocks.2.value"]),
        (r"first", "all", ["first"]),
        ("query", "all", ["blocks.0.query", "blocks.1.query", "blocks.2.query"]),  # last names
        (
            "query, 0.value",
            "all",
            ["blocks.0.query", "blocks.0.value", "blocks.1.query", "blocks.2.query"],
        ),
        (r"fir", "all", None),  # a match in full, or none
        (r"fir.*|x", "all", ["first"]),
        (r"first", "0", None),  # in no block
        (r".*", "2", ["blocks.2.query", "blocks.2.value"]),
        (r"first|head", "all", ["first"]),  # the trained head gets no detour
    ],
)
def test_targets_and_layers_choose_what_they_say(targets, layers, expected):
    if expected is None:
        with pytest.raises(InputError, match=r"No layer matches.*there are blocks\.0\.query"):
            injected(targets=targets, layers=layers)
    else:
        model = injected(targets=targets, layers=layers)
        assert sorted(model.adapted) == expected
        assert model.shapes.keys() - set(expected) == {"head"}


def test_shapes_are_those_of_the_layers_and_the_rest_is_the_backbone():
    model = injected()
    assert model.shapes["blocks.1.query"] == {"lora_a": (8, 2), "lora_b": (2, 12)}
    assert model.shapes["blocks.1.value"] == {"lora_a": (12, 2), "lora_b": (2, 8)}
    assert model.shapes["head"] == {"head_kernel": (8, 3), "head_bias": (3,)}
    sizes = [leaf.size for leaf in jax.tree.leaves(nnx.state(Mine()))]
    assert sum(leaf.size for leaf in jax.tree.leaves(model.backbone)) == sum(sizes) - (8 * 3 + 3)


def test_a_frozen_head_stays_in_the_backbone_and_may_get_a_detour():
    model = injected(targets="head", head=None)
    assert model.head == {}
    assert model.shapes == {"head": {"lora_a": (8, 2), "lora_b": (2, 3)}}


def test_the_given_model_is_not_changed():
    original = Mine()
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(original)))
    model = injected(original)
    model.apply(model.backbone, factors(model), INPUTS)
    assert type(original.blocks[0].query) is type(original.head) is nnx.Linear
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(original)), before)


def test_the_arrays_of_the_backbone_are_shared_not_copied():
    original = Mine()
    model = injected(original)
    ours = original.blocks[0].query.kernel[...].unsafe_buffer_pointer()
    assert model.backbone["blocks"][0]["query"]["base"]["kernel"].unsafe_buffer_pointer() == ours


def test_apply_is_pure_and_runs_under_jit_and_vmap():
    model = injected()
    adapters = factors(model)
    expected = model.apply(model.backbone, adapters, INPUTS)
    per_row = jax.jit(jax.vmap(model.apply, in_axes=(None, None, 0)))
    np.testing.assert_allclose(per_row(model.backbone, adapters, INPUTS), expected, atol=1e-5)
    np.testing.assert_array_equal(model.apply(model.backbone, adapters, INPUTS), expected)


class Normalised(nnx.Module):
    def __init__(self):
        self.inner = nnx.List([nnx.BatchNorm(4, rngs=nnx.Rngs(0))])
        self.head = nnx.Linear(4, 3, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 8}, r"method\.rank below the width 8 of layer blocks\.0\.query, got 8"),
        ({"rank": 64}, r"below the width 8 .* got 64"),
        ({"targets": ".*nothing"}, r"No layer matches method\.targets '\.\*nothing'"),
        ({"layers": "7"}, r"No layer matches.*method\.layers '7'"),
        ({"targets": "*query"}, r"Cannot read method\.targets '\*query' as a regular expression"),
        ({"layers": "two"}, r"Expected method\.layers as all, 4-5 or 0,2,4, got 'two'"),
        ({"head": "blocks.0.norm"}, r"No dense layer 'blocks\.0\.norm'.*'head'"),
        ({"head": "classifier"}, r"No dense layer 'classifier'.*'head'"),
        ({"model": Normalised(), "targets": "head"}, r"'inner\.0' is a BatchNorm.*LayerNorm"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(settings, message):
    with pytest.raises(InputError, match=message):
        injected(**settings)


def test_a_layer_used_in_two_places_is_refused():
    class Tied(nnx.Module):
        def __init__(self):
            self.first = nnx.Linear(6, 6, rngs=nnx.Rngs(0))
            self.second = self.first
            self.head = nnx.Linear(6, 3, rngs=nnx.Rngs(0))

    with pytest.raises(InputError, match=r"several places \(first, second\)"):
        inject(Tied(), "first", 2, 4)
    assert inject(Tied(), "head", 2, 4, head=None).shapes.keys() == {"head"}


def test_patterns_give_layers_other_ranks_and_alphas_and_rslora_other_scalings():
    model = injected(
        targets="query,value",
        exclude="2.value",
        rank_pattern={"value": 3.0},
        alpha_pattern={r".*0\.query": 12.0},
        use_rslora=True,
    )
    found = {name: (one.rank, one.scaling) for name, one in model.adapted.items()}
    usual = (2, 6 / 2**0.5)
    assert found == {
        "blocks.0.query": (2, 12 / 2**0.5),
        "blocks.0.value": (3, 6 / 3**0.5),
        "blocks.1.query": usual,
        "blocks.1.value": (3, 6 / 3**0.5),
        "blocks.2.query": usual,
    }
    assert model.shapes["blocks.0.value"] == {"lora_a": (12, 3), "lora_b": (3, 8)}
    adapters = factors(model)
    assert {n: leaves["lora_a"].shape[1] for n, leaves in adapters.items() if n in found} == {
        name: rank for name, (rank, _) in found.items()
    }
    with pytest.raises(InputError, match="rank_pattern names 'key'"):
        injected(rank_pattern={"key": 3.0})


def test_names_of_other_libraries_match_where_a_family_gives_them():
    names = ((r"blocks\.(\d+)\.query", r"encoder.layer.\1.attention.self.query"),)
    model = injected(targets="self.query", other_names=names)
    assert sorted(model.adapted) == ["blocks.0.query", "blocks.1.query", "blocks.2.query"]


@pytest.mark.statistical
def test_dropout_leaves_out_its_share_and_keeps_the_mean(key):
    model = injected(targets="first", head=None, dropout=0.25)
    adapters = factors(model)
    base = injected(targets="first", head=None).apply(model.backbone, adapters, INPUTS)
    np.testing.assert_array_equal(model.apply(model.backbone, adapters, INPUTS), base)
    keys = [rng.leaf(key, index) for index in range(2)]
    one, other = (model.apply_training(model.backbone, adapters, k, INPUTS) for k in keys)
    assert np.abs(one - base).max() > 1e-3
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_array_equal(
        one, model.apply_training(model.backbone, adapters, keys[0], INPUTS)
    )


class Layered(nnx.Module):
    """Blocks of one shape, run as the package's models run theirs."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([Block(6, rngs) for _ in range(3)])
        self.head = nnx.Linear(6, 3, rngs=rngs)
        self.remat = False

    def __call__(self, x):
        return self.head(run_blocks(self.layers, x, remat=self.remat))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.thorough
def test_stacked_and_recomputed_layers_give_the_same_numbers(remat, dropout, key):
    plain, changed = Layered(), Layered()
    changed.remat = remat
    one = injected(plain, dropout=dropout)
    other = injected(changed, dropout=dropout, scan_layers=True)
    adapters = factors(one)

    def loss(model):
        def of(adapters):
            logits = model.apply_training(model.backbone, adapters, key, INPUTS)
            return jnp.sum(logits**2)

        return jax.value_and_grad(of)(adapters)

    assert one.shapes == other.shapes
    assert other.backbone["layers"]["block"]["query"]["base"]["kernel"].shape == (3, 6, 10)
    for a, b in zip(jax.tree.leaves(loss(one)), jax.tree.leaves(loss(other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="same adapters in every block"):
        injected(Layered(), layers="0-1", scan_layers=True)
    with pytest.raises(InputError, match="list of blocks called 'layers'"):
        injected(scan_layers=True)


@pytest.mark.parametrize(
    ("layers", "blocks"), [("all", None), ("3", {3}), ("4-6", {4, 5, 6}), ("0,2,4-5", {0, 2, 4, 5})]
)
def test_blocks_are_read_from_spans_and_lists(layers, blocks):
    assert parse_blocks(layers) == blocks
