"""Compressed uploads: unbiased or the nearest, counted as sent, refused where single ones are hidden."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffalora_jax.compression import compressed, compression_of
from ffalora_jax.errors import InputError
from ffalora_jax.messages import bytes_of
from ffalora_jax.prepare import prepare
from ffalora_jax.run_facts import message_bytes
from tests.helpers import prepared, run_rounds


def form(text):
    found = compression_of(text)
    assert found is not None
    return found


@pytest.fixture
def tree(key):
    a, b = jax.random.split(key)
    return {
        "one": {"a": jax.random.normal(a, (30, 4))},
        "two": {"b": 0.01 * jax.random.normal(b, (7,))},
    }


def test_int8_is_right_on_average_and_within_a_step(tree, key):
    many = jax.vmap(lambda k: form("int8").apply(k, tree))(jax.random.split(key, 4000))
    for found, true in zip(*map(jax.tree.leaves, (many, tree)), strict=True):
        found, true = np.asarray(found), np.asarray(true)
        step = np.abs(true).max() / 127
        assert np.abs(found - true).max() <= step * 1.001
        np.testing.assert_allclose(found.mean(0), true, atol=4 * step * 0.5 / 4000**0.5)
    zero = form("int8").apply(key, {"a": {"x": jnp.zeros(3)}})
    np.testing.assert_array_equal(zero["a"]["x"], 0)


def test_float16_is_the_nearest_half_and_never_infinite(tree, key):
    found = form("float16").apply(key, tree)
    for a, b in zip(*map(jax.tree.leaves, (found, tree)), strict=True):
        np.testing.assert_array_equal(a, np.asarray(b, np.float16).astype(np.float32))
    assert jnp.isfinite(form("float16").apply(key, {"a": {"x": jnp.float32(1e30)}})["a"]["x"])


def test_topk_keeps_the_largest_over_all_leaves_as_they_are(tree, key):
    found = form("topk 0.1").apply(key, tree)
    flat, kept = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (tree, found))
    count = 13  # of 127
    assert (kept != 0).sum() == count
    largest = np.argsort(-np.abs(flat))[:count]
    np.testing.assert_array_equal(kept[largest], flat[largest])
    everything = form("topk 1").apply(key, tree)
    jax.tree.map(np.testing.assert_array_equal, everything, tree)
    assert form("topk 0.1").apply(key, {}) == {}  # of a site that trains alone


def test_what_is_sent_is_what_moved_so_an_unmoved_leaf_arrives_as_it_was(tree, key):
    same = compressed(form("int8"), key, tree, tree)
    jax.tree.map(np.testing.assert_array_equal, same, tree)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("int8", 1 / 4),
        pytest.param("float16", 1 / 2, marks=pytest.mark.slow),
        pytest.param("topk 0.1", 0.2, marks=pytest.mark.slow),
    ],
)
@pytest.mark.thorough
def test_bytes_are_those_that_are_sent_and_the_model_is_near(text, share):
    plain = prepared(method="fedavg_lora", mechanism="none")
    run = prepare(plain.experiment.replace(compression=text))
    up, down = message_bytes(run)
    assert up == pytest.approx(share * message_bytes(plain)[0], rel=0.1)
    assert down == message_bytes(plain)[1]
    ours, theirs = (run_rounds(r, 2)[0].adapters["head"]["head_kernel"] for r in (run, plain))
    moved = np.abs(theirs - plain.state.adapters["head"]["head_kernel"]).max()
    limit = {"float16": 0.01, "int8": 0.1, "topk 0.1": 1.0}[text]
    assert np.abs(ours - theirs).max() < limit * moved


@pytest.mark.parametrize("text", ["", "zip", "topk", "topk 0", "topk 1.5", "topk x", "int8 4"])
def test_another_form_is_refused(text):
    with pytest.raises(InputError, match="Expected compression to be one of"):
        compression_of(text)


@pytest.mark.parametrize("mechanism", ["dp_fedavg", "dp_sgd_secagg"])
def test_where_single_uploads_are_hidden_it_is_refused(mechanism):
    experiment = prepared(mechanism=mechanism).experiment.replace(compression="topk 0.1")
    with pytest.raises(InputError, match="sums alone"):
        prepare(experiment)


def test_a_method_whose_messages_go_another_way_refuses_it():
    experiment = prepared(method="fedask").experiment.replace(compression="int8")
    with pytest.raises(InputError, match="another way"):
        prepare(experiment)


@pytest.mark.parametrize(("text", "sent"), [("none", 4), ("float16", 2), ("int8", 1)])
def test_a_site_with_a_small_rank_sends_its_own_numbers_alone(text, sent):
    run = prepared(method="hetlora", head="frozen")
    rank, leaves = np.array([1, 2]), run.server.active(run.state.adapters, 0)
    up, _ = bytes_of(run.method, leaves, 1, 0, rank, compression_of(text))
    own = [sum(leaf.size for leaf in jax.tree.leaves(leaves)) * r // 2 for r in rank]
    more = 4 * len(jax.tree.leaves(leaves)) if text == "int8" else 0  # a step for each
    assert up.tolist() == [sent * count + more for count in own]
    few, _ = bytes_of(run.method, leaves, 1, 0, rank, compression_of("topk 0.75"))
    assert few.tolist() == [8 * own[0], 8 * own[1] * 3 // 4]
