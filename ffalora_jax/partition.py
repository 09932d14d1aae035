"""Who owns which example, and which part of it is held out. NumPy, on the host, from the public seed.

Every example is used exactly once: by one client, in one of train, validation and test; or it is public.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ffalora_jax import rng
from ffalora_jax.config import PartitionConfig
from ffalora_jax.data import Dataset
from ffalora_jax.errors import InputError

MOST_LISTED = 1000
"""Clients that a run's files name one by one; of more, those that are alike share a line."""


class Owners(NamedTuple):
    """Row numbers of every client's three parts."""

    names: tuple[str, ...]
    train: list[np.ndarray]
    validation: list[np.ndarray]
    test: list[np.ndarray]
    public: np.ndarray = np.empty(0, int)
    """Rows of the site that is public: nobody trains on them."""


def partition(dataset: Dataset, config: PartitionConfig, seed: int) -> Owners:
    """Deals the examples out and holds a part of each client's back.

    A data set with an official evaluation part keeps it as the test part, dealt out evenly (by the client
    column where the partition is natural), so that the figure over all clients is the official one.

    Raises:
        InputError: as ``assign``, or no site has the name of the public one.
    """
    if config.public_site is not None:
        return _beside_public(dataset, config, seed)
    if dataset.held_out is None:
        return split(dataset, assign(dataset, config, seed), config, seed)
    apart = np.flatnonzero(dataset.held_out)
    rest = np.flatnonzero(~dataset.held_out)
    owned = [rest[rows] for rows in assign(dataset.take(rest), config, seed)]
    owners = split(dataset, owned, dataclasses.replace(config, test_share=0.0), seed)
    if config.name == "natural":
        assert dataset.clients is not None
        test = [apart[dataset.clients[apart] == client] for client in range(len(owned))]
    else:
        order = rng.numpy_rng(seed, rng.Purpose.HELD_OUT).permutation(apart)
        test = [np.sort(part) for part in np.array_split(order, len(owned))]
    return owners._replace(test=test)


def assign(dataset: Dataset, config: PartitionConfig, seed: int) -> list[np.ndarray]:
    """Returns each client's rows; together they are all rows, each once.

    Raises:
        InputError: natural without a client column, a malformed table, a client left with nothing.
    """
    draw = rng.numpy_rng(seed, rng.Purpose.PARTITION)
    count = len(dataset)
    if config.name == "natural":
        if dataset.clients is None:
            raise InputError(
                "partition.name 'natural' needs to know whose example is whose: name the column with "
                "--data.client, or choose --partition.name iid --partition.num-clients 4."
            )
        owned = [np.flatnonzero(dataset.clients == k) for k in range(len(dataset.client_names))]
    elif config.name == "iid":
        owned = np.array_split(draw.permutation(count), config.num_clients)
    elif config.name == "quantity":
        sizes = (1.0 + np.arange(config.num_clients)) ** -config.quantity_skew
        owned = _cut(draw.permutation(count), sizes)
    else:
        shares = _class_shares(dataset, config, draw)
        owned = [[] for _ in range(shares.shape[0])]
        for label in range(dataset.num_classes):
            rows = draw.permutation(np.flatnonzero(dataset.labels == label))
            for client, part in enumerate(_cut(rows, shares[:, label])):
                owned[client].append(part)
        owned = [np.concatenate(parts) for parts in owned]
    for client, rows in enumerate(owned):
        if len(rows) == 0:
            raise InputError(
                f"Client {client} would own no example under partition.name {config.name!r}: use fewer "
                "clients or a milder skew."
            )
    return [np.sort(rows) for rows in owned]


def split(
    dataset: Dataset, owned: Sequence[np.ndarray], config: PartitionConfig, seed: int
) -> Owners:
    """Cuts each client's rows into train, validation and test, class by class where possible."""
    parts: list[list[np.ndarray]] = [[], [], []]
    for client, rows in enumerate(owned):
        draw = rng.numpy_rng(seed, rng.Purpose.SPLIT, client)
        order = _stratified(draw.permutation(rows), dataset.labels)
        test = round(config.test_share * len(rows))
        validation = round(config.validation_share * len(rows))
        cuts = np.split(order, [test, test + validation])
        for part, cut in zip(parts, (cuts[2], cuts[1], cuts[0]), strict=True):
            part.append(np.sort(cut))
    names = (
        dataset.client_names
        if config.name == "natural"
        else tuple(f"client_{k}" for k in range(len(owned)))
    )
    return Owners(names, parts[0], parts[1], parts[2])


def _beside_public(dataset: Dataset, config: PartitionConfig, seed: int) -> Owners:
    """Deals out what the other sites have, as if the public one were not there."""
    names = dataset.client_names
    if config.public_site not in names or len(names) < 2:
        raise InputError(
            f"Expected partition.public_site as one of two or more sites, got {config.public_site!r}. "
            f"The data has: {', '.join(names[:MOST_LISTED]) or 'no sites (--data.client names the column)'}."
        )
    assert dataset.clients is not None
    site = names.index(config.public_site)
    rest = np.flatnonzero(dataset.clients != site)
    others = dataset.take(rest)
    assert others.clients is not None
    others = dataclasses.replace(
        others,
        clients=others.clients - (others.clients > site),
        client_names=names[:site] + names[site + 1 :],
    )
    owners = partition(others, dataclasses.replace(config, public_site=None), seed)
    train, held, test = ([rest[rows] for rows in part] for part in owners[1:4])
    return Owners(owners.names, train, held, test, np.flatnonzero(dataset.clients == site))


def class_table(dataset: Dataset, owned: Sequence[np.ndarray]) -> np.ndarray:
    """Returns how many examples of each class each client has: (client, class)."""
    counts = [np.bincount(dataset.labels[rows], minlength=dataset.num_classes) for rows in owned]
    return np.stack(counts)


def _class_shares(
    dataset: Dataset, config: PartitionConfig, draw: np.random.Generator
) -> np.ndarray:
    """Returns each client's weight in each class: client k gets P[k, c] / sum_k P[k, c] of class c."""
    if config.name == "dirichlet":
        alpha = np.full(config.num_clients, config.dirichlet_alpha)
        return draw.dirichlet(alpha, size=dataset.num_classes).T
    try:
        table = np.array([[float(x) for x in row.split()] for row in config.proportions.split(",")])
    except ValueError:
        table = np.empty((0, 0))
    fits = table.ndim == 2 and table.shape[1] == dataset.num_classes and np.isfinite(table).all()
    if not fits or (table < 0).any() or (table.sum(0) <= 0).any():
        raise InputError(
            f"Expected partition.proportions as one row a client of {dataset.num_classes} class weights, "
            f"like '.1 .9, .9 .1, .5 .5', got {config.proportions!r}."
        )
    return table


def _cut(rows: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
    """Cuts rows into consecutive parts of sizes proportional to the weights."""
    edges = np.round(np.cumsum(weights) / np.sum(weights) * len(rows)).astype(int)
    return np.split(rows, edges[:-1])


def _stratified(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Orders rows so that any leading part has nearly the classes' shares of the whole."""
    place = np.empty(len(rows))
    for label in np.unique(labels[rows]):
        mine = np.flatnonzero(labels[rows] == label)
        place[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    return rows[np.argsort(place, kind="stable")]
