"""Compiled rounds as one call, wherever the clients' examples lie: on the devices, or dealt from the host."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ffalora_jax import rng
from ffalora_jax.cohort import Cohort
from ffalora_jax.deal import Dealer, Hand
from ffalora_jax.mesh import replicated
from ffalora_jax.prepare import Prepared
from ffalora_jax.round import Keys, RoundInfo, RoundState, draw_cohort_of
from ffalora_jax.types import Tree


class Engine:
    """``engine(keys, state, count) -> (state, infos)``: up to ``calls`` rounds, nothing compiled again.

    Compiled ahead of time: an executable cannot be traced again, whatever later calls hold. Personal
    leaves of a state that comes or goes hold all clients: on the devices, or on the host (NumPy) where the
    examples lie there too.
    """

    def __init__(self, run: Prepared):
        self.run, self.calls = run, run.settings.rounds_per_call
        self._dealer: Dealer | None = None
        self._ready: tuple[int, Hand] | None = None
        self._personal: Tree = None
        state, more = run.state, (run.data, run.numbers, jnp.int32(1))
        if run.settings.by_slot:
            self._dealer = Dealer(run.data, run.numbers, run.settings, run.mesh)
            self._draw = jax.jit(partial(draw_cohort_of, run.settings))
            first = self._dealer.deal(self._cohort(_keys(0, 0), 0))
            personal = self._dealer.personal(first.cohort, run.state.personal)
            state = dataclasses.replace(state, personal=personal)
            more = first.data, first.numbers, jnp.int32(1), replicated(run.mesh, first.cohort)
        keys = replicated(run.mesh, _keys(0, 0))
        self._call = run.rounds().lower(keys, state, run.frozen, *more).compile()

    def __call__(self, keys: Keys, state: RoundState, count: int) -> tuple[RoundState, RoundInfo]:
        run, keys = self.run, replicated(self.run.mesh, keys)
        if self._dealer is None:
            return self._call(keys, state, run.frozen, run.data, run.numbers, jnp.int32(count))
        if state.personal is not self._personal:  # later calls write into it
            self._personal = jax.tree.map(np.array, state.personal)
        infos, done, begin = [], 0, int(state.round_index)
        while done < count:
            now = min(count - done, self.calls)
            state, info = self._dealt(keys, state, begin + done, now)
            infos.append(jax.tree.map(lambda leaf, now=now: np.asarray(leaf)[:now], info))
            done += now
        return state, jax.tree.map(lambda *parts: np.concatenate(parts), *infos)

    def _dealt(self, keys: Keys, state: RoundState, index: int, count: int):
        """Runs rounds of one cohort, whose leaves are moved first."""
        run, dealer = self.run, self._dealer
        assert dealer is not None
        hand = self._hand(keys, index)
        given = dataclasses.replace(state, personal=dealer.personal(hand.cohort, self._personal))
        more = hand.data, hand.numbers, jnp.int32(count), replicated(run.mesh, hand.cohort)
        after, info = self._call(keys, given, run.frozen, *more)
        # Moved while the devices compute, where others follow; else the same examples stay there.
        self._ready = (
            (index + count, self._hand(keys, index + count)) if self._changes else (0, hand)
        )
        dealer.collect(hand.cohort, after.personal, self._personal)
        return dataclasses.replace(after, personal=self._personal), info

    def _hand(self, keys: Keys, index: int) -> Hand:
        assert self._dealer is not None
        if self._ready is not None and (self._ready[0] == index or not self._changes):
            return self._ready[1]
        return self._dealer.deal(self._cohort(keys, index))

    def _cohort(self, keys: Keys, index: int) -> Cohort:
        return jax.tree.map(np.asarray, self._draw(keys.public, jnp.int32(index)))

    @property
    def _changes(self) -> bool:
        """Whether another round has other clients."""
        settings = self.run.settings
        return settings.cohort_sampling == "poisson" or settings.cohort_size < settings.num_clients


def _keys(public: int, secret: int) -> Keys:
    """Returns keys of which only the shape matters."""
    return Keys(rng.public_root(public), rng.secret_root(secret))
