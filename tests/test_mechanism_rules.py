"""What a schedule and a plan count, rule by rule, on numbers that one can follow."""

import pytest

from ffalora_jax.mechanisms import Schedule


@pytest.mark.parametrize(
    ("noise", "bands", "sums"),
    [
        ((1.0,), 1, ((1.0, 8),)),
        ((2.0, 2.0), 1, ((2.0, 8),)),
        ((2.0, 3.0), 1, ((2.0, 2), (3.0, 2), (3.0, 2), (3.0, 2))),
        ((2.0, 3.0, 4.0, 5.0, 6.0), 1, ((2.0, 2), (3.0, 2), (4.0, 2), (5.0, 2))),
        ((2.0,), 2, ((2.0, 4),)),
        ((2.0,), 3, ((2.0, 3),)),  # eight steps in turns of three: of one group, three
    ],
)
def test_four_rounds_of_two_sums_are_paid_for_as_these_sums(noise, bands, sums):
    assert Schedule(9, 2, 16, noise, bands=bands).sums(4, 2) == sums
