"""Methods compared at equal numbers of trained parameters: which rank gives as many as another method's.

At equal rank plain LoRA trains both factors and FFA-LoRA one; a comparison of both at one rank alone says
as much about the count as about the method.
"""

import bisect

import jax

from ffalora_jax.config import Experiment
from ffalora_jax.errors import InputError
from ffalora_jax.freezing import method_of
from ffalora_jax.initial import initial_state
from ffalora_jax.load import inject
from ffalora_jax.loader import Loader
from ffalora_jax.lora_init import LoraInit
from ffalora_jax.registry import lookup
from ffalora_jax.types import HEAD_LEAVES

MOST_RANK = 4096


def trained_numbers(experiment: Experiment, loader: Loader) -> int:
    """Returns how many numbers a client trains beside the head: those of the leaves that are sent or stay."""
    loaded = loader.model(experiment, loader.dataset(experiment).class_names)
    model, method = inject(experiment, loaded), method_of(experiment)
    init: LoraInit = lookup("inits", experiment.method.init)()
    state = jax.eval_shape(lambda: initial_state(model, method, init, experiment, 1)[1])
    trained = method.trained or frozenset()
    return sum(
        leaf.size
        for table in (state.adapters, state.personal)
        for layer in table.values()
        for name, leaf in layer.items()
        if name in trained and name not in HEAD_LEAVES
    )


def with_matched_rank(experiment: Experiment, reference: Experiment, loader: Loader) -> Experiment:
    """Returns the experiment at the rank whose trained numbers come closest to the reference's.

    Raises:
        InputError: the count does not depend on the rank.
    """
    wanted = trained_numbers(reference, loader)
    counts: dict[int, int] = {}

    def count(rank: int) -> int:
        if rank not in counts:
            counts[rank] = trained_numbers(experiment.replace(**{"method.rank": rank}), loader)
        return counts[rank]

    rank = experiment.method.rank
    if count(rank) == count(rank + 1):
        raise InputError(
            f"search.match = 'parameters' cannot match {experiment.method.name!r}: what it trains does not "
            "depend on method.rank. Leave it out, or match by rank."
        )
    low, high = 1, 1
    while count(high) < wanted and high < MOST_RANK:
        low, high = high, 2 * high
    above = low + bisect.bisect_left(range(low, high + 1), wanted, key=count)
    near = [one for one in (above - 1, above) if one >= 1]
    best = min(near, key=lambda one: (abs(count(one) - wanted), one))
    return experiment.replace(**{"method.rank": best})
