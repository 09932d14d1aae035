"""Bayesian search: optuna's tree-structured Parzen estimator proposes the next few trials from the scores."""

from ffalora_jax import rng
from ffalora_jax.config_search import SearchConfig, Space
from ffalora_jax.search import Trial, Wave, Waves
from ffalora_jax.search._optuna import FAILED_SCORE, need_optuna, suggested

AT_ONCE = 4
"""Trials of a wave: proposed before any of them is scored."""


def build(search: SearchConfig, space: Space, rounds: int, seed: int, secret: int) -> Waves:
    """Yields waves of a few trials until there are ``trials``.

    Raises:
        InputError: optuna is not installed.
    """
    need_optuna()
    return _waves(search, space, rounds, seed)


def _waves(search: SearchConfig, space: Space, rounds: int, seed: int) -> Waves:
    import optuna

    first = int(rng.numpy_rng(seed, rng.Purpose.SEARCH).integers(2**31))
    sampler = optuna.samplers.TPESampler(seed=first, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    made = 0
    while made < search.trials:
        asked = [study.ask() for _ in range(min(AT_ONCE, search.trials - made))]
        wave = [Trial(made + n, suggested(one, space)) for n, one in enumerate(asked)]
        scores = yield Wave(wave, rounds)
        for trial, score in zip(asked, scores, strict=True):
            study.tell(trial, max(score, FAILED_SCORE))
        made += len(wave)
