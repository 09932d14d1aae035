"""What one example, or one client, can move: through the whole of a client's step and of the server's mean.

Noise is switched off, everything else is the run's own: packed rows, phases, personal leaves, filters.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffalora_jax import adapters as leaves
from ffalora_jax import registry, rng
from ffalora_jax.client import Participant, centred
from ffalora_jax.cohort import Batch, Cohort
from tests.helpers import NOISE_SEED, compiled, go_together, keys, prepared

METHODS, MECHANISMS = registry.available("methods"), registry.available("mechanisms")
OF_CLIENTS = ("dp_fedavg", "dp_fedavg_adaptive")
CLIP = 0.7
FAST = {"ffa_lora", "fedsa_lora", "la_lora", "ravan"}


def pairs(mechanisms, fast):
    """Methods with mechanisms; all but a few are slow, where the mechanism is the first one."""
    return [
        pytest.param(
            method, name, marks=() if name == mechanisms[0] and method in fast else pytest.mark.slow
        )
        for method in METHODS
        for name in mechanisms
        if go_together(method, name)
    ]


@functools.cache
def one_step(method, mechanism, phase, step, head):
    """(leaves' scale, rows, how many) -> (all leaves after a client's round, the count that adapts)."""
    run = prepared(method=method, mechanism=mechanism, head=head, clip_norm=CLIP, num_examples=192)
    update, steps = run.local_update(), run.experiment.local_steps
    active = run.server.active(run.state.adapters, phase)
    held = leaves.without(run.state.adapters, leaves.names(active))
    frozen = run.frozen._replace(adapters=leaves.merge(run.frozen.adapters, held))
    if run.state.clip_factor is not None:
        frozen = frozen._replace(clip_factor=run.state.clip_factor)
    own, memory = jax.tree.map(lambda leaf: leaf[0], (run.state.personal, run.state.memory))
    begin = leaves.merge(active, own)

    @jax.jit
    def after(seed, scale, rows, count):
        base = jax.random.key(seed)
        parts, shape = jax.tree.flatten(begin)
        moved = [
            leaf + scale * jax.random.normal(jax.random.fold_in(base, i), leaf.shape)
            for i, leaf in enumerate(parts)
        ]
        start = jax.tree.unflatten(shape, moved)
        slots = jnp.arange(run.plan.capacity)
        real = (slots < count)[None] & (jnp.arange(steps) == step)[:, None]
        batch = Batch(jnp.broadcast_to(rows[None], real.shape), real)
        zero = jnp.float32(0)
        me = Participant(
            jnp.int32(0), jnp.int32(0), start, jnp.uint32(0), zero, None, None, None, batch
        )
        secret = rng.secret_root(NOISE_SEED)
        index = jnp.int32(phase)
        end, _, facts = update(secret, index, frozen, run.data, me._replace(memory=memory))
        moved = jax.tree.map(jnp.subtract, start, end)
        return moved, centred(facts.clip)

    return run, after


@pytest.mark.parametrize("head", ["trained", pytest.param("personal", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("method", "mechanism"),
    pairs(["dp_sgd", *[m for m in MECHANISMS if m not in ("none", "dp_sgd", *OF_CLIENTS)]], FAST),
)
def test_an_example_more_moves_what_a_client_sends_and_keeps_by_at_most_the_clip_norm(
    method, mechanism, head
):
    """All trained leaves together; and the count that an adaptive norm follows by one half."""
    found = registry.lookup("methods", method)()
    if head == "personal" and not go_together("fedsa_lora", mechanism):
        pytest.skip("no leaves stay at clients with this mechanism")
    for phase in range(len(found.parts)):
        for step in range(max(1, len(found.local_parts))):
            run, after = one_step(method, mechanism, phase, step, head)
            holds_for(after, CLIP * 0.4 / run.experiment.batch_size, run.plan.capacity)


def holds_for(after, bound, capacity):
    """Draws models and batches and takes one example away."""

    @settings(max_examples=12, deadline=None)
    @given(
        seed=st.integers(0, 1000),
        scale=st.sampled_from([0.0, 0.1, 3.0]),
        rows=st.permutations(range(12)),
        count=st.integers(1, 8),
    )
    def for_all(seed, scale, rows, count):
        filled = np.resize(np.asarray(rows, np.int32), capacity)
        (less, before), (more, then) = (
            after(seed, np.float32(scale), filled, n) for n in (count - 1, count)
        )
        moved = jax.tree.map(np.subtract, more, less)
        norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(moved)))
        # Ends are subtracted from starts in float32, so the leaves' own size counts too.
        assert norm <= bound * (1 + 1e-4) + 1e-5 * scale
        assert abs(float(then - before)) == 0.5

    for_all()


@pytest.mark.parametrize(("method", "mechanism"), pairs(list(OF_CLIENTS), {"ravan"}))
def test_a_client_more_moves_the_mean_that_the_server_reads_by_at_most_the_clip_norm(
    method, mechanism
):
    """Of expected clients, in every phase; whatever the clients' examples."""
    run = prepared(method=method, mechanism=mechanism, clip_norm=0.05, num_examples=192)
    plain = run.method._replace(read=lambda state, mean, *_: leaves.merge(state, mean))
    silent = run.server._replace(method=plain, noise_multiplier=1e-20)
    run = run._replace(server=silent)
    count = run.settings.num_clients
    step = compiled(run, "round_step")
    for phase in range(len(run.method.parts)):
        state = run.state.replace(round_index=jnp.int32(phase))

        def mean(there, state=state):
            cohort = Cohort(jnp.arange(count), jnp.arange(count) < there)
            found, _ = step(keys(run), state, run.frozen, run.data, run.numbers, None, cohort)
            return found.adapters

        means = [mean(there) for there in range(count + 1)]
        for less, more in itertools.pairwise(means):
            moved = jax.tree.map(jnp.subtract, more, less)
            norm = float(jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(moved))))
            assert 0 < norm <= 0.05 / count * (1 + 1e-3)
