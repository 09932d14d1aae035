"""Runs of one program: what differs between them goes in as numbers, several side by side by ``vmap``.

Two runs are one program if they differ in these alone:

    seed, noise seed            keys; the split, as rows of each client; A
    init, lora_alpha            A; a frozen A is scaled, s x A B = s_0 x (A s / s_0) B
    learning rate, clip norm    factors on those of the first one (``schedules.Rates``)
    epsilon, noise multiplier   the plan's numbers

It is compiled once, for the first of them. Each run's own ``Prepared`` stays as it is: what it promises,
counts and saves is that of the run made alone.
"""

import dataclasses
import json
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from ffalora_jax import rng
from ffalora_jax.chunking import SHARE, TOY_SIZE
from ffalora_jax.client import Frozen
from ffalora_jax.cohort import ClientData
from ffalora_jax.detours import LORA
from ffalora_jax.load import one_if_same
from ffalora_jax.memory import free_bytes
from ffalora_jax.prepare import Prepared
from ffalora_jax.rng import Keys
from ffalora_jax.round import RoundInfo, RoundState
from ffalora_jax.schedules import Rates
from ffalora_jax.types import Tree

RATE_LAST = frozenset(
    {
        "sgd",
        "adam",
        "adamw",
        "adagrad",
        "rmsprop",
        "lion",
        "nadam",
        "nadamw",
        "amsgrad",
        "lamb",
        "yogi",
    }
)
"""Optimisers whose last act is to multiply by the learning rate."""
SLOTS = 64
"""Rows of clients are padded to a multiple of it: splits by other seeds are seldom of the same width."""
MOST = 64
"""Runs side by side at most."""


def kind_of(run: Prepared) -> str:
    """Returns what runs of one program have in common, as a text that is the same for them."""
    experiment = dataclasses.asdict(run.experiment)
    for name in _free(run):
        table, _, setting = name.rpartition(".")
        (experiment[table] if table else experiment).pop(setting)
    static = {
        "experiment": experiment,
        "settings": [_bytes_of(value) for value in run.settings._replace(presence=None)],
        "presence": [_bytes_of(value) for value in run.settings.presence or ()],
        "capacity": run.plan.capacity,
        "blocks": run.blocks,
        "packing": run.packing,
        "widths": run.encoded.widths,
        "classes": run.dataset.num_classes,
        "alone": id(run) if run.settings.by_slot or run.mesh is not None else 0,
        "shapes": str(jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), _numbers(run))),
    }
    return json.dumps(static, sort_keys=True, default=str)


def _free(run: Prepared) -> list[str]:
    """Returns the settings that go in as numbers."""
    mechanism, method = run.mechanism, run.method
    found = ["name", "seed", "noise_seed"]
    of_server = mechanism.private_update or mechanism.private_total
    # Masked integers and control variates are in units of the learning rate, which stand in the program.
    in_units = mechanism.sums_integers or run.experiment.optimizer.control_variates
    if run.experiment.optimizer.name in RATE_LAST and not in_units:
        found.append("optimizer.learning_rate")
    if not (of_server or mechanism.adapt or mechanism.correlated):
        found += ["privacy.clip_norm", "privacy.noise_multiplier", "privacy.epsilon"]
    if not method.redrawn:
        found.append("method.init")
    if _a_is_frozen(run):
        found.append("method.lora_alpha")
    return found


def _a_is_frozen(run: Prepared) -> bool:
    """Whether nothing but the clients' products ever looks at A."""
    frozen = run.frozen.adapters
    return (
        run.model.detour is LORA
        and not (run.method.kept or run.method.redrawn)
        and all("lora_a" in frozen.get(layer, {}) for layer in run.model.adapted)
    )


def _bytes_of(value: Any) -> Any:
    """Returns something that prints as all of an array."""
    return value.tobytes().hex() if isinstance(value, np.ndarray) else str(value)


def _numbers(run: Prepared) -> tuple[RoundState, Frozen, ClientData, Tree]:
    """Returns what goes into the program, rows of clients padded."""
    return run.state, run.frozen, _padded(run.data), run.numbers


def _padded(data: ClientData) -> ClientData:
    """Returns the data with rows of clients padded to a multiple of ``SLOTS``; no draw depends on it."""
    short = -data.members.shape[1] % SLOTS
    return data._replace(members=jnp.pad(jnp.asarray(data.members), ((0, 0), (0, short))))


class Given(NamedTuple):
    """What the program is given of one run."""

    frozen: Frozen
    data: ClientData
    numbers: Tree


def given(run: Prepared, first: Prepared) -> Given:
    """Returns a run's numbers in terms of the first one's program."""
    mine, theirs = run.experiment, first.experiment
    one = np.ones(1, np.float32)
    rates = run.frozen.rates or Rates(one, one, one)
    rate = np.float32(mine.optimizer.learning_rate / theirs.optimizer.learning_rate)
    clip = np.float32(1)
    if np.isfinite(first.mechanism.clip_norm):
        clip = np.float32(mine.privacy.clip_norm / theirs.privacy.clip_norm)
    rates = Rates(*(jnp.asarray(leaf) for leaf in rates))
    rates = rates._replace(
        learning_rate=rates.learning_rate * rate, clip_norm=rates.clip_norm * clip
    )
    frozen = run.frozen._replace(rates=rates, adapters=_rescaled(run, first))
    given = Given(frozen, _padded(run.data), run.numbers)
    if run is first:
        return given
    # What is the same is one array, in memory and for those who ask.
    large = given.frozen.backbone, given.data._replace(members=None, sizes=None)
    shared = first.frozen.backbone, first.data._replace(members=None, sizes=None)
    same = jax.tree.structure(large) == jax.tree.structure(shared)
    backbone, data = jax.tree.map(one_if_same, large, shared) if same else large
    return given._replace(
        frozen=frozen._replace(backbone=backbone),
        data=data._replace(members=given.data.members, sizes=given.data.sizes),
    )


