"""The mean over the client axis: exact, masked, weighted; and what exactness means for each method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffalora_jax import registry
from ffalora_jax.aggregation import mean_upload, weighted_sum


def uploads(key, count=5):
    return {"a": jax.random.normal(key, (count, 3, 2)), "b": jax.random.normal(key, (count, 4))}


def mean_of(tree, is_real, weights, fallback):
    return mean_upload(weighted_sum(tree, is_real, weights), fallback)


def test_uniform_mean_is_numpys(key):
    tree = uploads(key)
    mean = mean_of(tree, jnp.ones(5, bool), None, jax.tree.map(lambda x: x[0], tree))
    for name, leaf in tree.items():
        np.testing.assert_allclose(mean[name], np.asarray(leaf).mean(0), rtol=1e-6)


def test_weights_are_shares_of_the_clients_that_took_part(key):
    tree = uploads(key)
    weights, real = jnp.array([5.0, 1, 2, 100, 3]), jnp.array([True, True, True, False, True])
    mean = mean_of(tree, real, weights, jax.tree.map(lambda x: x[0], tree))
    for name, leaf in tree.items():
        kept = np.asarray(leaf, np.float64)[[0, 1, 2, 4]]
        np.testing.assert_allclose(
            mean[name], np.average(kept, axis=0, weights=[5, 1, 2, 3]), rtol=1e-5
        )


@pytest.mark.parametrize("weights", [None, jnp.array([1.0, 2.0, 3.0, 4.0, 5.0])])
def test_a_masked_client_contributes_nothing_even_if_broken(key, weights):
    tree = uploads(key)
    broken = jax.tree.map(lambda x: x.at[2].set(jnp.nan), tree)
    real = jnp.array([True, True, False, True, True])
    fallback = jax.tree.map(lambda x: x[0], tree)
    for a, b in zip(
        jax.tree.leaves(mean_of(tree, real, weights, fallback)),
        jax.tree.leaves(mean_of(broken, real, weights, fallback)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_with_nobody_the_server_keeps_what_it_has(key):
    tree = uploads(key)
    fallback = jax.tree.map(lambda x: x[3], tree)
    mean = mean_of(tree, jnp.zeros(5, bool), None, fallback)
    for a, b in zip(jax.tree.leaves(mean), jax.tree.leaves(fallback), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", registry.available("methods"))
def test_a_method_says_rightly_whether_the_mean_of_products_is_the_product_of_means(key, name):
    method = registry.lookup("methods", name)()
    draws = [jax.random.normal(jax.random.fold_in(key, i), (2, 6, 3)) for i in range(4)]
    for trained in method.parts:
        a = draws[0] if "lora_a" in trained else jnp.stack([draws[0][0]] * 2)
        b = draws[1] if "lora_b" in trained else jnp.stack([draws[1][0]] * 2)
        products = np.mean(
            [np.asarray(x) @ np.asarray(y).T for x, y in zip(a, b, strict=True)], axis=0
        )
        exact = np.allclose(products, np.asarray(a.mean(0)) @ np.asarray(b.mean(0)).T, atol=1e-5)
        assert exact == method.exact
