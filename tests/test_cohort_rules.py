"""Who takes part and what a step sees, rule by rule, on numbers that one can follow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffalora_jax import rng
from ffalora_jax.cohort import (
    ClientData,
    Prefix,
    Presence,
    RoundSettings,
    client_data,
    cohort_capacity,
    draw_batch,
    draw_cohort,
    draw_cohort_of,
    draw_local_batches,
    take,
    threshold,
)
from ffalora_jax.rng import Keys

ALL = jnp.uint32(2**32 - 1)


def keys(public=0, secret=0):
    return Keys(rng.public_root(public), rng.secret_root(secret))


def settings(count=6, size=6, sampling="fixed", presence=None, **more):
    return RoundSettings(count, size, sampling, 1, "uniform", 3, presence=presence, **more)


def presence(seconds=(1.0, 2.0, 3.0, 4.0, 5.0, 9.0), deadline=4.0, **more):
    given = {"available": np.ones((1, 6)), "sticky": 1, "seconds": np.asarray([seconds])}
    given |= {"phase_at": lambda round_index: 0, "deadline": deadline, "wanted": None}
    return Presence(**(given | more))


def there(cohort):
    return np.asarray(cohort.clients)[np.asarray(cohort.is_real)].tolist()


def late(cohort):
    return np.asarray(cohort.clients)[np.asarray(cohort.late)].tolist()


def test_static_sizes_are_what_they_were():
    """Shapes of compiled rounds, and part of what a resumed run draws with."""
    assert cohort_capacity(1000, 25, "fixed") == 25
    assert cohort_capacity(1000, 25, "poisson") == 45
    assert cohort_capacity(1000, 30, "poisson") == 52
    assert cohort_capacity(30, 25, "poisson") == 30
    assert [int(threshold(p)) for p in (0.0, 0.5, 1.0)] == [0, 2**31, 2**32 - 1]


def test_a_round_has_the_same_clients_unless_something_draws_them():
    assert not settings().changes
    assert settings(size=5).changes
    assert settings(sampling="poisson").changes
    assert settings(presence=presence()).changes
    plain = settings()
    assert (plain.secret_cohort, plain.by_slot, plain.monitor, plain.late_weight) == (
        False,
    ) * 3 + (0.0,)
    assert settings(presence=presence(late_weight=0.5)).late_weight == 0.5


def test_who_arrives_after_the_deadline_is_left_out_and_at_it_is_not():
    cohort = draw_cohort_of(settings(presence=presence()), keys(), jnp.int32(0))
    assert there(cohort) == [0, 1, 2, 3]
    assert late(cohort) == [4, 5]


def test_with_a_weight_only_those_within_twice_the_deadline_are_late():
    seconds = (1.0, 2.0, 3.0, 4.5, 8.0, 8.1)
    who = settings(presence=presence(seconds, late_weight=0.5))
    cohort = draw_cohort_of(who, keys(), jnp.int32(0))
    assert there(cohort) == [0, 1, 2]
    assert late(cohort) == [3, 4]


def test_of_those_in_time_the_first_wanted_ones_are_taken():
    seconds = (3.0, 1.0, 9.0, 2.0, 3.5, 2.5)
    cohort = draw_cohort_of(settings(presence=presence(seconds, wanted=3)), keys(), jnp.int32(0))
    assert there(cohort) == [1, 3, 5]
    assert late(cohort) == [0, 2, 4]


def test_presence_goes_by_the_round_of_the_cycle_and_lasts_as_long_as_it_sticks():
    by_round = np.asarray([[1.0] * 6, [0.0] * 6, [1, 0, 1, 0, 1, 0]])
    never_late = (0.0,) * 6
    who = settings(presence=presence(never_late, available=by_round))
    found = [there(draw_cohort_of(who, keys(), jnp.int32(n))) for n in range(4)]
    assert found == [[0, 1, 2, 3, 4, 5], [], [0, 2, 4], [0, 1, 2, 3, 4, 5]]
    half = np.full((1, 6), 0.5)
    sticky = settings(presence=presence(never_late, available=half, sticky=4))
    drawn = [tuple(there(draw_cohort_of(sticky, keys(), jnp.int32(n)))) for n in range(16)]
    assert all(len(set(drawn[n : n + 4])) == 1 for n in range(0, 16, 4))
    assert len(set(drawn)) > 1


def test_a_secret_cohort_follows_the_secret_key_alone():
    who = settings(count=40, size=10, sampling="poisson", secret_cohort=True)

    def drawn(public, secret):
        return tuple(sorted(there(draw_cohort_of(who, keys(public, secret), jnp.int32(1)))))

    assert drawn(0, 1) == drawn(5, 1)
    assert len({drawn(0, secret) for secret in range(8)}) == 8
    open_draw = who._replace(secret_cohort=False)
    seen = {
        tuple(there(draw_cohort_of(open_draw, keys(3, secret), jnp.int32(1))))
        for secret in range(4)
    }
    assert len(seen) == 1
    everyone = settings(count=6, size=6, secret_cohort=True)
    assert there(draw_cohort_of(everyone, keys(), jnp.int32(0))) == list(range(6))


def test_a_secret_cohort_has_each_client_with_its_probability():
    who = settings(count=40, size=10, sampling="poisson", secret_cohort=True)
    draw = jax.jit(lambda index: draw_cohort_of(who, keys(), index).is_real.sum())
    counts = [int(draw(jnp.int32(n))) for n in range(300)]
    assert np.mean(counts) == pytest.approx(10, abs=0.7)


def test_who_is_there_with_probability_zero_is_never_there(monkeypatch):
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.zeros(shape))
    chance = np.asarray([[0.0, 1e-6, 0.0, 1.0, 0.0, 0.5]])
    who = settings(presence=presence((0.0,) * 6, available=chance))
    assert there(draw_cohort_of(who, keys(), jnp.int32(0))) == [1, 3, 5]


def test_of_the_numbers_that_a_client_may_draw_its_probabilitys_share_lets_it_in(monkeypatch):
    """Numbers 0, 1/8, ... 7/8 at a probability of 3/8: three of the eight, not the one at the bound."""
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.arange(8) / 8)
    assert there(draw_cohort(keys().public, 8, 3, "poisson", 8)) == [0, 1, 2]


@pytest.mark.parametrize("limit", [0, 1, 5, 2**31, 2**32 - 1])
def test_as_many_words_as_the_limit_says_let_an_example_in(monkeypatch, limit):
    """Never one more: the accountant was told limit / 2^32."""
    words = np.asarray([0, 1, 4, 5, 6, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1], np.uint32)
    monkeypatch.setattr(jax.random, "bits", lambda key, shape, dtype: jnp.asarray(words))
    members = jnp.arange(9)
    batch = draw_batch(keys().secret, members, jnp.int32(9), jnp.uint32(limit), 9)
    assert np.asarray(batch.rows)[np.asarray(batch.is_real)].tolist() == [
        place for place, word in enumerate(words.tolist()) if word < limit
    ]


def examples(count=12, width=5):
    ids = np.arange(count * width).reshape(count, width)
    inputs = {"ids": ids, "flag": np.arange(count)}
    return client_data(inputs, np.arange(count) % 2, np.full(count, width), [np.arange(count)])


@pytest.mark.parametrize(("bands", "steps"), [(3, 2), (2, 3)])
def test_bands_take_turns_over_all_steps_of_the_run(bands, steps):
    data = examples()
    found = []
    for round_index in range(2):
        batch = draw_local_batches(
            rng.secret_root(0), jnp.int32(round_index), 0, data, 0, ALL, steps, 12, bands=bands
        )
        for step in range(steps):
            found.append(np.asarray(batch.rows)[step][np.asarray(batch.is_real)[step]])
    assert [set(rows % bands) for rows in found] == [{n % bands} for n in range(2 * steps)]
    assert all(len(rows) == 12 // bands for rows in found)


@pytest.mark.parametrize("secret", [False, True])
def test_a_cohort_has_its_capacity_of_slots_and_no_more(secret):
    who = settings(count=1000, size=25, sampling="poisson", secret_cohort=secret)
    assert draw_cohort_of(who, keys(), jnp.int32(0)).clients.shape == (45,)


def test_a_text_without_tokens_counts_as_one_and_no_other_changes():
    data = client_data({"x": np.zeros(3)}, np.zeros(3), np.asarray([0, 1, 4]), [np.arange(3)])
    assert data.lengths.tolist() == [1, 1, 4]


@pytest.mark.parametrize("lowest", [False, True])
def test_after_its_own_steps_a_client_draws_nothing_whatever_its_words_are(monkeypatch, lowest):
    if lowest:
        words = lambda key, shape, dtype: jnp.zeros(shape, dtype)  # noqa: E731
        monkeypatch.setattr(jax.random, "bits", words)
    batch = draw_local_batches(
        rng.secret_root(0), jnp.int32(0), 0, examples(), 0, ALL, 4, 12, own_steps=jnp.int32(2)
    )
    assert np.asarray(batch.is_real).sum(1).tolist() == [12, 12, 0, 0]


def test_a_step_sees_its_rows_cut_to_the_width():
    data, rows = examples(), jnp.asarray([3, 7])
    whole, cut = take(data, rows), take(data, rows, 2)
    np.testing.assert_array_equal(whole.inputs["ids"], np.asarray(data.inputs["ids"])[[3, 7]])
    np.testing.assert_array_equal(cut.inputs["ids"], np.asarray(data.inputs["ids"])[[3, 7], :2])
    np.testing.assert_array_equal(cut.inputs["flag"], [3, 7])
    np.testing.assert_array_equal(cut.labels, [1, 1])
    np.testing.assert_array_equal(cut.rows, [3, 7])
    assert set(whole.inputs) == {"ids", "flag"}
    named: ClientData = data._replace(names=jnp.arange(100, 112))
    np.testing.assert_array_equal(take(named, rows).rows, [103, 107])


def test_a_kept_prefix_gives_each_example_its_own_states_and_zero_behind_them():
    counts = np.asarray([2, 3, 1] + [0] * 9)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    hidden = np.arange(1.0, 7.0)[:, None] * np.ones(2)
    kept = Prefix(*map(jnp.asarray, (hidden, starts, counts, np.arange(3))))
    found = take(examples()._replace(prefix=kept), jnp.asarray([1, 2, 0]))
    np.testing.assert_array_equal(found.inputs["hidden"][..., 0], [[3, 4, 5], [6, 0, 0], [1, 2, 0]])
    cut = take(examples()._replace(prefix=kept), jnp.asarray([1]), 2)
    np.testing.assert_array_equal(cut.inputs["hidden"][..., 1], [[3, 4]])
