"""What is asked of optuna, which an extra installs."""

import importlib.util
from typing import Any

from ffalora_jax.config_search import Range, Space
from ffalora_jax.errors import InputError

FAILED_SCORE = -1e9
"""In place of -inf, which optuna does not learn from."""


def need_optuna() -> None:
    """Makes optuna silent, or refuses.

    Raises:
        InputError: it is not installed.
    """
    if importlib.util.find_spec("optuna") is None:
        raise InputError(
            "This search needs optuna: pip install 'ffalora_jax[search]', or take --search.strategy random."
        )
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)


def suggested(trial: Any, space: Space) -> dict[str, Any]:
    """Returns the settings that optuna proposes for a trial; values are told to it as they are written."""
    return {name: _suggested(trial, name, values) for name, values in space.items()}


def _suggested(trial: Any, name: str, values: Range | list[Any]) -> Any:
    if not isinstance(values, Range):
        words = [str(value) for value in values]
        return values[words.index(trial.suggest_categorical(name, words))]
    if values.whole:
        return trial.suggest_int(name, int(values.low), int(values.high), log=values.log)
    return trial.suggest_float(name, values.low, values.high, log=values.log)
