"""The test part is scored whole, or by the same few examples of each site whatever is run on them."""

import numpy as np

from ffalora_jax.held_out import scored_rows
from ffalora_jax.prepare import prepare
from tests.tiny_runs import tiny


def test_all_test_examples_are_scored_unless_fewer_are_asked_for():
    run = prepare(tiny())
    for mine, whole in zip(scored_rows(run), run.owners.test, strict=True):
        np.testing.assert_array_equal(mine, whole)


def test_fewer_are_drawn_from_each_sites_own_the_same_for_every_method():
    some = [
        scored_rows(prepare(tiny(max_test=5, **{"method.name": m})))
        for m in ("ffa_lora", "freeze_b")
    ]
    whole = prepare(tiny()).owners.test
    for one, other, all_of_it in zip(*some, whole, strict=True):
        assert len(one) == min(5, len(all_of_it))
        assert set(one) <= set(all_of_it)
        np.testing.assert_array_equal(one, other)
    other_seed = scored_rows(prepare(tiny(max_test=5, seed=1)))
    assert any(not np.array_equal(a, b) for a, b in zip(some[0], other_seed, strict=True))
