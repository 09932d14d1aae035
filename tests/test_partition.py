"""Partitions: every example once, shares as promised, the same from the same seed."""

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ffalora_jax.config_data import PARTITIONS, PartitionConfig
from ffalora_jax.data import Dataset
from ffalora_jax.errors import InputError
from ffalora_jax.partition import assign, class_table, split

THIRDS = ".1 .9, .9 .1, .5 .5"
quick = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.filter_too_much],
)


def dataset_of(labels, num_clients=3):
    labels = np.asarray(labels)
    names = tuple(f"site_{k}" for k in range(num_clients))
    clients = np.arange(len(labels)) % num_clients
    return Dataset({"text": [""] * len(labels)}, labels, ("no", "yes"), clients, names)


def balanced(count):
    return dataset_of(np.random.default_rng(5).integers(0, 2, count))


def parts_of(dataset, config, seed):
    owned = assign(dataset, config, seed)
    return owned, split(dataset, owned, config, seed)


@pytest.mark.parametrize("name", PARTITIONS)
@given(
    labels=st.lists(st.integers(0, 1), min_size=12, max_size=120),
    num_clients=st.integers(1, 4),
    shares=st.tuples(st.floats(0, 0.45), st.floats(0, 0.45)),
    seed=st.integers(0, 2**32 - 1),
)
@quick
def test_every_example_is_used_exactly_once(name, labels, num_clients, shares, seed):
    config = PartitionConfig(
        name=name, num_clients=num_clients, validation_share=shares[0], test_share=shares[1]
    )
    try:
        owned, owners = parts_of(dataset_of(labels), config, seed)
    except InputError as error:
        assume("own no example" not in str(error))
        raise
    everything = np.arange(len(labels))
    np.testing.assert_array_equal(np.sort(np.concatenate(owned)), everything)
    parts = np.concatenate([*owners.train, *owners.validation, *owners.test])
    np.testing.assert_array_equal(np.sort(parts), everything)
    for rows, *mine in zip(owned, *owners[1:4], strict=True):
        np.testing.assert_array_equal(np.sort(np.concatenate(mine)), rows)


@given(
    labels=st.lists(st.integers(0, 1), min_size=40, max_size=200).filter(
        lambda x: 0 < sum(x) < len(x)
    ),
    table=st.lists(st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)), min_size=1, max_size=4),
    seed=st.integers(0, 100),
)
@quick
def test_proportions_are_those_of_the_table(labels, table, seed):
    dataset = dataset_of(labels)
    text = ", ".join(f"{no} {yes}" for no, yes in table)
    try:
        owned = assign(dataset, PartitionConfig(name="proportions", proportions=text), seed)
    except InputError:
        assume(False)
    weights = np.array(table)
    expected = weights / weights.sum(0) * np.bincount(dataset.labels, minlength=2)
    assert np.abs(class_table(dataset, owned) - expected).max() <= 1 + 1e-9


def test_the_papers_split_is_the_default_table():
    dataset = dataset_of([0, 1] * 3000)
    owned = assign(dataset, PartitionConfig(name="proportions"), 0)
    table = class_table(dataset, owned)
    np.testing.assert_array_equal(table, [[200, 1800], [1800, 200], [1000, 1000]])
    assert PartitionConfig().proportions == THIRDS


@pytest.mark.parametrize(
    "text", ["", "1", "1 2 3", "1 1, 1", "a b", "-1 2, 1 1", "0 1, 0 1", "nan 1", "inf 1, 1 1"]
)
def test_a_table_that_cannot_be_a_table_is_refused(text):
    with pytest.raises(InputError, match=r"partition\.proportions"):
        assign(balanced(100), PartitionConfig(name="proportions", proportions=text), 0)


def test_natural_keeps_the_owners_and_their_names():
    dataset = balanced(30)
    owned, owners = parts_of(dataset, PartitionConfig(name="natural", num_clients=7), 0)
    assert owners.names == dataset.client_names
    for client, rows in enumerate(owned):
        assert set(dataset.clients[rows]) == {client}


