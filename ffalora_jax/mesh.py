"""Devices: how clients are dealt over them, and the one place that maps over them.

Comes before ``round``, which is written for whatever part of the cohort one device has. The mesh has two
axes: ``clients`` (a device's share of the cohort's slots) and ``model`` (shards of the frozen backbone).
"""

import contextlib
import math
import os
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from ffalora_jax import rng
from ffalora_jax.config import mesh_axes
from ffalora_jax.errors import InputError
from ffalora_jax.types import Tree

CLIENTS, MODEL = "clients", "model"

BACKBONE = (
    (
        r".*\.(query|key|value|up|[qkv]_proj|gate_proj|up_proj)(\.base)?\.kernel|head\.kernel",
        (None, MODEL),
    ),
    (r".*\.(output|down|o_proj|down_proj)(\.base)?\.kernel", (MODEL, None)),
    (r"(words|embed)\.embedding", (MODEL, None)),
)
"""Which axis of a backbone leaf is sharded over ``model``, by its dotted path; the others are replicated.
An adapted layer has its frozen kernel under ``base``."""


def make_cpu_devices(setting: str, processes: int = 1) -> None:
    """Lets a CPU count as so many devices as a setting names; before JAX is used for the first time.

    A device that waits for the others holds a thread of the pool, which is as large as there are cores:
    so it gets one more for every further device.
    """
    wanted = math.prod(mesh_axes(setting).values()) // processes
    if wanted > 1 and "device_count" not in os.environ.get("XLA_FLAGS", ""):
        os.environ.setdefault("NPROC", str(len(os.sched_getaffinity(0)) + wanted - 1))
        with contextlib.suppress(RuntimeError):  # JAX is in use already
            jax.config.update("jax_num_cpu_devices", wanted)


def make_mesh(setting: str, slots: int) -> Mesh | None:
    """Returns the mesh that a setting names; None for a single device, which needs none.

    Args:
        setting: ``auto`` (all devices along ``clients``, no more than there are slots) or
            ``clients=4,model=2`` (one of the two may be left out).
        slots: clients in a round.

    Raises:
        InputError: more devices than there are.
    """
    devices = jax.devices()
    if setting == "auto":
        count = min(len(devices), slots) if jax.process_count() == 1 else len(devices)
        sizes = {CLIENTS: count, MODEL: 1}
    else:
        sizes = {CLIENTS: 1, MODEL: 1} | mesh_axes(setting)
    wanted = sizes[CLIENTS] * sizes[MODEL]
    if wanted > len(devices):
        raise InputError(
            f"mesh = {setting!r} needs {wanted} devices, there are {len(devices)}: use fewer, or auto. On a "
            "CPU the command makes as many as asked for; in Python set jax_num_cpu_devices first."
        )
    if wanted == 1:
        return None
    shape = sizes[CLIENTS], sizes[MODEL]
    return jax.make_mesh(
        shape, (CLIENTS, MODEL), axis_types=(AxisType.Auto,) * 2, devices=devices[:wanted]
    )


def num_shards(mesh: Mesh | None) -> int:
    """Returns over how many devices the clients are dealt."""
    return 1 if mesh is None else mesh.shape[CLIENTS]


def my_shards(mesh: Mesh | None) -> list[int]:
    """Returns which shares of the clients this process computes, in order."""
    if mesh is None:
        return [0]
    me = jax.process_index()
    return [k for k, row in enumerate(mesh.devices) if any(d.process_index == me for d in row)]


def _added(tree: Tree) -> Tree:
    """Adds up over the devices: all floats as one vector; integers, modulo 2^32, as another."""
    found, structure = jax.tree.flatten(tree)
    for whole in (False, True):
        places = [i for i, leaf in enumerate(found) if (leaf.dtype == jnp.uint32) == whole]
        if places:
            flat, unravel = ravel_pytree([found[i] for i in places])
            for place, leaf in zip(places, unravel(jax.lax.psum(flat, CLIENTS)), strict=True):
                found[place] = leaf
    return jax.tree.unflatten(structure, found)


