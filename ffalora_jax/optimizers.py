"""Optimisers by their names in optax, for clients and the server."""

import jax
import jax.numpy as jnp
import optax

from ffalora_jax.errors import InputError, nearest


def make_optimizer(
    name: str, learning_rate: float, options: dict[str, float], whose: str = "local"
) -> optax.GradientTransformation:
    """Returns the optax optimiser of that name.

    Raises:
        InputError: no such optimiser, arguments it does not take, one that needs more than gradients.
    """
    known = [entry for entry in dir(optax) if entry.islower() and callable(getattr(optax, entry))]
    factory = getattr(optax, name, None) if name in known else None
    if factory is None:
        raise InputError(
            f"No optimiser {name!r} in optax: use sgd, adam, adamw, ...{nearest(name, known)}"
        )
    try:
        optimizer = factory(learning_rate=learning_rate, **options)
        sample = {"layer": {"leaf": jnp.zeros((2, 2))}}
        jax.eval_shape(lambda x: optimizer.update(x, optimizer.init(x), x), sample)
    except Exception as error:
        raise InputError(
            f"Cannot use optax.{name}(learning_rate={learning_rate}, **{options}) as a {whose} "
            f"optimiser ({str(error).splitlines()[0]}): it must take a learning rate and update from "
            "gradients alone, like sgd or adam."
        ) from None
    return optimizer
