"""How A and B are drawn: another for each layer, from the public seed alone, of the promised law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from ffalora_jax import registry, rng
from ffalora_jax.lora import init_factors, inject
from ffalora_jax.lora_init import LoraInit
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


def test_b_is_drawn_as_the_mirror_image_of_a_from_a_key_of_its_own(key):
    class Flipped(nnx.Module):
        def __init__(self, inputs, outputs):
            self.only = nnx.Linear(inputs, outputs, rngs=nnx.Rngs(0))

    wide, square = (inject(Flipped(*sizes), "only", 2, 4, head=None) for sizes in ((6, 9), (9, 9)))
    for draw in (registry.lookup("inits", name)() for name in registry.available("inits")):
        b = init_factors(wide, draw, key, "lora_b")["only"]["lora_b"]
        assert b.shape == (2, 9)
        expected = draw(rng.stream(key, rng.Purpose.LORA_INIT_B, 0), 9, 2)
        np.testing.assert_array_equal(b, expected.T)
        a = init_factors(square, draw, key, "lora_a")["only"]["lora_a"]
        assert not np.isclose(b, a.T).any(), "a method that draws both needs two draws"


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
    samples = np.ravel(registry.lookup("inits", name)()(key, 400, 8))
    assert (scipy.stats.kstest(samples * factor, law.cdf).pvalue > 0.01) == fits


def test_kaiming_stays_within_its_bound(key):
    samples = np.abs(registry.lookup("inits", "kaiming")()(key, 400, 8))
    assert 0.99 / 20 < samples.max() <= 1 / 20


@pytest.mark.parametrize("name", registry.available("inits"))
def test_every_init_keeps_the_contract(name, key):
    draw = registry.lookup("inits", name)()
    assert isinstance(draw, LoraInit)
    value = draw(key, 12, 3)
    assert value.shape == (12, 3)
    assert value.dtype == jnp.float32
    assert np.isfinite(value).all()
    np.testing.assert_array_equal(value, draw(key, 12, 3))
    assert np.linalg.matrix_rank(value) == 3
    assert not np.isclose(value, draw(rng.public_root(4321), 12, 3)).any()
