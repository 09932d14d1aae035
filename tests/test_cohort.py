"""Draws: every example with its probability, capped at random, from keys that depend on place alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffalora_jax.cohort import (
    cohort_capacity,
    draw_batch,
    draw_cohort,
    draw_local_batches,
    longest_first,
    threshold,
)
from tests.helpers import keys, prepared

DRAWS = 4000


def many_draws(key, size=40, slots=50, probability=0.2, capacity=30):
    members = jnp.arange(100, 100 + slots)

    def one(index):
        return draw_batch(
            jax.random.fold_in(key, index),
            members,
            jnp.int32(size),
            jnp.uint32(threshold(probability)),
            capacity,
        )

    return jax.vmap(one)(jnp.arange(DRAWS))


@pytest.mark.statistical
def test_every_example_is_included_with_its_probability(key):
    batch = many_draws(key)
    counts = np.bincount(np.asarray(batch.rows)[np.asarray(batch.is_real)] - 100, minlength=50)
    assert counts[40:].sum() == 0, "padding slots must never be drawn"
    stddev = np.sqrt(0.2 * 0.8 / DRAWS)
    assert np.abs(counts[:40] / DRAWS - 0.2).max() < 4.5 * stddev
    sizes = np.asarray(batch.is_real).sum(1)
    assert abs(sizes.var() / (40 * 0.2 * 0.8) - 1) < 0.1, "sizes must vary as a binomial's"


@pytest.mark.statistical
def test_inclusions_are_independent(key):
    batch = many_draws(key, size=4, slots=4, probability=0.5, capacity=4)
    rows, real = np.asarray(batch.rows) - 100, np.asarray(batch.is_real)
    included = np.zeros((DRAWS, 4))
    for slot in range(4):
        included[np.arange(DRAWS)[real[:, slot]], rows[real[:, slot], slot]] = 1
    correlation = np.corrcoef(included.T) - np.eye(4)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(DRAWS)


@pytest.mark.statistical
def test_a_full_draw_keeps_a_uniformly_random_subset(key):
    batch = many_draws(key, size=40, probability=0.5, capacity=5)
    assert np.asarray(batch.is_real).all()
    counts = np.bincount(np.asarray(batch.rows).ravel() - 100, minlength=50)[:40]
    expected = DRAWS * 5 / 40
    assert np.abs(counts - expected).max() < 4.5 * np.sqrt(expected)


def test_a_draw_names_no_example_twice(key):
    batch = many_draws(key)
    for rows, real in zip(
        np.asarray(batch.rows[:200]), np.asarray(batch.is_real[:200]), strict=True
    ):
        assert len(set(rows[real])) == real.sum()


def test_draws_differ_over_rounds_clients_and_steps_and_repeat_from_the_same_key():
    run = prepared()
    draw = lambda round_index, client: draw_local_batches(  # noqa: E731
        keys(run).secret, round_index, client, run.data, client, jnp.uint32(2**31), 3, 20
    )
    first = draw(0, 0)
    again = draw(0, 0)
    np.testing.assert_array_equal(first.rows, again.rows)
    drawn = [
        tuple(rows[real])
        for batch in (draw(0, 0), draw(1, 0))
        for rows, real in zip(np.asarray(batch.rows), np.asarray(batch.is_real), strict=True)
    ]
    assert len(set(drawn)) == len(drawn)
    slots = [
        tuple(
            np.flatnonzero(
                np.isin(
                    np.asarray(run.data.members[k]), np.asarray(b.rows[0])[np.asarray(b.is_real[0])]
                )
            )
        )
        for k, b in ((0, draw(0, 0)), (1, draw(0, 1)))
    ]
    assert slots[0] != slots[1]


def test_fixed_cohorts_have_their_size_and_poisson_cohorts_their_mean(key):
    chosen = jax.vmap(lambda i: draw_cohort(jax.random.fold_in(key, i), 20, 5, "fixed", 5))(
        jnp.arange(500)
    )
    assert np.asarray(chosen.is_real).all()
    assert all(len(set(row)) == 5 for row in np.asarray(chosen.clients))
    slots = cohort_capacity(20, 5, "poisson")
    chosen = jax.vmap(lambda i: draw_cohort(jax.random.fold_in(key, i), 20, 5, "poisson", slots))(
        jnp.arange(500)
    )
    assert abs(np.asarray(chosen.is_real).sum(1).mean() - 5) < 0.5
    counts = np.bincount(np.asarray(chosen.clients)[np.asarray(chosen.is_real)], minlength=20)
    assert np.abs(counts - 125).max() < 4.5 * np.sqrt(125 * 0.75)


def test_longest_first_keeps_the_draw_and_puts_padding_last(key):
    batch = jax.tree.map(lambda leaf: leaf[0], many_draws(key))
    lengths = jnp.arange(150) % 7 + 1
    ordered = longest_first(batch, lengths)
    count = int(batch.is_real.sum())
    assert set(np.asarray(ordered.rows[:count])) == set(np.asarray(batch.rows[batch.is_real]))
    assert np.asarray(ordered.is_real[:count]).all()
    assert (np.diff(np.asarray(lengths[ordered.rows[:count]])) <= 0).all()
