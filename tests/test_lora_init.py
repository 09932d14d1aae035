"""How A and B are drawn: another for each layer, from the public seed alone, of the promised law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from ffalora_jax import adapters as leaves
from ffalora_jax import registry, rng
from ffalora_jax.errors import InputError
from ffalora_jax.lora import init_factors, inject, kernel_of
from ffalora_jax.lora_init import LoraInit
from tests.helpers import prepared, run_rounds
from tests.test_lora import Mine, injected, normal


def test_each_layer_gets_another_a():
    drawn = init_factors(injected(targets=r".*query"), normal, rng.public_root(0), "lora_a")
    values = [leaves["lora_a"] for leaves in drawn.values()]
    assert len({array.tobytes() for array in map(np.asarray, values)}) == 3


def test_a_depends_on_the_public_seed_only():
    one, same, other = (
        init_factors(injected(Mine(weights)), normal, rng.public_root(seed), "lora_a")
        for weights, seed in ((0, 5), (1, 5), (0, 6))
    )
    jax.tree.map(np.testing.assert_array_equal, one, same)
    for layer in one:
        assert not np.isclose(one[layer]["lora_a"], other[layer]["lora_a"]).any()


INITS = {name: registry.lookup("inits", name)() for name in registry.available("inits")}
DRAWN = {name: init for name, init in INITS.items() if init.draw is not None}
OF_WEIGHTS = {name: init for name, init in INITS.items() if init.of_weights is not None}


def test_b_is_drawn_as_the_mirror_image_of_a_from_a_key_of_its_own(key):
    wide, square = (inject(Flipped(*sizes), "only", 2, 4, head=None) for sizes in ((6, 9), (9, 9)))
    for init in DRAWN.values():
        b = init_factors(wide, init, key, "lora_b")["only"]["lora_b"]
        assert b.shape == (2, 9)
        expected = init.draw(rng.stream(key, rng.Purpose.LORA_INIT_B, 0), 9, 2)
        np.testing.assert_array_equal(b, expected.T)
        a = init_factors(square, init, key, "lora_a")["only"]["lora_a"]
        assert not np.isclose(b, a.T).any(), "a method that draws both needs two draws"


class Flipped(nnx.Module):
    def __init__(self, inputs, outputs):
        self.only = nnx.Linear(inputs, outputs, rngs=nnx.Rngs(0))


@pytest.mark.statistical
@pytest.mark.parametrize(("factor", "fits"), [(1.0, True), (2 / 3, False), (3 / 2, False)])
@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("kaiming", scipy.stats.uniform(-1 / 20, 2 / 20)),  # 1 / sqrt(400 features)
        ("gaussian", scipy.stats.norm(scale=1 / 8)),
    ],
)
def test_factors_have_the_promised_law(name, law, factor, fits, key):
    samples = np.ravel(INITS[name].draw(key, 400, 8))
    assert (scipy.stats.kstest(samples * factor, law.cdf).pvalue > 0.01) == fits


def test_kaiming_stays_within_its_bound(key):
    samples = np.abs(INITS["kaiming"].draw(key, 400, 8))
    assert 0.99 / 20 < samples.max() <= 1 / 20


@pytest.mark.parametrize(("name", "square"), [("orthonormal", 1.0), ("orthogonal", 1 / 3)])
def test_orthogonal_columns_have_the_promised_length(name, square, key):
    a = INITS[name].draw(key, 50, 6)
    np.testing.assert_allclose(a.T @ a, square * np.eye(6), atol=1e-6)


@pytest.mark.statistical
def test_orthogonal_has_the_norm_of_kaiming_so_learning_rates_carry_over(key):
    ours, theirs = (np.linalg.norm(INITS[n].draw(key, 400, 8)) for n in ("orthogonal", "kaiming"))
    assert ours == pytest.approx(theirs, rel=0.05)


@pytest.mark.parametrize("name", DRAWN)
def test_every_drawn_init_keeps_the_contract(name, key):
    draw = INITS[name].draw
    value = draw(key, 12, 3)
    assert value.shape == (12, 3)
    assert value.dtype == jnp.float32
    assert np.isfinite(value).all()
    np.testing.assert_array_equal(value, draw(key, 12, 3))
    assert np.linalg.matrix_rank(value) == 3
    assert not np.isclose(value, draw(rng.public_root(4321), 12, 3)).any()


@pytest.mark.parametrize("name", INITS)
def test_every_init_says_what_it_costs_in_privacy(name):
    init = INITS[name]
    assert isinstance(init, LoraInit)
    assert (init.draw is None) != (init.of_weights is None)
    assert init.privacy.startswith("free")


@pytest.mark.parametrize("name", OF_WEIGHTS)
@pytest.mark.parametrize("shape", [(9, 14), (14, 9)])
def test_factors_of_weights_are_the_promised_part_of_w(name, shape, key):
    w, rank, scaling = np.asarray(jax.random.normal(key, shape)), 3, 2.5
    a, b = INITS[name].of_weights(w, rank, scaling)
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    expected = {
        "pissa": u[:, :rank] * s[:rank] @ vt[:rank],
        "minor": u[:, -rank:] * s[-rank:] @ vt[-rank:],
    }
    if name in expected:
        np.testing.assert_allclose(scaling * a @ b, expected[name], atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=1), rtol=1e-5)
    else:  # a projection of W: twice is once, and the first outputs' span is kept
        np.testing.assert_allclose(b @ b.T, np.eye(rank), atol=1e-6)
        np.testing.assert_allclose(w @ b.T @ b, a @ b, atol=1e-5)
        np.testing.assert_allclose((a @ b)[:rank], w[:rank], atol=1e-5)


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_a_frozen_a_is_taken_from_w_and_b_begins_at_zero(name):
    run = prepared(method="ffa_lora", init=name)
    layer = next(iter(run.frozen.adapters))
    kernel, facts = kernel_of(run.frozen.backbone, layer), run.model.adapted[layer]
    expected, _ = INITS[name].of_weights(kernel, facts.rank, facts.scaling)
    np.testing.assert_array_equal(run.frozen.adapters[layer]["lora_a"], expected)
    assert not run.state.adapters[layer]["lora_b"].any()


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_where_both_are_trained_the_model_begins_from_a_part_of_w_unchanged(name):
    run = prepared(method="fedavg_lora", init=name)
    layer = next(iter(run.frozen.adapters))
    assert run.state.adapters[layer]["lora_b"].any()
    inputs = {key: leaf[:4] for key, leaf in run.data.inputs.items()}
    every = leaves.merge(run.frozen.adapters, run.state.adapters)
    logits = run.model.apply(run.model.backbone, every, **inputs)
    np.testing.assert_allclose(logits, run.loaded.model(**inputs), atol=1e-6)


def test_training_from_a_part_of_w_equals_lora_on_what_is_left_of_w():
    """The published form: the base keeps W - scaling A_0 B_0, the adapter begins at A_0, B_0."""
    run = prepared(method="fedavg_lora", init="pissa")
    state, _ = run_rounds(run, 1)
    after = leaves.merge(run.frozen.adapters, state.adapters)
    inputs = {key: leaf[:4] for key, leaf in run.data.inputs.items()}
    found = run.model.apply(run.frozen.backbone, after, **inputs)
    backbone = jax.tree.map(lambda leaf: leaf, run.frozen.backbone)
    for layer, mine in after.items():
        if layer != "head":
            base = kernel_of(backbone, layer)
            scaling = run.model.adapted[layer].scaling
            part = scaling * mine["start_a"] @ mine["start_b"]
            put_kernel(backbone, layer, base - part)
    plain = prepared(method="fedavg_lora").model
    both = leaves.select(after, {"lora_a", "lora_b", "head_kernel", "head_bias"})
    np.testing.assert_allclose(found, plain.apply(backbone, both, **inputs), rtol=1e-4, atol=1e-5)


def put_kernel(backbone, layer, value):
    for part in layer.split("."):
        backbone = backbone[int(part) if part.isdigit() else part]
    backbone["base"]["kernel"] = value


def test_a_method_that_draws_a_anew_refuses_an_init_that_gives_the_same_again():
    with pytest.raises(InputError, match=r"draws A anew .* --method.init"):
        prepared(method="flora", init="pissa")
