"""FedSVD is FFA-LoRA with an orthonormal A in other coordinates.

After a round FedSVD writes A B = U S V^T and goes on from A' = U = A Q, B' = S V^T = Q^T B, Q orthogonal if
A was orthonormal. Gradients turn along (dB' = Q^T dB), norms and clipping do not change, isotropic noise
has the same law: plain SGD from (A', B') moves A B exactly as from (A, B). So the two are one method,
whatever the number of rounds. Measured is the largest difference of the products A B after four rounds,
relative to their largest entry, on the tiny model, noise switched off so that paths can be compared. An A B
of low rank does no harm: the singular vectors that belong to nothing are taken inside the span of A.

Claim (derived here): the two are equal to rounding for SGD, with momentum, with clipping and with more rank
    than was learned; not for Adam, whose moments are taken entry by entry, and not from an A of another
    scale.
Run: python -m experiments.fedsvd_is_orthonormal_ffa        Time: 5 minutes on two cores; full: 10 seeds, 10
    minutes
Limits: with noise the two agree in law, not path by path, so that single private runs still differ; FedSVD
    from an A that is not orthonormal is another method, after one round.
"""

import sys
from typing import Any

from experiments import _frame
from experiments._bases import toy
from experiments._paths import distance, prepared, products
from experiments._verdicts import Judged, Row, above, below
from ffalora_jax.config import Experiment

ROUNDS, ROUNDING, APART = 4, 1e-5, 0.1
SAME: dict[str, dict[str, Any]] = {
    "plain SGD": {},
    "clipped (95 % of the examples)": {"privacy.mechanism": "dp_sgd", "privacy.clip_norm": 0.3},
    "momentum .9": {"optimizer.options": {"momentum": 0.9}},
    "rank 16 of a round of one step": {"method.rank": 16, "local_steps": 1},
}
OTHER: dict[str, dict[str, Any]] = {
    "Adam": {"optimizer.name": "adam", "optimizer.learning_rate": 0.01},
    "kaiming A, as drawn": {"method.init": "kaiming"},
    "orthogonal A (kaiming's norm)": {"method.init": "orthogonal"},
}
CASES = SAME | OTHER


def base() -> Experiment:
    """The tiny model, no privacy, an orthonormal A of rank 4."""
    found = toy(**{"partition.name": "natural", "data.max_examples": None, "method.rank": 4})
    found = found.replace(rounds=ROUNDS, local_steps=3, batch_size=32)
    changes = {"method.init": "orthonormal", "method.lora_alpha": 16.0, "privacy.mechanism": "none"}
    return found.replace(**changes, **{"optimizer.learning_rate": 0.5})


def difference(changes: dict[str, Any], seed: int = 0, rounds: int = ROUNDS) -> float:
    """Returns how far apart the two methods' products end."""
    start = base().replace(seed=seed, rounds=rounds, **changes)
    ours, theirs = (
        products(prepared(start.replace(**{"method.name": method}), noise=False))
        for method in ("ffa_lora", "fedsvd")
    )
    return distance(ours, theirs)


def run(ask: _frame.Ask) -> list[Row]:
    """Returns a row a case and seed."""
    experiment = ask.length(base())
    ask.tell("paths", experiment, {"case": list(CASES)})

    def of_seed(seed: int) -> list[Row]:
        apart = {case: difference(CASES[case], seed, experiment.rounds) for case in CASES}
        return [
            {"seed": seed, "case": case, "difference": float(f"{value:.3g}")}
            for case, value in apart.items()
        ]

    found = [ask.kept(f"seed-{s}", lambda s=s: of_seed(s)) for s in range(ask.seeds)]
    return [row for rows in found for row in rows]


def judge(rows: list[Row]) -> Judged:
    """Rounding where the two are one method, and more where they are not."""
    values = {case: [r["difference"] for r in rows if r["case"] == case] for case in CASES}
    parts = [below(case, values[case], ROUNDING) for case in SAME]
    parts += [above(case, values[case], APART) for case in OTHER]
    table = [[case, f"{min(v):.1e}", f"{max(v):.1e}"] for case, v in values.items()]
    return Judged(parts, ["difference of A B", "least over seeds", "most"], table)


STUDY = _frame.Study("fedsvd_is_orthonormal_ffa", __doc__ or "", (3, 10), run, judge)

if __name__ == "__main__":
    sys.exit(_frame.main(STUDY))
