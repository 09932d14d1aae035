"""When a factor is trained and when it is frozen, by a line of text: the share to freeze as a schedule.

Turns LoRA with both factors trained into one of several phases; what a round freezes is out of its clipped
vector and is not sent in it, so clipping, noise and bytes follow. The number of noised sums is the same.
"""

import jax.numpy as jnp

from ffalora_jax.errors import InputError
from ffalora_jax.methods import Method

FORMS = "none, ffa_from ROUND, alternate ROUNDS"
BOTH = frozenset({"lora_a", "lora_b"})


def frozen_by(method: Method, text: str, rounds: int, name: str) -> Method:
    """Returns the method with a schedule of what is frozen.

    ``ffa_from N``: A and B are trained, and from round N on (0-based) B alone; A stays as it then is, the
    same at all clients, so from there on the average is exact. ``alternate N``: B for N rounds, then A for N.

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
    if len(words) != 2 or words[0] not in ("ffa_from", "alternate") or not words[1].isdigit():
        raise InputError(f"Expected method.freeze to be one of: {FORMS}; got {text!r}.")
    plain = method._replace(drawn=(), trained=frozenset(), exact=False, sentence="")
    plain = plain == Method(drawn=(), trained=frozenset())
    if not (plain and method.trained == BOTH):
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
