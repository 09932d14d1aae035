"""What a run begins with: every leaf drawn, at zero or given, and where it lives.

Comes after ``lora`` and ``methods``, which say what leaves there are, and before ``prepare``.
"""

import jax
import jax.numpy as jnp

from ffalora_jax import adapters as leaves
from ffalora_jax import lora, rng
from ffalora_jax.client import Frozen
from ffalora_jax.config import Experiment
from ffalora_jax.errors import InputError
from ffalora_jax.lora import LoraModel
from ffalora_jax.methods import Method
from ffalora_jax.round import RoundState
from ffalora_jax.types import HEAD_LEAVES, Adapters


def initial_state(
    model: LoraModel,
    method: Method,
    draw_factor,
    experiment: Experiment,
    num_clients: int,
    begin: Adapters | None = None,
) -> tuple[Frozen, RoundState]:
    """Returns ``(Frozen, RoundState)`` before the first round, from the public seed or from ``begin``.

    Trained leaves are split three ways: sent ones live once, at the server; personal ones once a client;
    the factor that no phase trains is frozen beside the backbone.
    """
    zeros = {name: dict(model.shapes[name]) for name in model.adapted}
    everything = jax.tree.map(jnp.zeros, zeros, is_leaf=lambda x: isinstance(x, tuple))
    root = rng.public_root(experiment.seed)
    if not (method.trained or model.head):
        raise InputError(
            f"method.name {experiment.method.name!r} trains the head alone, and here none is trained: set "
            "--model.head trained, or take another method."
        )
    drawn = [lora.init_factors(model, draw_factor, root, factor) for factor in method.drawn]
    everything = leaves.merge(everything, *drawn, model.head, begin or {})
    held = method.trained | method.kept | (set(HEAD_LEAVES) if model.head else set())
    stays = experiment.model.head == "personal" or method.shares_nothing
    personal = method.personal | (set(HEAD_LEAVES) if model.head and stays else set())
    frozen = Frozen(model.backbone, leaves.without(everything, held))
    state = RoundState(
        adapters=leaves.select(everything, held - personal),
        personal=leaves.stack(leaves.select(everything, personal), num_clients),
        round_index=jnp.int32(0),
    )
    return frozen, state
