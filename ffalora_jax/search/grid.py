"""Every combination of the values."""

from ffalora_jax.config_search import Range, SearchConfig, Space
from ffalora_jax.errors import InputError
from ffalora_jax.search import Wave, Waves, every_combination


def build(search: SearchConfig, space: Space, rounds: int, seed: int, secret: int) -> Waves:
    """Yields all of them at once.

    Raises:
        InputError: something is varied over a range.
    """
    ranges = [name for name, values in space.items() if isinstance(values, Range)]
    if ranges:
        raise InputError(
            f"A grid needs values for {ranges[0]}, not a range: list them, or take --search.strategy random."
        )
    return _waves(space, rounds)


def _waves(space: Space, rounds: int) -> Waves:
    yield Wave(every_combination(space), rounds)
