"""The compiled round against its twin in Python loops, and what must not change its numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffalora_jax import adapters as leaves
from ffalora_jax import registry, rng
from ffalora_jax.clipping import Blocks
from ffalora_jax.cohort import Batch, Cohort, draw_cohort_of
from ffalora_jax.probes import packing_for
from ffalora_jax.round import RoundState
from tests import reference, server_rules
from tests.helpers import (
    NOISE_SEED,
    compiled,
    drawn_rows,
    go_together,
    keys,
    participants,
    prepared,
    run_rounds,
)

slow = pytest.mark.slow
FEDERATED = [m for m in registry.available("methods") if not registry.lookup("methods", m)().pooled]


OF_FAST = {"dp_sgd": ("ffa_lora", "fedavg_lora"), "dp_fedavg": ("fedsvd",), "none": ("ffa_lora",)}
OF_THOROUGH = {"dp_sgd": ("fedsa_lora", "flora", "la_lora")}


def how_long(method, mechanism):
    """The marks of a pair."""
    if method in OF_FAST[mechanism]:
        return ()
    return pytest.mark.thorough if method in OF_THOROUGH.get(mechanism, ()) else slow


IN_TWIN = ("dp_sgd", "dp_fedavg", "none")
"""Mechanisms that the twin knows; the others are held against these, in files of their own."""
PAIRS = [
    pytest.param(method, mechanism, marks=how_long(method, mechanism))
    for method in FEDERATED
    for mechanism in IN_TWIN
    # The twin of client-level DP bounds leaves, and RAVAN's upload is a product of two.
    if go_together(method, mechanism) and (method, mechanism) != ("ravan", "dp_fedavg")
]
"""Every form of a round, server and detour once in CI; all pairs in the slow tests."""


TIGHT = {"dp_fedavg": {"clip_norm": 1e-3, "cohort_size": 3, "sampling": "poisson"}}
"""So that even updates of A beside a zero B are clipped, and the cohort is one of several."""


HEAD = frozenset({"head_kernel", "head_bias"})
LOCAL = {"la_lora": {"parts": ({"lora_b"} | HEAD, {"lora_a"} | HEAD), "smooth": reference.low_pass}}
"""What the twin's local steps do otherwise, by method."""


def twin_rounds(run, count):
    """Runs rounds of the twin on the draws of the fast form."""
    shared = run.state.adapters
    flat_personal = reference.flat(run.state.personal)
    clients = range(run.settings.num_clients)
    personal = {k: {where: leaf[k] for where, leaf in flat_personal.items()} for k in clients}
    if not flat_personal:
        personal = {}
    mechanism = run.mechanism
    for round_index in range(count):
        cohort = _cohort(run, round_index)
        sizes = np.asarray(run.data.sizes, float)
        method = run.experiment.method.name
        trained = server_rules.trained_in(method, round_index, leaves.names(shared))
        held = leaves.without(shared, trained)
        rule = partial(server_rules.RULES.get(method, server_rules.mean), reference.flat(shared))
        frozen = run.frozen._replace(adapters=leaves.merge(run.frozen.adapters, held))
        shared, personal = reference.federated_round(
            run.model.apply,
            frozen,
            reference.nested(reference.flat(leaves.select(shared, trained))),
            personal,
            run.data,
            cohort,
            [drawn_rows(run, round_index, client) for client in cohort],
            server=rule,
            central=_central(run),
            sent=partial(server_rules.SENT[method], reference.flat(shared))
            if method in server_rules.SENT
            else lambda upload: upload,
            weights=sizes if run.experiment.weights == "size" else None,
            secret=rng.secret_root(NOISE_SEED),
            round_index=round_index,
            clip_norm=mechanism.clip_norm,
            noise_multipliers=np.zeros(len(sizes))
            if run.plan.unit == "client"
            else np.asarray(run.numbers.noise_multiplier, float),
            expected=run.experiment.batch_size,
            learning_rate=run.experiment.optimizer.learning_rate,
            **LOCAL.get(method, {}),
        )
        fresh = run.server.redraw(keys(run).public, round_index + 1)
        shared = leaves.merge(reference.nested(shared), fresh)
    return reference.flat(shared), personal


