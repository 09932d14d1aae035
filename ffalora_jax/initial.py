"""What a run begins with: every leaf drawn, at zero or given, and where it lives.

Comes after ``lora`` and ``methods``, which say what leaves there are, and before ``prepare``.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ffalora_jax import adapters as leaves
from ffalora_jax import controls, ensemble, lora, rng
from ffalora_jax.aggregation import Late, Sums
from ffalora_jax.client import Frozen, Memory
from ffalora_jax.config import Experiment
from ffalora_jax.detours import LORA_FROM_START, split_a
from ffalora_jax.errors import InputError
from ffalora_jax.lora import LoraModel
from ffalora_jax.lora_init import LoraInit
from ffalora_jax.mechanisms import Mechanism
from ffalora_jax.methods import Method
from ffalora_jax.round import RoundState
from ffalora_jax.server import Server
from ffalora_jax.types import HEAD_LEAVES, Adapters


def initial_state(
    model: LoraModel,
    method: Method,
    init: LoraInit,
    experiment: Experiment,
    num_clients: int,
    begin: Adapters | None = None,
) -> tuple[Frozen, RoundState]:
    """Returns ``(Frozen, RoundState)`` before the first round, from the public seed or from ``begin``.

    Trained leaves are split three ways: sent ones live once, at the server; personal ones once a client;
    the factor that no phase trains is frozen beside the backbone.
    """
    root = rng.public_root(experiment.seed)
    if not (method.trained or model.head):
        raise InputError(
            f"method.name {experiment.method.name!r} trains the head alone, and here none is trained: set "
            "--model.head trained, or take another method."
        )
    everything = ensemble.stacked(
        [
            _everything(model, method, init, key, begin or {})
            for key in ensemble.roots(root, model.members)
        ]
    )
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


def _everything(
    model: LoraModel, method: Method, init: LoraInit, root: Array, begin: Adapters
) -> Adapters:
    """Returns all leaves of one member."""
    zeros = {name: dict(model.shapes[name]) for name in model.adapted}
    everything = jax.tree.map(jnp.zeros, zeros, is_leaf=lambda x: isinstance(x, tuple))
    drawn = _factors(model, method, init, root)
    special = {} if method.begin is None else _begin(model, method, root)
    everything = leaves.merge(everything, *drawn, special, model.head, begin)
    return {
        layer: split_a(found, model.shapes.get(layer, {})) for layer, found in everything.items()
    }


def _factors(model: LoraModel, method: Method, init: LoraInit, root: Array) -> list[Adapters]:
    """Returns the random factors; where training goes on from a part of W, both, and where they began."""
    if model.detour is not LORA_FROM_START:
        return [lora.init_factors(model, init, root, factor) for factor in method.drawn]
    both = lora.factors_of_weights(model, init)
    began = {
        name: {"start_a": found["lora_a"], "start_b": found["lora_b"]}
        for name, found in both.items()
    }
    return [both, began]


def _begin(model: LoraModel, method: Method, root: Array) -> Adapters:
    """Returns the leaves of which the method says itself how they start."""
    assert method.begin is not None
    if "block" in model.backbone.get("layers", {}):
        raise InputError(
            "This method looks at each layer's weights, and model.scan_layers stacks them: set it to false."
        )
    return {
        layer: method.begin(lora.kernel_of(model.backbone, layer), model.shapes[layer], root, index)
        for index, layer in enumerate(sorted(model.adapted))
    }


def redraw(model: LoraModel, method: Method, init: LoraInit) -> Callable[[Array, Array], Adapters]:
    """Returns (public root key, round index) -> the factors that are drawn anew before that round.

    Raises:
        InputError: a method that redraws, with an initialiser that would give the same again.
    """
    if method.redrawn and init.draw is None:
        raise InputError(
            "This method draws A anew in every round, and the initialiser takes it from the weights, always "
            "the same: set --method.init to kaiming, gaussian, orthogonal or orthonormal."
        )

    def fresh(root, round_index):
        if not method.redrawn:
            return {}
        return ensemble.stacked(
            [
                lora.init_factors(model, init, key, "lora_a", round_index)
                for key in ensemble.roots(root, model.members)
            ]
        )

    return fresh


def nobody_late(server: Server, adapters: Adapters, num_clients: int) -> Late:
    """Returns that no upload is under way."""
    nothing = jax.tree.map(jnp.zeros_like, server.nothing(server.active(adapters, 0)))
    return Late(Sums(nothing, jnp.float32(0)), jnp.zeros(num_clients, bool))


def memories(
    experiment: Experiment,
    method: Method,
    mechanism: Mechanism,
    state: RoundState,
    num_clients: int,
) -> dict[str, Any]:
    """Returns what the server and the clients keep beside leaves, before the first round."""
    common, own, noise = None, None, None
    if experiment.optimizer.control_variates:
        common = controls.at_zero(state.adapters)
        own = leaves.stack(common, num_clients)
    if mechanism.correlated is not None:
        mine = jax.tree.map(lambda leaf: leaf[0], state.personal)
        everything = leaves.merge(state.adapters, mine)
        trained = leaves.select(everything, method.trained | set(HEAD_LEAVES))
        begun = mechanism.correlated.begin(trained)
        noise = leaves.stack(begun, num_clients)
    return {"control": common, "memory": Memory(own, noise)}
