r"""Noise on both factors multiplies, noise on B alone does not.

Gaussian noise of standard deviation s on every trained entry of a 1024 x 1024 layer, rank 8, A drawn by the
``kaiming`` initialiser, B = 0. What arrives in the layer's weights, in Frobenius norm, by expectation:

- full fine-tuning, N:                        s sqrt(in out)
- FFA-LoRA, N_B A:                            s sqrt(out) |A|              (about s sqrt(out rank / 3))
- LoRA, (B + N_B)(A + N_A) - B A:             sqrt(s^2 out |A|^2 + s^4 in out rank)

The last grows with s^2: beyond s = sqrt(1 / rank), .35 here, LoRA's noise passes that of full fine-tuning.
The plot, docs/noise_amplification.svg, is drawn from the rows by ``python -m experiments.results_page``.

Claim (Sun et al., figure 1): at s = .99, the paper's noise, LoRA's product is noisier than full fine-tuning
    and FFA-LoRA's far quieter.
Run: python -m experiments.noise_amplification        Time: 10 seconds on two cores; full: 1 minute, 50
    draws
Limits: one layer and one step from B = 0; what noise does to a trained model's accuracy is asked in
    table_1.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import _frame
from experiments._verdicts import Judged, Row, above, below
from ffalora_jax import registry, rng

FEATURES, RANK, SIGMA = 1024, 8, 0.99
SCALES = np.geomspace(0.01, 4, 25)
WAYS = ("full fine-tuning", "LoRA (A and B)", "FFA-LoRA (B alone)")
FAR = 0.1
"""Of full fine-tuning's noise: what is called far quieter."""
EXACT = 0.03
"""Relative difference from the expectation: one draw's norm has a standard deviation of 0.8 %."""


def run(ask: _frame.Ask) -> list[Row]:
    """Returns a row a draw of A and noise, scale and way."""
    scales = [SIGMA] if ask.rounds else [*SCALES, SIGMA]
    rows = []
    for seed in range(ask.seeds):
        root = rng.public_root(seed)
        a = registry.lookup("inits", "kaiming")().draw(rng.leaf(root, 0), FEATURES, RANK)
        for scale in scales:
            measured = np.asarray(amplified(a, rng.leaf(root, 1), scale))
            wanted = expectations(np.asarray(a), np.array([scale]))[0]
            for way, norm, one in zip(WAYS, measured, wanted, strict=True):
                norms = {"norm": float(f"{norm:.6g}"), "expected": float(f"{one:.6g}")}
                rows.append({"seed": seed, "scale": float(f"{scale:.6g}"), "way": way} | norms)
    return rows


@jax.jit
def amplified(a: jax.Array, key: jax.Array, scale: float) -> jax.Array:
    """Returns the Frobenius norms of the noise that reaches W by the three ways: (way,)."""
    n_full = scale * jax.random.normal(rng.leaf(key, 0), (FEATURES, FEATURES))
    n_a = scale * jax.random.normal(rng.leaf(key, 1), (FEATURES, RANK))
    n_b = scale * jax.random.normal(rng.leaf(key, 2), (RANK, FEATURES))
    return jnp.stack([jnp.linalg.norm(x) for x in (n_full, (a + n_a) @ n_b, a @ n_b)])


def expectations(a: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Returns the root mean squares of the same norms: (scale, way)."""
    of_b = scales**2 * FEATURES * np.sum(a**2)
    both = of_b + scales**4 * FEATURES**2 * RANK
    return np.stack([scales * FEATURES, np.sqrt(both), np.sqrt(of_b)], axis=1)


def judge(rows: list[Row]) -> Judged:
    """Ratios to full fine-tuning at the paper's noise; all scales against their expectations."""
    norms = {(row["seed"], row["scale"], row["way"]): row["norm"] for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    full, lora, ffa = ([norms[seed, SIGMA, way] for seed in seeds] for way in WAYS)
    apart = [
        max(abs(row["norm"] / row["expected"] - 1) for row in rows if row["seed"] == seed)
        for seed in seeds
    ]
    parts = [
        above(
            f"LoRA's noise over full fine-tuning's at s = {SIGMA}",
            np.divide(lora, full).tolist(),
            1,
        ),
        below("FFA-LoRA's noise over full fine-tuning's", np.divide(ffa, full).tolist(), FAR),
        below("largest relative difference from the expectation, all scales", apart, EXACT),
    ]
    table = [
        [
            way,
            f"{np.mean(found):.1f}",
            f"{np.mean([r['expected'] for r in rows if at(r, way)]):.1f}",
        ]
        for way, found in zip(WAYS, (full, lora, ffa), strict=True)
    ]
    return Judged(parts, [f"norm at s = {SIGMA}", "measured", "expected"], table)


def at(row: Row, way: str) -> bool:
    """Whether a row is of that way at the paper's noise."""
    return row["scale"] == SIGMA and row["way"] == way


def draw(rows: list[Row], path: Path) -> None:
    """Draws measured norms as points over the lines of their expectations, both axes logarithmic."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    scales = sorted({row["scale"] for row in rows})

    def means(way: str, figure: str) -> list[float]:
        mine = [row for row in rows if row["way"] == way]
        return [float(np.mean([r[figure] for r in mine if r["scale"] == s])) for s in scales]

    for way, mark in zip(WAYS, "sov", strict=True):
        (line,) = axes.loglog(scales, means(way, "expected"))
        color = line.get_color()
        axes.loglog(scales, means(way, "norm"), mark, color=color, label=way, markersize=4)
    axes.axvline(SIGMA, color="grey", linewidth=0.8, linestyle=":")
    low = min(row["expected"] for row in rows)
    axes.annotate(f"s = {SIGMA}", (SIGMA, low), rotation=90, va="bottom", ha="right")
    axes.set_xlabel("standard deviation s of the noise on each trained entry")
    axes.set_ylabel("Frobenius norm of the noise in W")
    title = f"{FEATURES} x {FEATURES}, rank {RANK}: points measured, lines expected"
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    plt.rcParams["svg.hashsalt"] = "noise_amplification"  # the same file each time
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


STUDY = _frame.Study("noise_amplification", __doc__ or "", (5, 50), run, judge)

if __name__ == "__main__":
    sys.exit(_frame.main(STUDY))