def _central(run):
    """What the twin of client-level DP is told; None for the other mechanisms."""
    if run.plan.unit != "client":
        return None
    privacy, clients = run.experiment.privacy, run.settings.cohort_size
    facts = {"clip_norm": privacy.clip_norm, "noise_multiplier": privacy.noise_multiplier}
    return facts | {"clients": clients}


def _cohort(run, round_index):
    cohort = draw_cohort_of(run.settings, keys(run), round_index)
    return [int(c) for c, real in zip(cohort.clients, cohort.is_real, strict=True) if real]


def assert_close(state, twin, atol=1e-6, by_product=False):
    shared, personal = twin
    if by_product:  # singular vectors are told up to their sign
        found = reference.flat(state.adapters)
        for layer, name in [place for place in found if place[1] == "lora_a"]:
            ours, theirs = (x[layer, name] @ x[layer, "lora_b"] for x in (found, shared))
            np.testing.assert_allclose(ours, theirs, atol=atol, rtol=1e-4)
        state = state.replace(adapters=leaves.without(state.adapters, {"lora_a", "lora_b"}))
    for where, leaf in reference.flat(state.adapters).items():
        np.testing.assert_allclose(leaf, shared[where], atol=atol, rtol=1e-5)
    for where, leaf in reference.flat(state.personal).items():
        for client, mine in personal.items():
            np.testing.assert_allclose(leaf[client], mine[where], atol=atol, rtol=1e-5)


@pytest.mark.parametrize(("method", "mechanism"), PAIRS)
def test_compiled_round_equals_python_loops_with_clipping_active(method, mechanism):
    run = prepared(method=method, mechanism=mechanism, **TIGHT.get(mechanism, {}))
    by_product = method in ("flexlora", "fedsvd", "fedask")
    count = 1 if by_product else 2
    state, infos = run_rounds(run, count)
    clipped = np.asarray(infos[0].facts.clip.num_clipped).sum()
    assert (clipped > 10) == (mechanism == "dp_sgd")
    if mechanism == "dp_fedavg":
        norms = np.asarray(infos[0].facts.update_norm)[np.asarray(infos[0].took_part)]
        assert (norms > run.experiment.privacy.clip_norm).any()
    assert_close(state, twin_rounds(run, count), by_product=by_product)


@pytest.mark.parametrize("head", [pytest.param("frozen", marks=slow), "personal"])
def test_head_policies_equal_python_loops(head):
    run = prepared(head=head)
    state, _ = run_rounds(run, 2)
    assert_close(state, twin_rounds(run, 2))
    assert bool(jax.tree.leaves(state.personal)) == (head == "personal")


@pytest.mark.parametrize(
    ("sampling", "weighted"),
    [
        pytest.param("fixed", False, marks=slow),
        ("poisson", True),
        pytest.param("fixed", True, marks=slow),
        pytest.param("poisson", False, marks=slow),
    ],
)
def test_partial_cohorts_equal_python_loops(sampling, weighted):
    run = prepared(cohort_size=2, sampling=sampling, weighted=weighted)
    state, infos = run_rounds(run, 3)
    assert {len(who) for who in participants(infos[0])} <= set(range(4))
    assert_close(state, twin_rounds(run, 3))


def test_personal_leaves_of_absent_clients_stay_as_they_were():
    run = prepared(method="local_only", cohort_size=2)
    state, infos = run_rounds(run, 1)
    absent = ~np.isin(np.arange(4), participants(infos[0])[0])
    for before, after in zip(
        jax.tree.leaves(run.state.personal), jax.tree.leaves(state.personal), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(before)[absent], np.asarray(after)[absent])
        assert (np.asarray(before)[~absent] != np.asarray(after)[~absent]).any()


