"""Compiled rounds as one call, wherever the clients' examples lie: on the devices, or dealt from the host."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ffalora_jax import rng
from ffalora_jax.chunking import GIB, check_fits, is_out_of_memory
from ffalora_jax.cohort import Cohort, draw_cohort_of
from ffalora_jax.deal import Dealer, Hand
from ffalora_jax.memory import free_bytes
from ffalora_jax.mesh import replicated
from ffalora_jax.prepare import Prepared
from ffalora_jax.rng import Keys
from ffalora_jax.round import RoundInfo, RoundState
from ffalora_jax.types import Tree


class Engine:
    """``engine(keys, state, count) -> (state, infos)``: up to ``calls`` rounds, nothing compiled again.

    Compiled ahead of time: an executable cannot be traced again, whatever later calls hold. Personal
    leaves of a state that comes or goes hold all clients: on the devices, or on the host (NumPy) where the
    examples lie there too.
    """

    def __init__(self, run: Prepared, say: Callable[[str], None] = lambda text: None):
        self.run, self.calls, self._say = run, run.settings.rounds_per_call, say
        self._tried = False
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
        self._like = replicated(run.mesh, _keys(0, 0)), state, run.frozen, *more
        self.compiled_bytes = self._compile()

    def _compile(self) -> int:
        """Compiles the rounds, with fewer clients at once as long as XLA says that they do not fit."""
        free = free_bytes()
        while True:
            self._call = self.run.rounds().lower(*self._like).compile()
            sizes = self._call.memory_analysis()
            if sizes is None:
                return 0
            needed = sizes.temp_size_in_bytes + sizes.output_size_in_bytes
            if needed <= free:
                return needed
            if self.run.settings.chunk == 1:
                check_fits(needed, free)
            self._halve(f"{needed / GIB:.1f} GiB needed, {free / GIB:.1f} free")

    def _halve(self, why: str) -> None:
        chunk = self.run.settings.chunk // 2
        reason = f"{chunk} at a time, after twice as many did not fit ({why})"
        settings = self.run.settings._replace(chunk=chunk)
        self.run = self.run._replace(settings=settings, chunk_reason=reason)
        self._say(f"clients computed {reason}")

    def _computed(self, *arguments) -> tuple[RoundState, RoundInfo]:
        """Calls the program; where a device's memory does not suffice, one with half the clients at once.

        The numbers are the same: no key depends on the chunk. Only the first call is waited for.
        """
        while not self._tried:
            try:
                found = jax.block_until_ready(self._call(*arguments))
            except jax.errors.JaxRuntimeError as error:
                if not is_out_of_memory(error) or self.run.settings.chunk == 1:
                    raise
                self._halve("the device ran out of memory")
                self.compiled_bytes = self._compile()
                continue
            self._tried = True
            return found
        return self._call(*arguments)

    def __call__(self, keys: Keys, state: RoundState, count: int) -> tuple[RoundState, RoundInfo]:
        run, keys = self.run, replicated(self.run.mesh, keys)
        if self._dealer is None:
            return self._computed(keys, state, run.frozen, run.data, run.numbers, jnp.int32(count))
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
        after, info = self._computed(keys, given, run.frozen, *more)
        # Moved while the devices compute, where others follow; else the same examples stay there.
        self._ready = (
            (index + count, self._hand(keys, index + count))
            if self.run.settings.changes
            else (0, hand)
        )
        dealer.collect(hand.cohort, after.personal, self._personal)
        return dataclasses.replace(after, personal=self._personal), info

    def _hand(self, keys: Keys, index: int) -> Hand:
        assert self._dealer is not None
        if self._ready is not None and (self._ready[0] == index or not self.run.settings.changes):
            return self._ready[1]
        return self._dealer.deal(self._cohort(keys, index))

    def _cohort(self, keys: Keys, index: int) -> Cohort:
        return jax.tree.map(np.asarray, self._draw(keys, jnp.int32(index)))


def _keys(public: int, secret: int) -> Keys:
    """Returns keys of which only the shape matters."""
    return Keys(rng.public_root(public), rng.secret_root(secret))
