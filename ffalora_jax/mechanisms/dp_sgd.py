"""Example-level DP-SGD at every client (Abadi et al. 2016, arXiv:1607.00133; Sun et al. 2024, section 4).

Each local step draws a Poisson batch, clips every example's gradient over all trained leaves, adds
Gaussian noise to the sum and divides by the *expected* batch size. What a client sends and keeps is then
private already; averaging is post-processing. A client pays for every round it may take part in: the
server sees who does, so client sampling amplifies nothing.
"""

import bisect
import functools

import jax

from ffalora_jax import accounting
from ffalora_jax.config import Experiment
from ffalora_jax.errors import InputError
from ffalora_jax.mechanisms import ClientPlan, Mechanism, Plan
from ffalora_jax.mechanisms._noise import add_noise, affordable_rounds

MOST_GROUPS = 8
"""Client sizes priced one by one; of more, all clients take the noise that the smallest one needs."""


def build(experiment: Experiment) -> Mechanism:
    """Returns DP-SGD with the experiment's clip norm, expected batch size and budget."""
    settings, expected = experiment.privacy, experiment.batch_size
    capacity = settings.capacity or accounting.default_capacity(expected)

    def plan(sizes, schedule, multipliers=None):
        draws = [accounting.sampling(size, expected, capacity) for size in sizes]
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
        if multipliers is None:
            multipliers = _multipliers(
                draws, schedule.sums(schedule.rounds, schedule.local_steps), settings
            )
        clients = tuple(
            ClientPlan(draw, sigma, accounting.event_of(draw, sigma))
            for draw, sigma in zip(draws, multipliers, strict=True)
        )

        priced = _priced(draws)

        @functools.cache
        def curve(draw, noise_multiplier, rounds):
            after = [schedule.sums(done, schedule.local_steps) for done in range(1, rounds + 1)]
            return accounting.trajectory(draw, noise_multiplier, after, settings.delta)

        def epsilons(client, rounds):
            return [0.0, *curve(priced[draws[client]], multipliers[client], rounds)]

        def spent(client, rounds):
            sums = schedule.sums(rounds, schedule.local_steps)
            return accounting.epsilon_of(
                priced[draws[client]], multipliers[client], sums, settings.delta
            )

        affordable = schedule.rounds
        if settings.budget is not None and not calibrated:
            affordable = min(
                affordable_rounds(draw, sigma, schedule, schedule.local_steps, settings)
                for draw, sigma in {(priced[d], s) for d, s in zip(draws, multipliers, strict=True)}
            )
        return Plan(
            clients,
            capacity,
            "example",
            epsilons,
            spent,
            affordable,
            tuple(sorted({w for w in warnings if w})),
            steps_a_round=schedule.local_steps,
            neighbours=accounting.NEIGHBOURS,
        )

    def private_grad(key, total, noise_multiplier):
        noised = add_noise(key, total, noise_multiplier * settings.clip_norm)
        return jax.tree.map(lambda leaf: leaf / expected, noised)

    return Mechanism(
        plan,
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


def _multipliers(draws, sums, settings) -> list[float]:
    if settings.noise_multiplier is not None:
        accounting.check_noise(settings.noise_multiplier)
        return [settings.noise_multiplier] * len(draws)
    groups = set(draws)
    if len(groups) > MOST_GROUPS:
        groups = {min(groups, key=lambda draw: draw.num_examples)}
    needed = {d: accounting.noise_for(d, settings.budget, sums, settings.delta) for d in groups}
    return [needed.get(draw, max(needed.values())) for draw in draws]


def _priced(draws):
    """Returns, by draw, the draw whose epsilon is reported: its own, or among many a smaller client's.

    At the same expected batch a smaller client samples with a higher probability and spends more.
    """
    groups = sorted(set(draws))
    priced = groups[:: -(-len(groups) // MOST_GROUPS)]
    return {draw: priced[bisect.bisect_right(priced, draw) - 1] for draw in groups}
