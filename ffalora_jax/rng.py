"""The only place that derives random keys: by purpose and place, with ``fold_in`` alone.

In this JAX ``split(key, n)[i]`` equals ``fold_in(key, i)``, so mixing the two draws the same noise
twice without any error; hence nothing here or elsewhere splits. Public randomness (the run's ``seed``:
splits, A, heads, cohorts) and secret randomness (``noise_seed``: noise and Poisson draws) start from
roots in different domains and use different purposes, so they never meet, equal seeds included.
"""

import enum
import secrets
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Purpose(enum.IntEnum):
    """What a draw is for. Numbers are never changed: they are part of every published result."""

    PARTITION = 1
    SPLIT = 2
    SUBSET = 3
    SYNTHETIC = 4
    LORA_INIT = 5  # indices: layer; of A
    HEAD = 6
    BACKBONE = 7
    COHORT = 8  # indices: round
    VALIDATION = 9  # indices: client
    POOLER = 10
    HELD_OUT = 11
    LORA_INIT_B = 12  # indices: layer
    LORA_REDRAW = 13  # indices: round, layer; of A before a round
    SHARED_PAIR = 14  # indices: factor
    FRAME = 15  # indices: layer, factor
    SITES = 16  # indices: what is drawn
    PRESENCE = 17  # indices: stretch of rounds
    ENSEMBLE = 18  # indices: member, from the second on
    SEARCH = 19
    BATCH = 20  # indices: round, client, step
    NOISE = 21  # indices: round, client, step, leaf
    DROPOUT = 22  # indices: round, client, step, example, layer
    SERVER_NOISE = 23  # indices: round, leaf
    SECRET_COHORT = 24  # indices: round
    COUNT_NOISE = 26  # indices: round, client, step
    SERVER_COUNT_NOISE = 27  # indices: round
    MASK = 25  # indices: round, slot, leaf
    COMPRESSION = 28  # indices: round, client, leaf
    CANARY = 30  # indices: canary, leaf
    CANARY_COIN = 31
    TRIAL_NOISE = 32  # indices: trial, repetition; of a search, the noise seed of one of its runs
    NUM_TRIALS = 33
    SECRET_SEARCH = 34


class Keys(NamedTuple):
    """Roots of the two kinds of randomness."""

    public: jax.Array
    secret: jax.Array


_PUBLIC_DOMAIN = 0x5EED0001
_SECRET_DOMAIN = 0x5EED0002


def public_root(seed: int) -> jax.Array:
    """Returns the root key of everything that anyone may recompute."""
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), _PUBLIC_DOMAIN)


def secret_root(noise_seed: int) -> jax.Array:
    """Returns the root key of noise and Poisson draws, from all 64 bits of ``noise_seed``."""
    words = np.array([noise_seed >> 32, noise_seed & 0xFFFFFFFF], np.uint32)
    return jax.random.fold_in(
        jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32"), _SECRET_DOMAIN
    )


def noise_seed_of(secret: int, *indices: int) -> int:
    """Returns the noise seed of one of many runs that have a secret in common: 64 bits, each other ones."""
    key = stream(secret_root(secret), Purpose.TRIAL_NOISE, *indices)
    high, low = (int(word) for word in jax.random.bits(key, (2,), "uint32"))
    return high << 32 | low


def fresh_noise_seed() -> int:
    """Returns 64 bits of the operating system's entropy."""
    return secrets.randbits(64)


def stream(key: jax.Array, purpose: Purpose, *indices) -> jax.Array:
    """Returns the key of one draw, from what it is for and where it happens.

    A purpose always takes the same number of indices, and a key that was drawn from is never folded
    further; then two different places can share a key only by a collision of the generator.
    """
    path = jnp.stack([jnp.asarray(index).astype(jnp.uint32) for index in (int(purpose), *indices)])
    # A scan in place of a loop: the same keys, and the generator stands once in the program.
    return jax.lax.scan(_folded, key, path)[0]


def _folded(inner: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
    """One function for all calls, so that outside a program it is compiled once."""
    return jax.random.fold_in(inner, index), None


def moved(key: jax.Array, put: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Returns the same key with its words where ``put`` takes them, a key itself not leaving a process."""
    return jax.random.wrap_key_data(put(jax.random.key_data(key)), impl=jax.random.key_impl(key))


def leaf(key: jax.Array, index: int | jax.Array) -> jax.Array:
    """Returns the key of one leaf's noise or one layer's dropout: the last index of their purposes."""
    return jax.random.fold_in(key, index)


def numpy_rng(seed: int, purpose: Purpose, *indices: int) -> np.random.Generator:
    """Returns a host generator for draws by a public seed (partitions, splits), or by a secret one."""
    return np.random.default_rng([seed, _PUBLIC_DOMAIN, int(purpose), *indices])
