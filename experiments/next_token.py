"""Next-token loss: GSM8K with a language model of 260,000 parameters.

stories260k (LLaMA's form, a vocabulary of 512) on 1,500 of GSM8K's problems at three clients, cut at 256
tokens, 30 local steps of 32; scored by the share of an answer's tokens that it predicts, on 200 of the
official test problems. Both methods with the same rates, at epsilon 6, in the full size without privacy
too. Exact match is out of reach of such a model (``small/gsm8k.toml``: 0.0 %), so that the paper's own
figure, which is without privacy, cannot be asked for.

Claim (Sun et al., GSM-8K with LLaMA-7B: 17.12 against 15.68 exact match): FFA-LoRA predicts answers better
    than LoRA.
Run: python -m experiments.next_token        Time: 30 minutes on two cores; full: without privacy too,
    20 seeds, all problems, 100 rounds: 6 hours on one accelerator, not run
Limits: tokens, not answers, and a model that tells stories; with SGD and few steps both learn the form of
    an answer and no arithmetic. A model of a billion parameters could say something else.
"""

import dataclasses
import sys

import numpy as np

import ffalora_jax as ffa
from experiments import _frame
from experiments._bases import OPEN
from experiments._verdicts import RATE, Judged, Row, above, cell, chosen, differences
from ffalora_jax.data import Dataset

LORA, FFA = "fedavg_lora", "ffa_lora"
RATES = [0.3, 1.0, 3.0]
TRAIN, TEST = 1500, 200


def run(ask: _frame.Ask) -> list[Row]:
    """Searches both methods' rates, at epsilon 6 and in the full size without privacy."""
    base = ffa.load_experiment(_frame.HERE / "small" / "gsm8k.toml")
    base = base.replace(rounds=6 if ask.small else 100, **{"model.max_tokens": 256})
    base = base.replace(evaluate_every=base.rounds)
    data = problems(base, ask.small)
    rows = []
    kinds = {"epsilon 6": {}} | ({} if ask.small else {"no privacy": OPEN})
    for kind, changes in kinds.items():
        # The smallest one when the others had shown, both at the grid's end, that it is needed.
        for rates in (RATES[1:], RATES[:1]):
            over = {"method.name": [LORA, FFA], RATE: rates}
            name = kind if rates[0] == RATES[1] else f"{kind}, rate {rates[0]:g}"
            found = _frame.searched(ask, name, base.replace(**changes), over, data)
            rows += [row | {"search": kind} for row in found]
    return rows


def problems(base: ffa.Experiment, few: bool) -> Dataset:
    """Returns GSM8K's problems, the same for all seeds, scored by their tokens."""
    whole = ffa.load_dataset(base)
    assert whole.held_out is not None
    whole = dataclasses.replace(whole, metric="accuracy")
    train, test = np.flatnonzero(~whole.held_out), np.flatnonzero(whole.held_out)
    if not few:
        return whole
    draw = np.random.default_rng(0)
    kept = draw.choice(train, TRAIN, replace=False), draw.choice(test, TEST, replace=False)
    return whole.take(np.sort(np.concatenate(kept)))


def judge(rows: list[Row]) -> Judged:
    """How far apart the two are, seed by seed."""
    found = chosen(rows, ["search", "method.name"])
    parts, table = [], []
    for kind in dict.fromkeys(row["search"] for row in rows):
        apart = differences(found[kind, FFA], found[kind, LORA])
        parts.append(above(f"FFA-LoRA minus LoRA, points of tokens, {kind}", apart))
        table.append([kind, *(cell(found[kind, method], rows) for method in (LORA, FFA))])
    return Judged(parts, ["tokens predicted", "LoRA", "FFA-LoRA"], table)


STUDY = _frame.Study("next_token", __doc__ or "", (3, 20), run, judge)

if __name__ == "__main__":
    sys.exit(_frame.main(STUDY))