def over_devices(body: Callable, mesh: Mesh | None, shared: Tree, apart: Tree) -> tuple:
    """Runs ``body(shared, apart) -> (kept, told, sums)`` for every device's share of the clients.

    Guarantee: each device differentiates alone: no gradient, norm or clipped example of one device is ever
    added to another's before it was clipped and noised. There is one reduction, of ``sums`` and ``told``
    together, after everything else.

    Args:
        body: pure; it sees the leaves of ``apart`` with this device's clients only.
        mesh: None for one device.
        shared: the same for all devices.
        apart: leaves (client, ...), as many as the mesh divides.

    Returns:
        ``kept`` (client, ...), still dealt over the devices; ``told`` (client, ...) float32, on all of
        them; ``sums``, added up over the devices, on all of them.
    """
    if mesh is None:
        return body(shared, apart)
    count = num_shards(mesh)

    def here(shared, apart):
        kept, told, sums = body(shared, apart)
        if not jax.tree.leaves((told, sums)):
            return kept, told, sums
        whole = jax.tree.map(lambda leaf: _placed(leaf, count), told)
        told, sums = _added((whole, sums))
        return kept, told, sums

    # check_vma=True would add every gradient of something replicated over the devices *before* it is
    # clipped: the noise would be too small for the true sensitivity, without any error. Without it a
    # gradient is that of this device's own computation, whatever is differentiated.
    return jax.shard_map(
        here,
        mesh=mesh,
        in_specs=(P(), P(CLIENTS)),
        out_specs=(P(CLIENTS), P(), P()),
        axis_names={CLIENTS},
        check_vma=False,
    )(shared, apart)


def _placed(mine: Array, count: int) -> Array:
    """Returns a device's values at their places among all clients, zero elsewhere."""
    size = mine.shape[0]
    whole = jnp.zeros((count * size, *mine.shape[1:]), mine.dtype)
    return jax.lax.dynamic_update_slice_in_dim(
        whole, mine, jax.lax.axis_index(CLIENTS) * size, axis=0
    )


def replicated_on(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what is whole on every device."""
    return NamedSharding(mesh, P())


def dealt_on(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of leaves (client, ...) of which every device has its own clients'."""
    return NamedSharding(mesh, P(CLIENTS))


def replicated(mesh: Mesh | None, tree: Tree) -> Tree:
    """Puts a tree on all devices, of all processes: they give the same."""
    if mesh is None:
        return tree

    def put(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return rng.moved(leaf, put)
        return jax.device_put(leaf, replicated_on(mesh))

    return jax.tree.map(put, tree)


def kept_whole(mesh: Mesh | None, tree: Tree) -> Tree:
    """Keeps a small tree on all devices inside a compiled function: the compiler would deal it out."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, replicated_on(mesh))


def kept_dealt(mesh: Mesh | None, tree: Tree) -> Tree:
    """Keeps leaves (client, ...) dealt over the devices inside a compiled function."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, dealt_on(mesh))


def backbone_on(mesh: Mesh | None, backbone: Tree) -> Tree:
    """Puts a backbone on the devices: whole on each, or its large matrices sharded over ``model``."""
    if mesh is None:
        return backbone

    def place(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        spec = backbone_spec(name, leaf.shape, mesh.shape[MODEL])
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(place, backbone)


def backbone_spec(name: str, shape: tuple[int, ...], shards: int) -> P:
    """Returns how a leaf of the backbone is sharded; what does not divide is whole on each device."""
    axes = next((axes for pattern, axes in BACKBONE if re.fullmatch(pattern, name)), ())
    axes = (None,) * (len(shape) - len(axes)) + axes  # blocks that were stacked have an axis before
    if shards == 1 or MODEL not in axes or shape[axes.index(MODEL)] % shards:
        return P()
    return P(*axes)


def dealt(mesh: Mesh | None, tree: Tree) -> Tree:
    """Puts leaves (client, ...) of the host on the devices that compute these clients.

    Every process gives the leaves of its own clients only.
    """
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(dealt_on(mesh), np.asarray(leaf)), tree
    )


def gathered(leaf: Array) -> np.ndarray:
    """Returns a leaf that is dealt over the devices of all processes, whole, on the host of each."""
    if jax.process_count() > 1:
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)
