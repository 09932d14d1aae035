"""What gives no error and is still wrong, or promises less than it seems to: told before a run, and after it.

Each rule looks at a prepared run (nothing is computed) or at a run's figures, and says what it found,
where that is written about, and the way out. What cannot work at all is refused by ``prepare``.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ffalora_jax.findings import Finding
from ffalora_jax.lint_sites import (
    always_late,
    deadline_of_like_sites,
    divided_by_those_asked,
    never_there,
    pooled_sites,
)
from ffalora_jax.prepare import Prepared
from ffalora_jax.types import HEAD_LEAVES
from ffalora_jax.warm_start import started_from

LARGEST_EPSILON = 50.0
FEW_CLIENTS = 100
MANY_DOUBLES = 0.05
"""Share of a held-out part that makes its accuracy another figure; a few doubles are in every data set."""
MANY_CUT = 0.05
"""Share of texts that fill all tokens from which a run says so; a few long ones are in every data set."""
CLIPPED_MOST, CLIPPED_LEAST = 0.99, 0.01
ROUNDS_TO_TELL = 3


def before(run: Prepared) -> list[Finding]:
    """Returns what a prepared run's settings and data give reason to say."""
    return [found for rule in RULES for found in rule(run)]


def after(run: Prepared, clipped_shares: Sequence[float | None]) -> list[Finding]:
    """Returns what a run's clipped shares, round by round, give reason to say."""
    if run.plan.unit is None:
        return []
    shares = [share for share in clipped_shares if share is not None]
    if len(shares) < ROUNDS_TO_TELL:
        return []
    share, norm = float(np.median(shares)), run.experiment.privacy.clip_norm
    where = "Andrew et al. 2021, arXiv:1905.03871"
    if share > CLIPPED_MOST:
        return [
            Finding(
                "clip-always-binds",
                f"{100 * share:.0f} % of all influences were cut to privacy.clip_norm = {norm:g}: directions "
                "are kept and lengths lost. That is usual with DP-SGD; a larger norm adds as much noise as "
                "it keeps.",
                where,
                "note",
                from_data=True,
            )
        ]
    if share < CLIPPED_LEAST:
        return [
            Finding(
                "clip-never-binds",
                f"{100 * share:.1f} % of all influences reached privacy.clip_norm = {norm:g}, and the noise "
                "is scaled to it: a smaller norm gives less noise for the same epsilon.",
                where,
                from_data=True,
            )
        ]
    return []


def _delta(run: Prepared) -> list[Finding]:
    return [
        Finding("delta-above-1/n", text, "Dwork & Roth 2014, section 2.3")
        for text in run.plan.warnings
    ]


def _epsilon(run: Prepared) -> list[Finding]:
    plan = run.plan
    if plan.unit is None:
        return []
    rounds = min(run.experiment.rounds, plan.rounds_within_budget)
    found, spent = [], plan.largest_spent(rounds)
    if spent > LARGEST_EPSILON:
        found.append(
            Finding(
                "epsilon-too-large",
                f"Epsilon {spent:.3g} bounds next to nothing: e^{spent:.0f} times as likely is still within "
                "it. Expected at most 10, better 1 to 6: raise the noise or take fewer steps.",
                "Ponomareva et al. 2023, arXiv:2303.00654, section 5.2",
            )
        )
    if rounds < run.experiment.rounds:
        found.append(
            Finding(
                "epsilon-of-one-round",
                f"privacy.epsilon = {run.experiment.privacy.budget:g} is of the whole run, and this noise "
                f"pays for {rounds} of {run.experiment.rounds} rounds: leave privacy.noise_multiplier out, "
                "or raise it.",
                "composition: Abadi et al. 2016, arXiv:1607.00133, section 3.2",
            )
        )
    return found


def _weights(run: Prepared) -> list[Finding]:
    if run.experiment.weights != "size" or run.plan.unit is None:
        return []
    return [
        Finding(
            "size-weights",
            "weights = 'size' averages by the sites' numbers of examples, which are not protected and show "
            "in the average; uniform weights keep them to the site.",
            "McMahan et al. 2018, arXiv:1710.06963, section 2",
        )
    ]


def _held_out(run: Prepared) -> list[Finding]:
    """Texts that stand in a training part and in a held-out one alike."""
    inputs = [np.asarray(leaf) for _, leaf in sorted(run.encoded.inputs.items())]

    def hashes(rows: Sequence[np.ndarray]) -> set[bytes]:
        return {b"".join(leaf[row].tobytes() for leaf in inputs) for row in np.concatenate(rows)}

    owners = run.owners
    seen = hashes(owners.train)
    found = []
    shown = hashes([owners.public]) & seen
    if shown:
        found.append(
            Finding(
                "public-data-overlaps",
                f"{len(shown)} different examples of partition.public_site stand in a training part too: "
                "what is private there is not public, and what is chosen by it is not free. Take them out.",
                "Tramer et al. 2022, arXiv:2212.06470",
                from_data=True,
            )
        )
    for what, rows in (("validation", owners.validation), ("test", owners.test)):
        held = hashes(rows)
        both = len(seen & held)
        if both:
            found.append(
                Finding(
                    f"{what}-on-training-data",
                    f"{both} of {len(held)} different {what} examples stand in a training part too: accuracy "
                    "on them is no accuracy on new ones. Take doubles out of the data.",
                    "Lee et al. 2022, arXiv:2107.06499",
                    "warning" if both > MANY_DOUBLES * len(held) else "note",
                    from_data=True,
                )
            )
    return found


