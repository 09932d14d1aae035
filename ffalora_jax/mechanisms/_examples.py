"""Example-level mechanisms: noised sums at every client, and what each client samples and pays."""

import bisect
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax

from ffalora_jax import accounting
from ffalora_jax.config import Experiment, PrivacyConfig
from ffalora_jax.errors import InputError
from ffalora_jax.mechanisms import ClientPlan, Mechanism, Plan
from ffalora_jax.mechanisms._noise import add_noise, affordable_rounds

MOST_GROUPS = 8
"""Client sizes priced one by one; of more, all clients take the noise that the smallest one needs."""


def example_plan(
    settings: PrivacyConfig, expected: int, capacity: int, common: bool = False, bands: int = 1
) -> Callable[..., Plan]:
    """Returns ``Mechanism.plan`` of noised sums over Poisson draws of examples.

    Args:
        settings: clip norm, budget or noise.
        expected: batch size.
        capacity: most examples of a draw.
        common: one noise for all clients, the largest that any of them needs.
        bands: groups of a client's examples, from one of which a step draws, in turn.
    """

    def plan(sizes, schedule, multipliers=None):
        if bands > 1:
            _check_groups(min(sizes), expected, bands)
            schedule = schedule._replace(bands=bands)
        groups = [-(-size // bands) for size in sizes]  # the largest of them
        batches = [schedule.batch_of(client) for client in range(len(sizes))]
        draws = [
            accounting.sampling(group, batch, capacity)
            for group, batch in zip(groups, batches, strict=True)
        ]
        warnings = [accounting.check_delta(settings.delta, size) for size in set(sizes)]
        if len(set(draws)) > MOST_GROUPS and capacity < accounting.default_capacity(expected):
            raise InputError(
                f"Expected privacy.capacity >= {accounting.default_capacity(expected)} with more than "
                f"{MOST_GROUPS} client sizes, got {capacity}: leave it out."
            )
        if multipliers is not None and len(multipliers) != len(draws):
            raise InputError(
                f"The run began with {len(multipliers)} clients, the data now has {len(draws)}: put it back."
            )
        calibrated = multipliers is None and settings.noise_multiplier is None
        steps = [schedule.steps_of(client) for client in range(len(draws))]
        kinds = list(zip(draws, steps, strict=True))
        if len(set(batches)) > 1 and len(set(kinds)) > MOST_GROUPS:
            # Of many kinds the dearest is only known where all draw alike: the smallest client's.
            raise InputError(
                f"Expected at most {MOST_GROUPS} kinds of clients with sites.batch_size, got "
                f"{len(set(kinds))} (by size, batch and local steps): give fewer different batches or steps."
            )
        if multipliers is None:
            multipliers = _multipliers(kinds, schedule, settings)
            if common:
                multipliers = [max(multipliers)] * len(multipliers)
        clients = tuple(
            ClientPlan(draw, sigma, accounting.event_of(draw, sigma), count)
            for draw, sigma, count in zip(draws, multipliers, steps, strict=True)
        )
        priced = _priced(kinds)

        @functools.cache
        def curve(kind, noise_multiplier, rounds):
            after = [schedule.sums(done, kind.steps) for done in range(1, rounds + 1)]
            return accounting.trajectory(kind.draw, noise_multiplier, after, settings.delta)

        def epsilons(client, rounds):
            return [0.0, *curve(priced[kinds[client]], multipliers[client], rounds)]

        def spent(client, rounds):
            kind = priced[kinds[client]]
            sums = schedule.sums(rounds, kind.steps)
            return accounting.epsilon_of(kind.draw, multipliers[client], sums, settings.delta)

        affordable = schedule.rounds
        if not calibrated:
            affordable = min(
                affordable_rounds(kind.draw, sigma, schedule, kind.steps, settings)
                for kind, sigma in {(priced[k], s) for k, s in zip(kinds, multipliers, strict=True)}
            )
        return Plan(
            clients,
            capacity,
            "example",
            epsilons,
            spent,
            affordable,
            tuple(sorted({w for w in warnings if w})),
            neighbours=accounting.NEIGHBOURS,
        )

    return plan


def _check_groups(smallest: int, expected: int, bands: int) -> None:
    if smallest < bands * expected:
        raise InputError(
            f"Expected at least privacy.bands x batch_size = {bands} x {expected} examples at every client, "
            f"got {smallest}: each of the {bands} groups has to fill a batch. Lower one of them."
        )


def example_level(experiment: Experiment) -> Mechanism:
    """Returns DP-SGD at every client, with the experiment's clip norm, expected batch size and budget."""
    settings, expected = experiment.privacy, experiment.batch_size
    capacity = settings.capacity or accounting.default_capacity(expected)

    def private_grad(key, total, noise_multiplier):
        noised = add_noise(key, total, noise_multiplier * settings.clip_norm)
        return jax.tree.map(lambda leaf: leaf / expected, noised)

    return Mechanism(
        example_plan(settings, expected, capacity),
        private_grad,
        clip_norm=settings.clip_norm,
        statement=(
            "Every single training example at a client is protected: whoever sees all that the client "
            "ever sends, and the final model, learns only a bounded amount (epsilon) about whether that "
            "example was there."
        ),
        trust_model=(
            "honest-but-curious server, the other clients and everyone after them; each client is "
            "trusted with its own data"
        ),
    )


class _Kind(NamedTuple):
    """What a client draws, and how often a round."""

    draw: accounting.Sampling
    steps: int


def _multipliers(kinds, schedule, settings) -> list[float]:
    if settings.noise_multiplier is not None:
        accounting.check_noise(settings.noise_multiplier)
        return [settings.noise_multiplier] * len(kinds)
    groups = {_Kind(*kind) for kind in kinds}
    if len(groups) > MOST_GROUPS:
        smallest = min((kind.draw for kind in groups), key=lambda draw: draw.num_examples)
        groups = {_Kind(smallest, max(kind.steps for kind in groups))}
    needed = {
        kind: accounting.noise_for(
            kind.draw,
            settings.budget,
            schedule.sums(schedule.rounds, kind.steps),
            settings.delta,
        )
        for kind in groups
    }
    return [needed.get(kind, max(needed.values())) for kind in kinds]


def _priced(kinds) -> dict[tuple[accounting.Sampling, int], _Kind]:
    """Returns, by kind, that whose epsilon is reported: its own, or among many a dearer one.

    At the same expected batch a smaller client samples with a higher probability and spends more; and so
    does one with more steps.
    """
    groups = {_Kind(*kind) for kind in kinds}
    if len(groups) <= MOST_GROUPS:
        return {kind: kind for kind in groups}
    draws, most = sorted({kind.draw for kind in groups}), max(kind.steps for kind in groups)
    chosen = draws[:: -(-len(draws) // MOST_GROUPS)]
    return {
        kind: _Kind(chosen[bisect.bisect_right(chosen, kind.draw) - 1], most) for kind in groups
    }
