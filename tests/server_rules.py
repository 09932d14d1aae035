"""What each method's server does, in dense float64 NumPy from the formulas: for the twin in Python loops.

``rule(state, uploads, shares) -> the server's leaves after``; leaves are {(layer, name): array}, uploads a
list of them, shares sum to one.
"""

import numpy as np

HEAD = {"head_kernel", "head_bias"}
TRAINED = {
    "rolora": ({"lora_b"}, {"lora_a"}),
    "fedsvd": ({"lora_b"},),
    "fedask": ({"lora_b"},),
}
"""Leaves that a round trains, where that is not all the server has but the residual."""


def trained_in(method, round_index, leaves):
    """The leaves that a round trains and sends."""
    turns = TRAINED.get(method)
    if turns is None:
        return set(leaves) - {"residual"}
    return turns[round_index % len(turns)] | HEAD


def mean(state, uploads, shares):
    """The weighted mean of what was sent; the rest stays."""
    sent = {
        where: sum(p * u[where] for p, u in zip(shares, uploads, strict=True))
        for where in uploads[0]
    }
    return {**state, **sent}


def layers_of(state):
    """The adapted layers."""
    return sorted({layer for layer, _ in state if layer != "head"})


def mean_product(layer, uploads, shares):
    """sum_k p_k A_k B_k."""
    each = [u[layer, "lora_a"] @ u[layer, "lora_b"] for u in uploads]
    return sum(p * one for p, one in zip(shares, each, strict=True))


def fedex_lora(state, uploads, shares):
    """Equation 11: what the product of the means lacks goes into the base."""
    after = mean(state, uploads, shares)
    for layer in layers_of(state):
        lacks = (
            mean_product(layer, uploads, shares) - after[layer, "lora_a"] @ after[layer, "lora_b"]
        )
        after[layer, "residual"] = state[layer, "residual"] + lacks
    return after


def flora(state, uploads, shares):
    """Equation 6: all products go into the base; B begins at zero (the fresh A comes from the seed)."""
    after = mean(state, uploads, shares)
    for layer in layers_of(state):
        added = mean_product(layer, uploads, shares)
        after[layer, "residual"] = state[layer, "residual"] + added
        after[layer, "lora_b"] = np.zeros_like(after[layer, "lora_b"])
    return after


def flexlora(state, uploads, shares):
    """The leading singular triples of the mean product, a square root with each factor."""
    after = mean(state, uploads, shares)
    for layer in layers_of(state):
        rank = state[layer, "lora_a"].shape[1]
        u, s, vt = np.linalg.svd(mean_product(layer, uploads, shares), full_matrices=False)
        after[layer, "lora_a"] = u[:, :rank] * np.sqrt(s[:rank])
        after[layer, "lora_b"] = np.sqrt(s[:rank])[:, None] * vt[:rank]
    return after


def fedsvd(state, uploads, shares):
    """A B = U S V^T of the mean B; A = U, B = S V^T."""
    after = mean(state, uploads, shares)
    for layer in layers_of(state):
        rank = state[layer, "lora_a"].shape[1]
        u, s, vt = np.linalg.svd(
            state[layer, "lora_a"] @ after[layer, "lora_b"], full_matrices=False
        )
        after[layer, "lora_a"], after[layer, "lora_b"] = u[:, :rank], s[:rank, None] * vt[:rank]
    return after


def fedask(state, uploads, shares):
    """The two exchanges as they are written, with one Gaussian Omega, and the clients' sketches averaged."""
    after = mean(state, uploads, shares)
    for layer in layers_of(state):
        a = state[layer, "lora_a"]
        omega = np.random.default_rng(len(layer)).standard_normal(a.shape)
        products = [a @ upload[layer, "lora_b"] for upload in uploads]
        y = sum(p * (one.T @ omega) for p, one in zip(shares, products, strict=True))
        q, _ = np.linalg.qr(y)
        sketch = sum(p * (one @ q) for p, one in zip(shares, products, strict=True))
        u, s, vt = np.linalg.svd(sketch, full_matrices=False)
        after[layer, "lora_a"] = u * np.sqrt(s)
        after[layer, "lora_b"] = np.sqrt(s)[:, None] * (q @ vt.T).T
    return after


def lora_fair(state, uploads, shares):
    """Ridge regression of the mean product on the mean A, around the mean B."""
    after = mean(state, uploads, shares)
    for layer in layers_of(state):
        a, b = after[layer, "lora_a"], after[layer, "lora_b"]
        ridge = 0.01 * (np.linalg.svd(a, compute_uv=False) ** 2).mean()
        wide = np.vstack([a, np.sqrt(ridge) * np.eye(a.shape[1])])
        lacks = mean_product(layer, uploads, shares) - a @ b
        target = np.vstack([lacks, np.zeros((a.shape[1], b.shape[1]))])
        after[layer, "lora_b"] = b + np.linalg.lstsq(wide, target, rcond=None)[0]
    return after


def turned(state, upload):
    """A client's pair turned by the orthogonal Procrustes solution, before it is sent (FedRot-LoRA)."""
    from scipy.linalg import orthogonal_procrustes

    one = dict(upload)
    for layer in layers_of(state):
        turn, _ = orthogonal_procrustes(upload[layer, "lora_a"], state[layer, "lora_a"])
        one[layer, "lora_a"] = upload[layer, "lora_a"] @ turn
        one[layer, "lora_b"] = turn.T @ upload[layer, "lora_b"]
    return one


def hetlora(state, uploads, shares):
    """Weighted by the norm of A B over all layers; the head uniformly."""
    products = [[u[x, "lora_a"] @ u[x, "lora_b"] for x in layers_of(state)] for u in uploads]
    norms = [np.sqrt(sum((one**2).sum() for one in each)) for each in products]
    after = mean(state, uploads, np.asarray(norms) / sum(norms))
    head = mean(state, uploads, np.full(len(uploads), 1 / len(uploads)))
    return after | {place: leaf for place, leaf in head.items() if place[1] in HEAD}


def ravan(state, uploads, shares):
    """Means of gain times core; gains begin at one."""
    sent = [dict(upload) for upload in uploads]
    for one in sent:
        for layer in layers_of(state):
            one[layer, "core"] = one[layer, "gain"][:, None, None] * one[layer, "core"]
            one[layer, "gain"] = np.ones_like(one[layer, "gain"])
    return mean(state, sent, shares)


RULES = {
    "fedex_lora": fedex_lora,
    "flora": flora,
    "flexlora": flexlora,
    "fedsvd": fedsvd,
    "fedask": fedask,
    "lora_fair": lora_fair,
    "ravan": ravan,
    "hetlora": hetlora,
}
SENT = {"fedrot_lora": turned}
"""What a client does to its leaves before it sends them (and before anybody clips what they moved)."""
