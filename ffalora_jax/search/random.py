"""Independent uniform draws, of a number that is given or drawn itself.

With a number of trials that is drawn by a law and kept secret, giving out the best trial alone costs a small
multiple of one trial, not the sum of all (Liu & Talwar 2019, arXiv:1811.07971; Papernot & Steinke 2022,
arXiv:2110.03620).
"""

from ffalora_jax import rng
from ffalora_jax.config_search import SearchConfig, Space
from ffalora_jax.search import Wave, Waves, sampled


def build(search: SearchConfig, space: Space, rounds: int, seed: int, secret: int) -> Waves:
    """Yields all of them at once; an empty wave where the law gives no trial.

    Guarantee: under a law the settings come from the secret as well. The theorem is about repetitions of one
    mechanism, which draws its settings itself; of settings that anybody can compute the best one's would
    tell which trial it was, and that those before it were worse.
    """
    draw = rng.numpy_rng(seed, rng.Purpose.SEARCH)
    if search.trials_law != "fixed":
        draw = rng.numpy_rng(secret, rng.Purpose.SECRET_SEARCH)
    yield Wave(sampled(space, draw, number_of_trials(search, secret)), rounds)


def number_of_trials(search: SearchConfig, secret: int) -> int:
    """Returns how many trials there are: as given, or drawn with that mean.

    poisson:    K ~ Poisson(trials), which may be 0
    geometric:  K >= 1 with probability (1 - g)^(K - 1) g, g = 1 / trials
    """
    draw = rng.numpy_rng(secret, rng.Purpose.NUM_TRIALS)
    if search.trials_law == "poisson":
        return int(draw.poisson(search.trials))
    if search.trials_law == "geometric":
        return int(draw.geometric(1 / search.trials))
    return search.trials
