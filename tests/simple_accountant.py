"""An accountant whose sums can be followed, in place of the real one, which takes seconds."""

import pytest

from ffalora_jax import accounting


@pytest.fixture
def simple(monkeypatch):
    """Epsilon: draws times their probability over the noise; the noise that a budget needs follows."""

    def epsilon_of(draw, noise_multiplier, sums, delta):
        count = sums if isinstance(sums, int) else sum(n for _, n in sums)
        return draw.probability * count / noise_multiplier

    def noise_for(draw, budget, sums, delta):
        return epsilon_of(draw, 1.0, sums, delta) / budget

    def trajectory(draw, noise_multiplier, after, delta):
        return [epsilon_of(draw, noise_multiplier, sums, delta) for sums in after]

    for made in (epsilon_of, noise_for, trajectory):
        monkeypatch.setattr(accounting, made.__name__, made)
