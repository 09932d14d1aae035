"""Cohorts out of many clients: only theirs is moved, files and evaluation do not grow with the others."""

import numpy as np
import pytest

import ffalora_jax as ffa
from ffalora_jax import adapters
from ffalora_jax.accounting import sampling
from ffalora_jax.cohort import Cohort
from ffalora_jax.deal import Dealer
from ffalora_jax.mechanisms._examples import MOST_GROUPS, _priced
from ffalora_jax.partition import MOST_LISTED
from ffalora_jax.prepare import prepare
from tests.tiny_runs import same_bits, tiny

MANY = MOST_LISTED + 200


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    changes = {
        "rounds": 2,
        "batch_size": 2,
        "cohort_size": 8,
        "client_data": "host",
        "data.max_examples": 6 * MANY + 300,  # some clients have one more
        "partition.name": "iid",
        "partition.num_clients": MANY,
    }
    return ffa.simulate(tiny(**changes), out=tmp_path_factory.mktemp("many") / "run")


@pytest.mark.thorough
def test_clients_that_are_alike_share_a_line(many):
    run = many
    for facts in (run.privacy, run.communication):
        assert facts["num_clients"] == MANY
        assert len(facts["clients"]) < 20
        assert sum(line["count"] for line in facts["clients"]) == MANY
    participations = sum(c["participations"] * c["count"] for c in run.communication["clients"])
    assert participations == 2 * 8
    assert max(c["epsilon"] for c in run.privacy["clients"]) == run.epsilon


@pytest.mark.thorough
def test_a_report_of_many_clients_is_small_and_counts_them(many):
    run = many
    page = run.folder.report.read_text()
    assert f"{MANY:,} sites" in page or f"{MANY} sites" in page
    assert len(page) < 400_000
    assert run.metrics[-1]["test_accuracy_per_client"] is None
    assert run.accuracy is not None


def test_only_the_examples_of_the_cohort_are_moved(many):
    run = prepare(many.experiment)
    assert run.settings.by_slot
    dealer = Dealer(run.data, run.numbers, run.settings, run.mesh)
    cohort = Cohort(np.arange(8, dtype=np.int32) * 7, np.ones(8, bool))
    hand = dealer.deal(cohort)
    assert adapters.nbytes(hand.data) < adapters.nbytes(run.data) / 50
    for slot, client in enumerate(cohort.clients):
        mine, whole = hand.data.members[slot], run.data.members[client]
        size = int(run.data.sizes[client])
        assert int(hand.data.sizes[slot]) == size
        ids = hand.data.inputs["input_ids"][mine[:size]]
        assert np.array_equal(ids, run.data.inputs["input_ids"][whole[:size]])


@pytest.mark.parametrize("cohort", ["poisson", pytest.param("fixed", marks=pytest.mark.slow)])
@pytest.mark.thorough
def test_dealt_from_the_host_unequal_clients_give_the_same_bits(tmp_path, cohort):
    changes = {
        "rounds": 3,
        "batch_size": 2,
        "cohort_size": 4,
        "cohort_sampling": cohort,
        "data.max_examples": 400,
        "partition.name": "quantity",
        "partition.num_clients": 20,
    }
    runs = [
        ffa.simulate(tiny(client_data=where, **changes), out=tmp_path / where)
        for where in ("device", "host")
    ]
    sizes = [client["num_examples"] for client in runs[0].privacy["clients"]]
    assert max(sizes) > 5 * min(sizes)
    assert same_bits(*runs)


@pytest.mark.thorough
def test_dropout_is_the_same_wherever_the_examples_lie(tmp_path):
    changes = {"rounds": 2, "cohort_size": 2, "method.dropout": 0.3}
    runs = [
        ffa.simulate(tiny(client_data=where, **changes), out=tmp_path / where)
        for where in ("device", "host")
    ]
    assert same_bits(*runs)


def test_of_many_sizes_the_price_is_that_of_the_next_smaller_client_or_ones_own():
    draws = [
        sampling(size, 8, 30) for size in np.random.default_rng(0).integers(20, 4000, 500).tolist()
    ]
    kinds = [(draw, 1 + index % 3) for index, draw in enumerate(draws)]
    priced = _priced(kinds)
    assert len(set(priced.values())) <= MOST_GROUPS
    for (draw, steps), other in priced.items():
        assert other.draw.num_examples <= draw.num_examples
        assert other.draw.probability >= draw.probability
        assert other.steps >= steps
    few = kinds[:3]
    assert _priced(few) == {kind: kind for kind in few}
