"""MiLoRA (Wang et al. 2024, arXiv:2406.09044): the trailing singular vectors of W.

What W does most is left alone, and the part that it uses least is trained in its place:
A = U_-r sqrt(S_-r / s), B = sqrt(S_-r / s) V_-r^T (section 3 there). The smallest singular values are small,
so with A frozen it is a small A, and the learning rate wants to be larger.
"""

from ffalora_jax.lora_init import WEIGHTS_ONLY, LoraInit
from ffalora_jax.lora_init._singular import split, svd


def build() -> LoraInit:
    """Returns the initialiser: the rank smallest singular values of W and their vectors."""

    def of_weights(kernel, rank, scaling):
        u, s, vt = svd(kernel)
        return split(u[:, -rank:], s[-rank:], vt[-rank:], scaling)

    return LoraInit(WEIGHTS_ONLY, of_weights=of_weights)
