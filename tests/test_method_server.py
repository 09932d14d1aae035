"""What the server makes of the uploads, method by method, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffalora_jax import adapters
from ffalora_jax.aggregation import mean_upload, weighted_sum
from ffalora_jax.methods import _products
from tests.test_method_rules import assert_near, method_of, normal, pair_of

READ_ALL = ["flexlora", "flora", "fedex_lora", "lora_fair", "hetlora", "fedsvd", "fedask"]


def test_flexlora_fedsvd_and_others_take_a_thin_svd_of_their_products():
    for inputs, inner, outputs in ((6, 2, 5), (3, 4, 7), (7, 4, 3)):
        left, right = normal(0, (inputs, inner)), normal(1, (inner, outputs))
        u, s, vt = _products.thin_svd(left, right)
        count = min(inputs, inner, outputs)
        assert (u.shape, s.shape, vt.shape) == ((inputs, count), (count,), (count, outputs))
        assert_near((u * s[None]) @ vt, left @ right)
        assert_near(u.T @ u, np.eye(count))
        assert_near(vt @ vt.T, np.eye(count))
        assert (np.diff(np.asarray(s)) <= 0).all()


def test_flexlora_lora_fair_and_others_stack_uploads_into_the_mean_of_their_products():
    uploads, shares = pair_of(0, lead=(3,)), jnp.asarray([0.5, 0.3, 0.2])
    left, right = _products.stacked(uploads, shares)
    assert (left.shape, right.shape) == ((6, 6), (6, 5))
    each = np.asarray(uploads["lora_a"]) @ np.asarray(uploads["lora_b"])
    assert_near(left @ right, np.tensordot(np.asarray(shares), each, axes=1))


def server_of(name, seed=0):
    state = {"layer": pair_of(seed), "head": {"head_bias": normal(seed + 8, (2,))}}
    if "residual" in method_of(name).kept:
        state["layer"]["residual"] = normal(seed + 9, (6, 5))
    return state


def read(name, state, weights, scale=1.0):
    """(uploads, what the server has after three clients sent theirs)."""
    uploads = {"layer": pair_of(30, lead=(3,)), "head": {"head_bias": normal(40, (3, 2))}}
    uploads["layer"]["lora_b"] *= scale
    weights = jnp.asarray(weights, jnp.float32)
    kept = adapters.without(state, {"residual"})
    mean = mean_upload(weighted_sum(uploads, weights > 0, weights), kept)
    return uploads, method_of(name).read(state, mean, uploads, weights)


@pytest.mark.parametrize("name", READ_ALL)
def test_with_nobody_nothing_changes_and_nothing_is_divided_by_nothing(name):
    state = server_of(name)
    with jax.debug_nans(True):
        _, after = read(name, state, [0, 0, 0])
    jax.tree.map(np.testing.assert_array_equal, after, state)


@pytest.mark.parametrize("scale", [1.0, 0.01])
@pytest.mark.parametrize("weights", [(1, 1, 1), (0.2, 0, 0.1), (0, 0.5, 0), (2, 3, 0)])
@pytest.mark.parametrize("name", READ_ALL)
def test_the_server_reads_the_uploads_of_those_who_are_there_as_the_method_says(
    name, weights, scale
):
    state = server_of(name)
    uploads, after = read(name, state, weights, scale)
    shares = np.asarray(weights) / np.sum(weights)
    a, b = (np.asarray(uploads["layer"][key]) for key in ("lora_a", "lora_b"))
    mean_a, mean_b = (np.tensordot(shares, leaf, axes=1) for leaf in (a, b))
    product = np.tensordot(shares, a @ b, axes=1)
    layer = after["layer"]
    assert_near(after["head"]["head_bias"], shares @ np.asarray(uploads["head"]["head_bias"]))
    if name in ("flora", "fedex_lora"):
        whole = layer["residual"] + layer["lora_a"] @ layer["lora_b"]
        assert_near(whole, state["layer"]["residual"] + product)
        assert_near(layer["lora_b"], 0 * mean_b if name == "flora" else mean_b)
    elif name == "flexlora":
        u, s, vt = np.linalg.svd(product)
        assert_near(layer["lora_a"] @ layer["lora_b"], (u[:, :2] * s[:2]) @ vt[:2])
        assert_near(layer["lora_a"].T @ layer["lora_a"], np.diag(s[:2]))
    elif name == "lora_fair":
        gram = mean_a.T @ mean_a
        ridge = 0.01 * np.trace(gram) / 2 * np.eye(2)
        missing = mean_a.T @ (product - mean_a @ mean_b)
        assert_near(layer["lora_a"], mean_a)
        assert_near(layer["lora_b"], mean_b + np.linalg.solve(gram + ridge, missing))
    elif name == "hetlora":
        norms = np.asarray(weights) * np.linalg.norm(a @ b, axis=(1, 2))
        own = norms / norms.sum()
        assert_near(layer["lora_a"], np.tensordot(own, a, axes=1))
        assert_near(layer["lora_b"], np.tensordot(own, b, axes=1), atol=1e-7)
    else:
        u, s, vt = np.linalg.svd(np.asarray(state["layer"]["lora_a"]) @ mean_b)
        assert_near(layer["lora_a"] @ layer["lora_b"], (u[:, :2] * s[:2]) @ vt[:2])
        roots = s[:2] if name == "fedask" else np.ones(2)
        assert_near(layer["lora_a"].T @ layer["lora_a"], np.diag(roots), atol=1e-4)


def test_hetlora_takes_the_plain_mean_of_uploads_that_are_all_zero():
    for weights, shares in (((0.1, 0, 0.3), (0.25, 0, 0.75)), ((1, 1, 2), (0.25, 0.25, 0.5))):
        uploads, after = read("hetlora", server_of("hetlora"), weights, scale=0.0)
        a = np.asarray(uploads["layer"]["lora_a"])
        assert_near(after["layer"]["lora_a"], np.tensordot(shares, a, axes=1))
        assert (after["layer"]["lora_b"] == 0).all()
