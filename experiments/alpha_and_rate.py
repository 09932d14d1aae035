r"""Alpha and the learning rate: one number for FFA-LoRA, two for LoRA.

A layer adds s x A B, s = alpha / rank. With A frozen, multiplying s by c, dividing the rate by c^2 and
multiplying the clip norm by c turns B into B / c and leaves s A B as it was: gradients of B grow c times,
so does the noise, and steps shrink c^2 times. With both factors trained, A moves c^2 times less than it
did, so that LoRA's path tends to FFA-LoRA's as c grows (Sun et al.). Measured is the largest entry of the
difference of s A B after all rounds, relative to the largest entry, under the same draws and noise, on a
toy in float32 (LoRA's limit without privacy: with it, the noise on B is not one draw in both). The rule
ends with: Adam, a clip norm that stays, a head that is trained at the same rate.

Claim (Sun et al., on alpha): FFA-LoRA has no alpha to tune, and LoRA tends to FFA-LoRA as alpha grows with
    the rate scaled down to match.
Run: python -m experiments.alpha_and_rate        Time: 4 minutes on two cores; full: the same with 20 seeds,
    20 minutes
Limits: rounding alone limits the invariance, whatever the model; the distance of LoRA at a given alpha is
    that of this toy. Which alpha is best for LoRA is not asked here.
"""

import sys
from typing import Any

import jax.numpy as jnp
from flax import nnx

import ffalora_jax as ffa
from experiments import _frame
from experiments._bases import OPEN, toy
from experiments._paths import Products, distance, prepared, products
from experiments._verdicts import Judged, Row, above, below
from ffalora_jax.text import hash_tokenizer

SCALES = (0.1, 0.3, 3.0, 10.0, 30.0, 100.0)
LAST = SCALES[-1]
ROUNDING, APART, NEAR = 1e-4, 0.01, 0.01
PRIVATE, LORA = "FFA-LoRA, private", "LoRA, no privacy"
KINDS: dict[str, dict[str, Any]] = {
    PRIVATE: {},
    LORA: OPEN | {"method.name": "fedavg_lora"},
}
ENDS: dict[str, dict[str, Any]] = {
    "with Adam": {"optimizer.name": "adam"},
    "the clip norm stays": {},
    "head trained": {"model.head": "trained"},
}


class Toy(nnx.Module):
    """Mean of word vectors, one hidden layer with an adapter, a head."""

    def __init__(self, rngs: nnx.Rngs):
        self.words = nnx.Embed(2048, 32, rngs=rngs)
        self.middle, self.head = nnx.Linear(32, 32, rngs=rngs), nnx.Linear(32, 2, rngs=rngs)
        self.tokenizer = hash_tokenizer(2048)

    def __call__(self, input_ids, attention_mask):
        words = jnp.where(attention_mask[..., None], self.words(input_ids), 0)
        return self.head(nnx.tanh(self.middle(words.mean(-2))))


def run(ask: _frame.Ask) -> list[Row]:
    """Returns a row a seed, kind and scale."""
    base = {"model.head": "frozen", "method.targets": "middle", "optimizer.learning_rate": 0.5}
    experiment = ask.length(toy(**base, **{"data.max_examples": 1000, "privacy.epsilon": 6.0}))
    ask.tell("paths", experiment, {"scale": SCALES})
    rows = []
    for seed in range(ask.seeds):
        rows += ask.kept(f"seed-{seed}", lambda seed=seed: of_seed(experiment.replace(seed=seed)))
    return rows


def of_seed(base: ffa.Experiment) -> list[Row]:
    """Returns the rows of one seed."""
    seed, rows = base.seed, []
    ffa_path = path(base, 1.0, OPEN)
    for kind, changes in KINDS.items():
        start = path(base, 1.0, changes)
        for scale in (1.0, *SCALES):
            ended = start if scale == 1 else path(base, scale, changes)
            row = {"seed": seed, "kind": kind, "scale": scale, "moved": distance(start, ended)}
            rows.append(row | {"from_ffa": distance(ffa_path, ended)})
    for kind, changes in ENDS.items():
        start, ended = (path(base, scale, changes, kind) for scale in (1.0, 3.0))
        rows.append({"seed": seed, "kind": kind, "scale": 3.0, "moved": distance(start, ended)})
    return rows


def path(base: ffa.Experiment, scale: float, changes: dict[str, Any], kind: str = "") -> Products:
    """Returns s A B at the end, with s multiplied by the scale and all else following it."""
    rate = 0.01 if kind == "with Adam" else base.optimizer.learning_rate
    clip = base.privacy.clip_norm * (1 if kind == "the clip norm stays" else scale)
    follows = {
        "method.lora_alpha": base.method.lora_alpha * scale,
        "optimizer.learning_rate": rate / scale**2,
        "privacy.clip_norm": clip,
    }
    return products(prepared(base.replace(**(changes | follows)), Toy(nnx.Rngs(base.seed))))


def judge(rows: list[Row]) -> Judged:
    """Invariance to rounding, LoRA's lack of it, its limit, and the ends of the rule."""

    def values(kind: str, figure: str = "moved", scales=SCALES) -> list[float]:
        mine = [row for row in rows if row["kind"] == kind and row["scale"] in scales]
        return [
            max(row[figure] for row in mine if row["seed"] == seed)
            for seed in sorted({row["seed"] for row in mine})
        ]

    parts = [
        below(
            f"{PRIVATE}: largest move of s A B over c = {SCALES[0]:g} to {LAST:g}",
            values(PRIVATE),
            ROUNDING,
        ),
        above(f"{LORA}: the same", values(LORA), APART),
        below(
            f"LoRA at c = {LAST:g}: distance to FFA-LoRA", values(LORA, "from_ffa", (LAST,)), NEAR
        ),
        *(above(f"the rule ends {_words(kind)} (c = 3)", values(kind), APART) for kind in ENDS),
    ]
    kinds = list(KINDS)
    table = []
    for scale in sorted((1.0, *SCALES)):
        moved = [sum(values(k, "moved", (scale,))) / len(values(k)) for k in kinds]
        apart = sum(values(LORA, "from_ffa", (scale,))) / len(values(LORA))
        table.append([f"{scale:g}", *(f"{x:.1e}" for x in moved), f"{apart:.1e}"])
    return Judged(parts, ["c", *kinds, "LoRA from FFA-LoRA"], table)


def _words(kind: str) -> str:
    return {"with Adam": kind, "the clip norm stays": "if the clip norm stays"}.get(
        kind, "if the head is trained at the same rate"
    )


STUDY = _frame.Study("alpha_and_rate", __doc__ or "", (3, 20), run, judge)

if __name__ == "__main__":
    sys.exit(_frame.main(STUDY))
