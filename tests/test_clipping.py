"""What clipping promises: sensitivity, padding, broken examples, blocks; and an oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffalora_jax.clipping import Blocks, clipped_sum, clipped_sum_in_blocks
from ffalora_jax.cohort import Batch, client_data

SIZE = 6
VALUES = st.one_of(
    st.floats(-1e4, 1e4, width=32), st.sampled_from([0.0, np.inf, -np.inf, np.nan, 1e30, -1e-30])
)
EXAMPLES = st.lists(st.lists(VALUES, min_size=5, max_size=5), min_size=SIZE, max_size=SIZE)


def linear_loss(trained, example):
    """Its gradient is the example itself, spread over two leaves."""
    return jnp.vdot(trained["a"]["x"], example[:2]) + jnp.vdot(trained["b"]["y"], example[2:])


TRAINED = {"a": {"x": jnp.zeros(2)}, "b": {"y": jnp.zeros(3)}}


@jax.jit
def total(examples, is_real, clip_norm):
    found, facts = clipped_sum(linear_loss, TRAINED, examples, is_real, clip_norm)
    return jnp.concatenate([found["a"]["x"], found["b"]["y"]]), facts


@settings(max_examples=300, deadline=None)
@given(EXAMPLES, st.lists(st.booleans(), min_size=SIZE, max_size=SIZE), st.integers(0, SIZE - 1))
def test_adding_or_removing_any_example_moves_the_sum_by_at_most_the_clip_norm(rows, mask, changed):
    examples, is_real = jnp.array(rows, jnp.float32), jnp.array(mask)
    for clip_norm in (0.5, 3.0):
        with_it, _ = total(examples, is_real.at[changed].set(True), clip_norm)
        without, _ = total(examples, is_real.at[changed].set(False), clip_norm)
        assert np.isfinite(with_it).all()
        slack = 1e-5 * clip_norm * (1 + SIZE)
        assert np.linalg.norm(np.asarray(with_it - without, np.float64)) <= clip_norm + slack


@settings(max_examples=100, deadline=None)
@given(EXAMPLES, st.lists(VALUES, min_size=5, max_size=5))
def test_padding_changes_nothing_whatever_it_holds(rows, filling):
    examples = jnp.array(rows, jnp.float32)
    is_real = jnp.arange(SIZE) < SIZE - 1
    filled = examples.at[-1].set(jnp.array(filling, jnp.float32))
    np.testing.assert_array_equal(total(examples, is_real, 1.0)[0], total(filled, is_real, 1.0)[0])


def test_clipping_is_joint_over_all_leaves():
    example = jnp.array([[3.0, 0.0, 0.0, 4.0, 0.0]])
    found, facts = total(example, jnp.array([True]), 1.0)
    np.testing.assert_allclose(found, [0.6, 0, 0, 0.8, 0], rtol=1e-6)
    assert float(facts.num_clipped) == 1
    found, _ = total(0.16 * example, jnp.array([True]), 0.5)
    np.testing.assert_allclose(found, [0.3, 0, 0, 0.4, 0], rtol=1e-6)


@pytest.mark.parametrize("members", [2, 5])
def test_members_are_clipped_each_to_its_part_and_together_to_the_whole(members):
    """All far above the bound: each is of norm C / sqrt(members), together of norm C."""
    trained = jax.tree.map(lambda leaf: jnp.zeros((members, *leaf.shape)), TRAINED)
    examples = jnp.array([[30.0, 0.0, 0.0, 40.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])

    def loss(trained, example):
        return jnp.sum(jax.vmap(linear_loss, in_axes=(0, None))(trained, example))

    found, facts = clipped_sum(loss, trained, examples, jnp.ones(2, bool), 3.0, members)
    each = jnp.concatenate([found["a"]["x"], found["b"]["y"]], axis=1)
    np.testing.assert_allclose(jnp.linalg.norm(each, axis=1), 3 / np.sqrt(members), rtol=1e-6)
    np.testing.assert_allclose(optax.tree.norm(found), 3.0, rtol=1e-6)
    assert [float(x) for x in facts[:4]] == [2, 1, 0, 50]


def test_short_gradients_are_left_alone_and_infinite_clip_is_the_plain_sum(key):
    examples = jax.random.normal(key, (SIZE, 5))
    everyone = jnp.ones(SIZE, bool)
    np.testing.assert_allclose(total(examples, everyone, jnp.inf)[0], examples.sum(0), rtol=1e-5)
    np.testing.assert_allclose(
        total(1e-3 * examples, everyone, 1.0)[0], 1e-3 * examples.sum(0), rtol=1e-5
    )


def test_facts_count_clipped_and_broken_examples():
    examples = jnp.array(
        [[2.0, 0, 0, 0, 0], [0.1, 0, 0, 0, 0], [jnp.nan, 0, 0, 0, 0], [9.0, 0, 0, 0, 0]]
    )
    _, facts = total(examples, jnp.array([True, True, True, False]), 1.0)
    assert [float(x) for x in facts[:3]] == [3, 1, 1]
    np.testing.assert_allclose(facts.norm_sum, 2.1, rtol=1e-6)
    ones = jax.tree.map(jnp.ones_like, TRAINED)
    is_real = jnp.array([True, True, True, False])
    _, facts = clipped_sum(linear_loss, ones, examples, is_real, 1.0)
    np.testing.assert_allclose(facts.loss_sum, 2.1, rtol=1e-6)
    at_the_bound = total(examples, jnp.array([True, False, False, False]), 2.0)[1]
    assert float(at_the_bound.num_clipped) == 0


def test_half_precision_gradients_are_clipped_in_float32(key):
    examples = jax.random.normal(key, (64, 5)).astype(jnp.bfloat16)
    trained = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), TRAINED)
    found, _ = clipped_sum(linear_loss, trained, examples[:1], jnp.array([True]), 0.1)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    assert float(optax.tree.norm(found)) <= 0.1 * (1 + 1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised by its imports
def test_clipped_sum_equals_jax_privacy(key):
    from jax_privacy import clipped_grad

    examples = 2 * jax.random.normal(key, (SIZE, 5))
    padding = jnp.array([False, False, True, False, True, False])

    def batch_loss(trained, batch):
        return jnp.sum(jax.vmap(linear_loss, in_axes=(None, 0))(trained, batch))

    oracle = clipped_grad(batch_loss, l2_clip_norm=1.5, batch_argnums=1)
    expected = oracle(TRAINED, examples, is_padding_example=padding)
    found, _ = total(examples, ~padding, 1.5)
    joined = jnp.concatenate([expected["a"]["x"], expected["b"]["y"]])
    np.testing.assert_allclose(found, joined, rtol=1e-5, atol=1e-6)


def test_the_sum_is_computed_in_full_precision_on_accelerators():
    lowered = total.lower(jnp.ones((SIZE, 5)), jnp.ones(SIZE, bool), 1.0).as_text()
    sums = [
        line for line in lowered.splitlines() if "dot_general" in line and f"tensor<{SIZE}x" in line
    ]
    assert sums
    assert all("HIGHEST" in line for line in sums if f"tensor<{SIZE}xf32>, tensor<{SIZE}x" in line)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 50])
@pytest.mark.parametrize("widths", [(8,), (2, 5, 8)])
@pytest.mark.parametrize("num_real", [0, 1, 5, 7])
def test_blocks_give_the_sum_of_the_whole_draw(key, size, widths, num_real):
    values = jax.random.normal(key, (20, 8))
    lengths = np.arange(20) % 8 + 1
    masked = jnp.where(np.arange(8) < lengths[:, None], values, 0)
    data = client_data({"x": masked}, np.zeros(20), lengths, [np.arange(20)])
    batch = Batch(jnp.arange(3, 10), jnp.arange(7) < num_real)

    def loss(trained, example):
        width = example.inputs["x"].shape[0]
        return jnp.vdot(trained["w"][:width], example.inputs["x"])

    trained = {"w": jnp.ones(8)}
    whole, facts = clipped_sum_in_blocks(loss, trained, data, batch, 1.5, Blocks(7, (8,)), 1)
    parts, more = clipped_sum_in_blocks(loss, trained, data, batch, 1.5, Blocks(size, widths), 1)
    drawn = np.asarray(masked[3 : 3 + num_real])
    lengths = np.maximum(np.linalg.norm(drawn, axis=1), 1.5)
    np.testing.assert_allclose(whole["w"], np.sum(1.5 * drawn / lengths[:, None], 0), atol=1e-6)
    np.testing.assert_allclose(whole["w"], parts["w"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.array(facts), np.array(more), rtol=1e-5, atol=1e-6)
    assert float(more.num_real) == num_real


def block_facts(blocks, num_real=5):
    """A sum of the widths that the examples were computed at, and the program."""
    lengths = (2, 5, 1, 8, 2, 8, 8)
    data = client_data({"x": np.zeros((7, 8))}, np.zeros(7), lengths, [np.arange(7)])

    def loss(trained, example):
        return trained["w"] * example.inputs["x"].shape[0]

    def summed(rows):
        batch = Batch(rows, jnp.arange(5) < num_real)
        trained = {"w": jnp.ones(())}
        return clipped_sum_in_blocks(loss, trained, data, batch, jnp.inf, blocks, 1)[0]["w"]

    return float(summed(jnp.arange(5))), str(jax.make_jaxpr(summed)(jnp.arange(5)))


def test_each_block_is_as_wide_as_the_narrowest_width_that_holds_its_longest_example():
    assert block_facts(Blocks(1, (2, 5, 8)))[0] == 2 + 5 + 2 + 8 + 2
    assert block_facts(Blocks(2, (2, 5, 8)))[0] == (8 + 8) + (2 + 2) + 2
    assert block_facts(Blocks(5, (2, 5, 8)))[0] == 5 * 8
    assert block_facts(Blocks(5, (2, 5, 8)), num_real=2)[0] == 5 + 5
    assert block_facts(Blocks(2, (8,)))[0] == 5 * 8


def test_no_more_than_a_block_is_computed_at_once_and_one_block_needs_no_loop():
    _, program = block_facts(Blocks(2, (2, 8)))
    assert "while" in program
    assert "f32[2,8]" in program
    assert "f32[5,8]" not in program
    _, program = block_facts(Blocks(5, (2, 8)))
    assert "f32[5,8]" in program
    assert "while" not in program
