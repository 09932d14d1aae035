"""Example-level DP-SGD at every client (Abadi et al. 2016, arXiv:1607.00133; Sun et al. 2024, section 4).

Each local step draws a Poisson batch, clips every example's gradient over all trained leaves, adds
Gaussian noise to the sum and divides by the *expected* batch size. What a client sends and keeps is then
private already; averaging is post-processing. A client pays for every round it may take part in: the
server sees who does, so client sampling amplifies nothing.
"""

from ffalora_jax.config import Experiment
from ffalora_jax.mechanisms import Mechanism
from ffalora_jax.mechanisms._examples import example_level


def build(experiment: Experiment) -> Mechanism:
    """Returns DP-SGD with the experiment's clip norm, expected batch size and budget."""
    return example_level(experiment)
