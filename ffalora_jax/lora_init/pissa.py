"""PiSSA (Meng et al. 2024, arXiv:2404.02948): the leading singular vectors of W.

    W = U S V^T,   A = U_r sqrt(S_r / s),   B = sqrt(S_r / s) V_r^T          (equations 2 and 3 there)

A method that trains both begins from the part of W that matters most and changes it; one with A frozen looks
at a layer's inputs through the directions that W itself uses most. FedSVD's ablation has this as the best
fixed A (epsilon 6, MNLI: 66.3 against kaiming's 55.6).
"""

from ffalora_jax.lora_init import WEIGHTS_ONLY, LoraInit
from ffalora_jax.lora_init._singular import split, svd


def build() -> LoraInit:
    """Returns the initialiser: the rank largest singular values of W and their vectors."""

    def of_weights(kernel, rank, scaling):
        u, s, vt = svd(kernel)
        return split(u[:, :rank], s[:rank], vt[:rank], scaling)

    return LoraInit(WEIGHTS_ONLY, of_weights=of_weights)
