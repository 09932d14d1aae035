"""DP-SGD whose clip norm follows a quantile of the gradients' norms at each client (Andrew et al. 2021).

As ``dp_sgd``, and each step also counts, with noise of its own, how many of its examples were within the
norm; from that follows the next step's norm (``_adaptive``). A client's norm goes on from the server's, which
is the geometric mean of what the clients of the last round came to: both depend on noised numbers alone. The
sum and the count together cost what the plan says, with a little more noise on the sum.
"""

import jax

from ffalora_jax import accounting
from ffalora_jax.config import Experiment
from ffalora_jax.mechanisms import Mechanism
from ffalora_jax.mechanisms._adaptive import checked, count_noise, next_factor, remaining
from ffalora_jax.mechanisms._examples import example_plan
from ffalora_jax.mechanisms._noise import add_noise


def build(experiment: Experiment) -> Mechanism:
    """Returns it for the experiment's first clip norm, quantile, expected batch and budget."""
    settings, expected = experiment.privacy, experiment.batch_size
    capacity = settings.capacity or accounting.default_capacity(expected)
    plan, stddev = example_plan(settings, expected, capacity), count_noise(settings, expected)

    def private_grad(key, total, noise_multiplier):
        noised = add_noise(key, total, noise_multiplier * settings.clip_norm)
        return jax.tree.map(lambda leaf: leaf / expected, noised)

    def adapt(key, factor, centred):
        return next_factor(key, factor, centred, expected, settings, stddev)

    return Mechanism(
        checked(plan, settings, stddev),
        private_grad,
        clip_norm=settings.clip_norm,
        statement=(
            "Every single training example at a client is protected: whoever sees all that the client "
            "ever sends, its clip norms included, and the final model, learns only a bounded amount "
            "(epsilon) about whether that example was there."
        ),
        trust_model=(
            "honest-but-curious server, the other clients and everyone after them; each client is "
            "trusted with its own data"
        ),
        adapt=adapt,
        beside_count=lambda noise_multiplier: remaining(noise_multiplier, stddev),
    )