def _rescaled(run: Prepared, first: Prepared) -> Tree:
    """Returns the frozen factors, A so that the first one's scaling gives this run's products."""
    found = {}
    for layer, factors in run.frozen.adapters.items():
        mine, theirs = run.model.adapted.get(layer), first.model.adapted.get(layer)
        ratio = 1.0 if mine is None or theirs is None else mine.scaling / theirs.scaling
        found[layer] = {
            name: leaf * jnp.float32(ratio) if name == "lora_a" and ratio != 1 else leaf
            for name, leaf in factors.items()
        }
    return found


def side_by_side(given: Sequence[Given]) -> list[list[int]]:
    """Returns groups of those (by place) that have backbone and examples in common."""
    groups: dict[tuple, list[int]] = {}
    for index, one in enumerate(given):
        large = one.frozen.backbone, one.data._replace(members=None, sizes=None)
        groups.setdefault(tuple(map(id, jax.tree.leaves(large))), []).append(index)
    return list(groups.values())


class Program:
    """The compiled rounds of one kind of run, for one run or for a number of them side by side."""

    def __init__(self, first: Prepared):
        self.first = first
        self.compiled_bytes = 0
        self._widths: set[int] = set()
        self.call = cache(self._call)

    def is_compiled(self, width: int) -> bool:
        """Whether a program for so many runs side by side is there."""
        return width in self._widths

    def width(self, count: int) -> int:
        """Returns how many runs are computed side by side, of so many that could be.

        On a CPU one, whose activations then stay in cache, but all of a toy model's; on an accelerator as
        many as XLA says fit.
        """
        size = sum(leaf.size for leaf in jax.tree.leaves(self.first.frozen.backbone))
        if jax.default_backend() == "cpu" and size >= TOY_SIZE:
            return 1
        width = min(count, MOST)
        while width > 1 and self._needed(width) > SHARE * free_bytes():
            width //= 2
        return width

    def _needed(self, width: int) -> int:
        sizes = self.call(width).memory_analysis()
        return 0 if sizes is None else sizes.temp_size_in_bytes + sizes.output_size_in_bytes

    def _call(self, width: int):
        """Compiles ahead of time: an executable cannot be traced again."""
        first = self.first
        keys = Keys(rng.public_root(0), rng.secret_root(0))
        one = keys, first.state, *given(first, first), jnp.int32(1)
        rounds = first.rounds()
        if width > 1:
            axes = _axes(first)
            rounds = jax.jit(jax.vmap(rounds, in_axes=axes, out_axes=(axes[1], 0)))
            one = _stacked([one] * width, axes)
        compiled = rounds.lower(*one).compile()
        self._widths.add(width)
        sizes = compiled.memory_analysis()
        if sizes is not None:
            self.compiled_bytes = sizes.temp_size_in_bytes + sizes.output_size_in_bytes
        return compiled

    def batch(self, given: Sequence[Given], states: Sequence[RoundState], keys: Sequence[Keys]):
        """Returns some runs to be computed together."""
        return Batch(self, given, states, keys)


class Batch:
    """Runs in lockstep: all are at the same round."""

    def __init__(
        self,
        program: Program,
        given: Sequence[Given],
        states: Sequence[RoundState],
        keys: Sequence[Keys],
    ):
        width = len(given)
        self._compiled, self._width = program.call(width), width
        each = [(k, s, *g) for k, s, g in zip(keys, states, given, strict=True)]
        self._axes = _axes(program.first) if width > 1 else None
        self._given = each[0] if self._axes is None else _stacked(each, self._axes)

    def rounds(self, count: int) -> list[RoundInfo]:
        """Makes so many rounds; returns what each run tells of them."""
        keys, state, *more = self._given
        state, infos = jax.block_until_ready(self._compiled(keys, state, *more, jnp.int32(count)))
        self._given = keys, state, *more
        if self._axes is None:
            return [infos]
        infos = jax.tree.map(np.asarray, infos)
        return [jax.tree.map(lambda leaf, n=n: leaf[n], infos) for n in range(self._width)]

    def state(self, place: int) -> RoundState:
        """Returns one run's state."""
        state = self._given[1]
        if self._axes is None:
            return state
        own = dataclasses.replace(state, round_index=())
        own = jax.tree.map(lambda leaf: leaf[place], own)
        return dataclasses.replace(own, round_index=state.round_index)


def _axes(run: Prepared) -> tuple:
    """Returns which leaves of a program's arguments have an axis of runs."""
    state = jax.tree.map(lambda leaf: 0, run.state)
    data = jax.tree.map(lambda leaf: None, run.data)._replace(members=0, sizes=0)
    frozen: Any = Frozen(*cast(Any, (None, 0, 0)))
    return 0, dataclasses.replace(state, round_index=None), frozen, data, 0, None


def _stacked(each: Sequence[tuple], axes: tuple) -> tuple:
    """Stacks the leaves that have an axis of runs; of the others the first run's are taken."""
    keys, states, frozen, data, numbers = (
        list(part) for part in zip(*(e[:5] for e in each), strict=True)
    )

    def stack(trees):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    state = dataclasses.replace(stack(states), round_index=states[0].round_index)
    own = [(f.adapters, f.rates) for f in frozen]
    adapters, rates = stack(own)
    members, sizes = stack([(d.members, d.sizes) for d in data])
    return (
        stack(keys),
        state,
        frozen[0]._replace(adapters=adapters, rates=rates),
        data[0]._replace(members=members, sizes=sizes),
        stack(numbers),
        *each[0][5:],
    )