@pytest.mark.thorough
def test_rows_of_several_clients_at_once_change_no_numbers():
    """As on an accelerator: under ``vmap`` as many blocks of rows as the fullest client's draw needs."""
    one, before = run_rounds(prepared(chunk="1"), 3)
    together = prepared(chunk="4")
    assert together.packing is None
    rows = together._replace(packing=packing_for(together.model, together.encoded.inputs, 1))
    other, after = run_rounds(rows, 3)
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(before[0].facts.clip.num_real, after[0].facts.clip.num_real)
    assert float(np.sum(after[0].facts.clip.num_clipped)) > 0


@pytest.mark.parametrize(
    "chunk", ["3", pytest.param("2", marks=slow), pytest.param("4", marks=slow)]
)
def test_chunk_does_not_change_the_numbers_over_ten_rounds(chunk):
    one, _ = run_rounds(prepared(chunk="1"), 10)
    other, _ = run_rounds(prepared(chunk=chunk), 10)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "blocks",
    [
        Blocks(3, (8, 16)),
        pytest.param(Blocks(1, (16,)), marks=slow),
        pytest.param(Blocks(10_000, (16,)), marks=slow),
    ],
)
@pytest.mark.thorough
def test_blocks_and_widths_do_not_change_the_numbers(blocks):
    run = prepared()
    assert run.packing is not None
    one, _ = run_rounds(run, 3)
    other, _ = run_rounds(run._replace(blocks=blocks, packing=None), 3)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_rounds_in_one_call_and_one_at_a_time_are_the_same_bits():
    run = prepared()
    at_once, _ = run_rounds(run, 3)
    rounds, state = run.rounds(), run.state
    for _ in range(3):
        state, _ = rounds(keys(run), state, run.frozen, run.data, run.numbers, jnp.int32(1))
    for a, b in zip(jax.tree.leaves(at_once), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_later_and_shorter_calls_do_not_compile_again():
    run = prepared()
    rounds, state = run.rounds(), run.state
    for count in (3, 1, 2, 3):
        state, _ = rounds(keys(run), state, run.frozen, run.data, run.numbers, jnp.int32(count))
    assert rounds._cache_size() == 1
    assert int(state.round_index) == 9


def test_given_batches_replace_the_draws():
    run = prepared()
    rows = [drawn_rows(run, 0, client) for client in range(4)]
    batches = Batch(
        np.zeros((4, 2, run.plan.capacity), np.int32), np.zeros((4, 2, run.plan.capacity), bool)
    )
    for client, steps in enumerate(rows):
        for step, mine in enumerate(steps):
            batches.rows[client, step, : len(mine)] = mine
            batches.is_real[client, step, : len(mine)] = True
    given = jax.tree.map(jnp.asarray, batches)
    step = compiled(run, "round_step")
    drawn, _ = step(keys(run), run.state, run.frozen, run.data, run.numbers)
    same, _ = step(keys(run), run.state, run.frozen, run.data, run.numbers, given)
    for a, b in zip(jax.tree.leaves(drawn), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_dropped_clients_change_nothing():
    run = prepared()
    step = compiled(run, "round_step")

    def with_cohort(clients, is_real):
        cohort = Cohort(jnp.asarray(clients), jnp.asarray(is_real))
        return step(keys(run), run.state, run.frozen, run.data, run.numbers, None, cohort)[0]

    two = with_cohort([2, 0], [True, True])
    padded = with_cohort([2, 1, 0, 3], [True, False, True, False])
    for a, b in zip(jax.tree.leaves(two), jax.tree.leaves(padded), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_order_of_clients_does_not_matter():
    run = prepared()
    step = compiled(run, "round_step")
    states = [
        step(
            keys(run),
            run.state,
            run.frozen,
            run.data,
            run.numbers,
            None,
            Cohort(jnp.asarray(order), jnp.ones(4, bool)),
        )[0]
        for order in ([0, 1, 2, 3], [3, 1, 0, 2])
    ]
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_round_without_any_client_keeps_the_servers_state():
    run = prepared()
    nobody = Cohort(jnp.arange(4), jnp.zeros(4, bool))
    after, info = compiled(run, "round_step")(
        keys(run), run.state, run.frozen, run.data, run.numbers, None, nobody
    )
    for a, b in zip(
        jax.tree.leaves(run.state.adapters), jax.tree.leaves(after.adapters), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert not np.asarray(info.took_part).any()


def test_one_client_and_one_step_is_centralised_sgd():
    run = prepared(mechanism="none", clients=1)
    rows = drawn_rows(run, 0, 0)[0]

    def mean_loss(leaves):
        joined = {**run.frozen.adapters}
        for layer, found in leaves.items():
            joined[layer] = {**joined.get(layer, {}), **found}
        inputs = {name: leaf[jnp.asarray(rows)] for name, leaf in run.data.inputs.items()}
        logits = run.model.apply(run.frozen.backbone, joined, **inputs)
        labels = run.data.labels[jnp.asarray(rows)]
        picked = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        return jnp.sum(jax.nn.logsumexp(logits, axis=1) - picked) / run.experiment.batch_size

    gradient = jax.grad(mean_loss)(run.state.adapters)
    rate = run.experiment.optimizer.learning_rate
    expected = jax.tree.map(lambda leaf, g: leaf - rate * g, run.state.adapters, gradient)
    numbers = run.experiment.replace(local_steps=1)
    after, _ = jax.jit(run._replace(experiment=numbers).round_step())(
        keys(run), run.state, run.frozen, run.data, run.numbers
    )
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(after.adapters), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_infinite_clip_and_zero_noise_is_plain_sgd():
    plain, _ = run_rounds(prepared(mechanism="none"), 3)
    run = prepared(clip_norm=1e12)
    quiet = run.numbers._replace(noise_multiplier=jnp.zeros(4))
    limit, _ = run_rounds(run._replace(numbers=quiet), 3)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(limit), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_an_unnoised_personal_head_would_be_caught():
    """The head's noise is part of the vector: without it the personal head follows one example exactly."""
    run = prepared(head="personal")
    state, _ = run_rounds(run, 1)
    quiet = run._replace(numbers=run.numbers._replace(noise_multiplier=jnp.zeros(4)))
    silent, _ = run_rounds(quiet, 1)
    for name in ("head_kernel", "head_bias"):
        moved = np.asarray(state.personal["head"][name] - silent.personal["head"][name])
        # lr * sigma * C / B a step, two steps; far from zero in every single entry's scale.
        stddev = 0.4 * 0.8 * 0.7 / 4 * np.sqrt(2)
        assert 0.4 * stddev < moved.std() < 2.5 * stddev


def test_a_broken_example_neither_spreads_nor_stops_the_round():
    run = prepared()
    row = drawn_rows(run, 0, 0)[0][0]
    inputs = {**run.data.inputs, "scale": jnp.ones(run.data.labels.shape).at[row].set(jnp.nan)}

    def apply_training(backbone, adapters, key, scale, **inputs):
        return run.model.apply_training(backbone, adapters, key, **inputs) * scale

    broken = run._replace(
        packing=None,
        data=run.data._replace(inputs=inputs),
        model=run.model._replace(apply_training=apply_training),
    )
    state, info = jax.jit(broken.round_step())(
        keys(run), run.state, run.frozen, broken.data, run.numbers
    )
    assert np.asarray(info.facts.clip.num_broken).sum() >= 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.adapters))


def test_state_holds_no_frozen_factor():
    run = prepared()
    assert isinstance(run.state, RoundState)
    names = {name for found in run.state.adapters.values() for name in found}
    assert names == {"lora_b", "head_kernel", "head_bias"}
    frozen = {name for found in run.frozen.adapters.values() for name in found}
    assert frozen == {"lora_a"}
