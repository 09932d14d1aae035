"""When a factor is trained and when it is frozen, by a line of text: the share to freeze as a schedule.

Turns LoRA with both factors trained into one of several phases; what a round freezes is out of its clipped
vector and is not sent in it, so clipping, noise and bytes follow. The number of noised sums is the same.
"""

import jax.numpy as jnp

from ffalora_jax import registry
from ffalora_jax.config import Experiment
from ffalora_jax.detours import thawed_lora
from ffalora_jax.errors import InputError
from ffalora_jax.methods import Method

FORMS = "none, ffa_from ROUND, alternate ROUNDS, thaw SHARE rank, thaw SHARE layers"
BOTH = frozenset({"lora_a", "lora_b"})


def method_of(experiment: Experiment) -> Method:
    """Returns the experiment's method, with its schedule of what is frozen.

    Raises:
        InputError: no such method; a schedule that it cannot have.
    """
    settings = experiment.method
    method = registry.lookup("methods", settings.name)()
    return frozen_by(method, settings.freeze, experiment.rounds, settings.name)


def frozen_by(method: Method, text: str, rounds: int, name: str) -> Method:
    """Returns the method with a schedule of what is frozen.

    ``ffa_from N``: A and B are trained, and from round N on (0-based) B alone; A stays as it then is, the
    same at all clients, so from there on the average is exact. ``alternate N``: B for N rounds, then A for N.
    ``thaw F rank``, ``thaw F layers``: B is trained, and of A a share F of its columns, or A in the upper F
    of the layers; 0 would be ``ffa_lora`` and 1 ``fedavg_lora``.

    Args:
        method: as it is without one.
        text: one of ``FORMS``.
        rounds: of the run.
        name: of the method, for errors.

    Raises:
        InputError: another form; a method that does not train and average both factors; a round that never
            comes.
    """
    if text == "none":
        return method
    words = text.split()
    if words[0:1] == ["thaw"]:
        return _thawed(method, text, words[1:], name)
    if len(words) != 2 or words[0] not in ("ffa_from", "alternate") or not words[1].isdigit():
        raise InputError(f"Expected method.freeze to be one of: {FORMS}; got {text!r}.")
    if not (_has_default_rules(method) and method.trained == BOTH):
        raise InputError(
            f"method.freeze = {text!r} needs a method that trains and averages A and B in every round, and "
            f"{name!r} does not: set --method.name fedavg_lora."
        )
    kind, count = words[0], int(words[1])
    if kind == "alternate":
        if not 1 <= count < rounds:
            raise InputError(
                f"Expected 1 <= N < {rounds} rounds in method.freeze = 'alternate N', got {count}: A would "
                "never be trained."
            )
        return method._replace(
            phases=(frozenset({"lora_b"}), frozenset({"lora_a"})),
            phase_of=lambda index: index // count % 2,
            exact=True,
            sentence=f"B and A trained in turn, {count} rounds each",
        )
    if not count < rounds:
        raise InputError(
            f"Expected N < {rounds} rounds in method.freeze = 'ffa_from N', got {count}: nothing would be "
            "frozen."
        )
    return method._replace(
        phases=(BOTH, frozenset({"lora_b"})),
        phase_of=lambda index: jnp.where(index >= count, 1, 0),
        sentence=f"A and B trained, from round {count} on B alone",
    )


def _has_default_rules(method: Method) -> bool:
    """Whether all leaves are trained, sent and averaged alike."""
    bare = method._replace(drawn=(), trained=frozenset(), exact=False, sentence="")
    return bare == Method(drawn=(), trained=frozenset())


def _thawed(method: Method, text: str, words: list[str], name: str) -> Method:
    try:
        share, of = float(words[0]), words[1]
        if not 0 < share < 1 or of not in ("rank", "layers") or len(words) != 2:
            raise ValueError
    except (ValueError, IndexError):
        raise InputError(
            f"Expected method.freeze = 'thaw F rank' or 'thaw F layers' with 0 < F < 1, got {text!r}: "
            "F = 0 is ffa_lora, F = 1 is fedavg_lora."
        ) from None
    if not (_has_default_rules(method) and method.trained == {"lora_b"}):
        raise InputError(
            f"method.freeze = {text!r} thaws a part of a frozen A, and {name!r} has none that it could be "
            "averaged with: set --method.name ffa_lora."
        )
    what = "columns" if of == "rank" else "layers, the upper ones"
    return method._replace(
        trained=frozenset({"lora_b", "thawed_a"}),
        detour=thawed_lora(share, of),
        exact=False,
        sentence=f"B trained, and A in {share:.0%} of its {what}",
    )