def _texts_cut(run: Prepared) -> list[Finding]:
    full, lengths = run.experiment.model.max_tokens, run.encoded.lengths
    count = int(np.sum(lengths >= full)) if "input_ids" in run.encoded.inputs else 0
    if not count:
        return []
    return [
        Finding(
            "texts-cut",
            f"{count} of {len(lengths)} texts fill all model.max_tokens = {full} tokens, and what they had "
            "beyond is cut. Raise it if that part matters.",
            "Devlin et al. 2019, arXiv:1810.04805, appendix A.2",
            "warning" if count > MANY_CUT * len(lengths) else "note",
            from_data=True,
        )
    ]


def _tuning(run: Prepared) -> list[Finding]:
    if run.plan.unit is None or run.experiment.evaluate_every >= run.experiment.rounds:
        return []
    return [
        Finding(
            "stopping-by-looking",
            "Held-out accuracy is computed without noise, and a round picked by it (early stopping) is not "
            "covered by epsilon; the run itself never does that. With public data to look at it would be.",
            "Papernot & Steinke 2022, arXiv:2110.03620",
            "note",
        )
    ]


def _personal_heads(run: Prepared) -> list[Finding]:
    if not run.keeps_unnoised:
        return []
    personal = {name for found in run.state.personal.values() for name in found}
    heads = personal <= set(HEAD_LEAVES)
    what, way = ("heads", "Set model.head = trained") if heads else ("leaves", "Take ffa_lora")
    return [
        Finding(
            "personal-outside-the-noise",
            f"Personal {what} stay at their site and get no noise under this mechanism: a site that hands "
            f"its model on is not protected. {way}, or dp_sgd.",
            "design of DP-FedAvg: McMahan et al. 2018, arXiv:1710.06963",
        )
    ]


def _unnoised_controls(run: Prepared) -> list[Finding]:
    if run.state.memory.control is None or run.plan.unit != "client":
        return []
    return [
        Finding(
            "controls-outside-the-noise",
            "The control variates that clients keep are their own gradients without noise under this "
            "mechanism, and checkpoints hold them: delete those before the folder leaves the site, or take "
            "dp_sgd.",
            "Karimireddy et al. 2020, arXiv:1910.06378, algorithm 1",
        )
    ]


def _few_clients(run: Prepared) -> list[Finding]:
    expected = run.server.clients
    if run.plan.unit != "client" or expected >= FEW_CLIENTS:
        return []
    noise = run.server.noise_multiplier / expected
    return [
        Finding(
            "few-clients",
            f"About {expected} clients a round share the noise: the mean gets {noise:.2g} clip norms of it "
            f"in every number. Expected {FEW_CLIENTS} and more; with few sites protect examples (dp_sgd).",
            "McMahan et al. 2018, arXiv:1710.06963, section 4",
        )
    ]


def _noise_seed(run: Prepared) -> list[Finding]:
    if run.experiment.noise_seed is None or run.plan.unit is None:
        return []
    return [
        Finding(
            "noise-seed-given",
            "noise_seed was given by hand: whoever knows it can take the noise away, so what comes out "
            "is reproducible and not to be released. Leave it out for a release.",
            "SECURITY.md",
            "note",
        )
    ]


def _start(run: Prepared) -> list[Finding]:
    if run.experiment.method.start is None or run.plan.unit is None:
        return []
    before = started_from(run.experiment, run.plan.unit, 0.0, 0.0)
    cost = ""
    if before is not None and before["epsilon_in_all"] is not None:
        spent = before["epsilon_in_all"]
        cost = f" It says that it was, at epsilon {spent:.3g}; privacy.json adds the two up."
    elif before is not None and before["no_sum"]:
        cost = f" It says that it was, and there is no epsilon of both: {before['no_sum']}."
    return [
        Finding(
            "start-taken-as-public",
            "method.start is taken as public: if it was trained on these sites' data, or chosen by it, what "
            f"that cost comes on top of this run's epsilon.{cost}",
            "composition: Dwork & Roth 2014, theorem 3.16",
        )
    ]


RULES: tuple[Callable[[Prepared], list[Finding]], ...] = (
    _delta,
    _epsilon,
    _weights,
    _held_out,
    _texts_cut,
    _tuning,
    _personal_heads,
    _unnoised_controls,
    divided_by_those_asked,
    pooled_sites,
    never_there,
    always_late,
    deadline_of_like_sites,
    _few_clients,
    _noise_seed,
    _start,
)