def test_iid_sizes_differ_by_one_at_most():
    sizes = [len(rows) for rows in assign(balanced(103), PartitionConfig(name="iid"), 0)]
    assert max(sizes) - min(sizes) == 1


def skew(alpha, seed):
    dataset = balanced(2000)
    config = PartitionConfig(name="dirichlet", dirichlet_alpha=alpha)
    table = class_table(dataset, assign(dataset, config, seed))
    return (table.max(1) / table.sum(1)).mean()


@pytest.mark.parametrize("seed", range(5))
def test_a_small_dirichlet_alpha_is_more_skewed_than_a_large_one(seed):
    assert skew(0.6, seed) > skew(100.0, seed) + 0.05
    assert skew(1e4, seed) < 0.55


@given(exponent=st.floats(0, 2), num_clients=st.integers(2, 6), seed=st.integers(0, 100))
@quick
def test_quantity_skew_gives_falling_sizes_of_the_promised_proportions(exponent, num_clients, seed):
    config = PartitionConfig(name="quantity", num_clients=num_clients, quantity_skew=exponent)
    sizes = np.array([len(rows) for rows in assign(balanced(600), config, seed)])
    weights = (1.0 + np.arange(num_clients)) ** -exponent
    assert np.abs(sizes - 600 * weights / weights.sum()).max() <= 1
    assert (np.diff(sizes) <= 1).all()


@pytest.mark.parametrize("name", PARTITIONS)
def test_held_out_shares_are_those_asked_for(name):
    config = PartitionConfig(name=name, validation_share=0.15, test_share=0.25)
    owned, owners = parts_of(balanced(997), config, 1)
    for rows, validation, test in zip(owned, owners.validation, owners.test, strict=True):
        assert abs(len(validation) - 0.15 * len(rows)) <= 0.5
        assert abs(len(test) - 0.25 * len(rows)) <= 0.5


@pytest.mark.parametrize("positive", [0.5, 0.1])
def test_every_part_of_a_client_has_its_class_shares(positive):
    labels = (np.random.default_rng(0).random(800) < positive).astype(int)
    dataset = dataset_of(labels)
    owned, owners = parts_of(dataset, PartitionConfig(name="iid"), 0)
    for rows, *parts in zip(owned, *owners[1:4], strict=True):
        for part in parts:
            expected = len(part) * labels[rows].mean()
            assert abs(labels[part].sum() - expected) <= 2


def test_parts_are_not_the_first_rows_as_they_come():
    dataset = balanced(400)
    _, owners = parts_of(dataset, PartitionConfig(name="iid", num_clients=1), 0)
    assert abs(owners.test[0].mean() - 199.5) < 40


@pytest.mark.parametrize("name", PARTITIONS)
def test_the_same_seed_gives_the_same_parts_and_another_seed_others(name):
    dataset, config = balanced(400), PartitionConfig(name=name)

    def flat(seed):
        _, owners = parts_of(dataset, config, seed)
        return [part.tolist() for parts in owners[1:] for part in parts]

    assert flat(3) == flat(3)
    assert flat(3) != flat(4)


@pytest.mark.parametrize("name", [name for name in PARTITIONS if name != "natural"])
def test_another_seed_gives_other_owners(name):
    dataset, config = balanced(400), PartitionConfig(name=name)
    first, second = assign(dataset, config, 3), assign(dataset, config, 4)
    assert [rows.tolist() for rows in first] != [rows.tolist() for rows in second]


def test_a_client_left_with_nothing_is_refused():
    with pytest.raises(InputError, match="Client 3 would own no example"):
        assign(balanced(3), PartitionConfig(name="iid", num_clients=4), 0)


def test_natural_without_owners_is_refused():
    dataset = dataclasses.replace(balanced(20), clients=None, client_names=())
    with pytest.raises(InputError, match=r"--data\.client"):
        assign(dataset, PartitionConfig(name="natural"), 0)
