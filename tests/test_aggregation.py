"""The mean over the client axis: exact, masked, weighted; and what exactness means for each method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffalora_jax import registry
from ffalora_jax.aggregation import (
    Late,
    Sums,
    if_anybody,
    mean_upload,
    ring,
    weighted_sum,
    with_late,
)


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
    with jax.debug_nans(True):  # nothing over nothing is not even computed
        mean = mean_of(tree, jnp.zeros(5, bool), None, fallback)
    for a, b in zip(jax.tree.leaves(mean), jax.tree.leaves(fallback), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("weight", "came"), [(0.0, False), (1e-6, True), (3.0, True)])
def test_what_follows_from_a_round_is_taken_where_anybody_came(weight, came):
    after, before = {"x": jnp.array([1.0, 2.0])}, {"x": jnp.array([5.0, jnp.nan])}
    found = if_anybody(Sums({}, jnp.float32(weight)), after, before)
    np.testing.assert_array_equal(found["x"], (after if came else before)["x"])


@pytest.mark.parametrize("weight", [None, 0.25, 1.0, 3.0])
def test_the_mean_of_one_client_is_its_upload_whatever_it_weighs(key, weight):
    tree = uploads(key)
    weights = None if weight is None else jnp.full(5, weight)
    mean = mean_of(tree, jnp.arange(5) == 2, weights, jax.tree.map(lambda x: x[0], tree))
    for name, leaf in tree.items():
        np.testing.assert_allclose(mean[name], leaf[2], rtol=1e-6)


def test_late_uploads_count_as_what_they_moved_on_top_of_a_client_that_moved_nothing():
    """By hand: 5 + 0.25 * 8 + 0.25 * 3 * 20 = 22 over a weight of 2 + 0.25 * 3."""
    sums = Sums({"a": jnp.asarray([5.0, 0.0])}, jnp.float32(2.0))
    moved = Sums({"a": jnp.asarray([8.0, -4.0])}, jnp.float32(3.0))
    nothing = {"a": jnp.asarray([20.0, 4.0])}
    found = with_late(sums, Late(moved, jnp.asarray([False, True])), nothing, 0.25)
    assert found.weighted["a"].tolist() == [22.0, 2.0]
    assert float(found.weight) == 2.75


@pytest.mark.parametrize("count", [1, 2, 7, 200])
def test_the_ring_is_one_round_in_the_order_of_the_places(key, count):
    """Else a client could have itself as its partner, and its mask would take itself away."""
    is_real = jax.random.bernoulli(key, 0.6, (count,)).at[count // 2].set(True)
    there = np.flatnonzero(np.asarray(is_real))
    assert np.asarray(ring(is_real))[there].tolist() == np.roll(there, -1).tolist()


@pytest.mark.parametrize("name", registry.available("methods"))
def test_a_method_says_rightly_whether_the_server_has_the_mean_of_the_clients_models(key, name):
    method = registry.lookup("methods", name)()
    shapes = method.detour.shapes(24, 20, 3)
    draws = [leaf_draws(jax.random.fold_in(key, k), shapes) for k in range(3)]
    start, ends = draws[0], draws[1:]
    for trained in method.parts:
        ends = [{**start, **{leaf: end[leaf] for leaf in trained}} for end in ends]
        sent = [
            method.upload({"layer": start}, {"layer": {x: end[x] for x in trained}}) for end in ends
        ]
        uploads = jax.tree.map(lambda *leaves: jnp.stack(leaves), *sent)
        mean = jax.tree.map(lambda leaf: leaf.mean(0), uploads)
        after = method.read({"layer": start}, mean, uploads, jnp.ones(2))["layer"]
        if name == "ravan":  # gains begin anew at every client
            after = {**after, "gain": jnp.ones_like(after["gain"])}
        x = jnp.eye(24)
        models = [method.detour.apply(end, x, 2.0) for end in ends]
        exact = np.allclose(method.detour.apply(after, x, 2.0), sum(models) / 2, atol=1e-4)
        assert exact == method.exact


def leaf_draws(key, shapes):
    return {
        name: jax.random.normal(jax.random.fold_in(key, i), shape)
        for i, (name, shape) in enumerate(sorted(shapes.items()))
    }
