"""Example-level DP-SGD at every client (Abadi et al. 2016, arXiv:1607.00133; Sun et al. 2024, section 4).

Each local step draws a Poisson batch, clips every example's gradient over all trained leaves, adds
Gaussian noise to the sum and divides by the *expected* batch size. What a client sends and keeps is then
private already; averaging is post-processing. A client pays for every round it may take part in: the
server sees who does, so client sampling amplifies nothing.
"""

import jax

from ffalora_jax import accounting
from ffalora_jax.config import Experiment
from ffalora_jax.mechanisms import Mechanism
from ffalora_jax.mechanisms._examples import example_plan
from ffalora_jax.mechanisms._noise import add_noise


def build(experiment: Experiment) -> Mechanism:
    """Returns DP-SGD with the experiment's clip norm, expected batch size and budget."""
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
