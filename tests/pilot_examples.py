"""Figures of a pilot as they might be, for tests of its page."""

from typing import Any

from ffalora_jax.report.times import RATES


def interval(mean: float | None, half: float | None = None) -> dict[str, Any]:
    """Returns an interval as the page reads it."""
    ends = (None, None) if half is None or mean is None else (mean - half, mean + half)
    return {"mean": mean, "low": ends[0], "high": ends[1]}


def example(**changes: Any) -> dict[str, Any]:
    """Returns all that a page shows, with changes at the top."""
    sizes = {"ffa_lora": 1.355e6, "fedavg_lora": 2.68e6}
    methods = [
        {
            "method": name,
            "rate": 1.0,
            "failed": 0,
            "repetitions": 5,
            "bytes_per_site": count,
            "accuracy": interval(0.79 - 0.01 * k, 0.012),
            "simulated_seconds": None,
            "on_lines": [{"line": line, "seconds": 8 * count / rate} for line, rate in RATES],
        }
        for k, (name, count) in enumerate(sizes.items())
    ]
    sites = [("movies", 0.05, 0.02), ("amazon", 0.01, 0.03), ("nyt", -0.04, 0.02)]
    found = {
        "name": "mine",
        "about": {
            "data": "VADER's sentences, 4 files",
            "things": "text",
            "model": "all-MiniLM-L6-v2",
            "sites": 3,
            "rounds": 9,
            "rank": 8,
            "own_sites": True,
            "deadline": None,
            "layers": "4-5",
            "max_test": 300,
            "tested": 1234,
            "mechanism": "dp_sgd",
            "unit": "example",
            "epsilon": 6.0,
            "delta": 1e-5,
        },
        "asked": {
            "minutes": 20.0,
            "quick": False,
            "language": "en",
            "price_per_gb": 0.09,
            "currency": "USD",
            "trainings_per_month": 4.0,
            "canaries": 200,
            "seconds": 1100.0,
        },
        "whole": True,
        "runs": 31,
        "failed": 1,
        "refused": [],
        "recommendation": {
            "decision": "roll_out",
            "certainty": "high",
            "method": "ffa_lora",
            "alike": ["ffa_lora", "fedavg_lora"],
            "gain": interval(0.03, 0.01),
            "repetitions": 5,
        },
        "learning_rate": 1.0,
        "majority": 0.563,
        "privacy": [
            {"epsilon": e, "each": {}, **interval(mean, 0.012)}
            for e, mean in ((None, 0.81), (6.0, 0.79), (3.0, 0.775), (1.0, 0.71))
        ],
        "privacy_cost": interval(0.02, 0.008),
        "tightest": 3.0,
        "month": {"trainings": 4, "epsilon": 13.4},
        "methods": methods,
        "privacy_of": "ffa_lora",
        "against_the_other": {
            "method": "fedavg_lora",
            "verdict": "alike",
            **interval(0.002, 0.01),
        },
        "paired": {"together": 0.79, "alone": 0.76},
        "sites": [
            {
                "name": name,
                "examples": 1234,
                "together": 0.75 + gain,
                "alone": 0.75,
                "gain": interval(gain, half),
            }
            for name, gain, half in sites
        ],
        "clock": None,
        "sensitivity": {
            "spread": 0.01,
            "bars": {
                "optimizer.learning_rate": _points((0.5, -0.04), (2.0, -0.015)),
                "method.init": _points(("gaussian", -0.008), ("orthonormal", 0.005)),
                "method.rank": _points((4, -0.003), (16, 0.001)),
                "privacy.clip_norm": _points((0.5, -0.01), (2.0, -0.02)),
                "method.freeze": _points(("thaw 0.5 rank", -0.02)),
            },
        },
        "risk": {
            "method": "ffa_lora",
            "runs": 11,
            "failed": 1,
            "safe_accuracy": 0.768,
            "worst": 0.781,
        },
        "audit": {
            "claimed": 6.0,
            "lower_bound": 0.83,
            "ceiling": 6.4,
            "delta": 1e-5,
            "canaries": 200,
            "confidence": 0.95,
            "holds": True,
        },
        "next": {"longer": True, "rounds": 9},
        "spent": {
            "epsilon": 41.2,
            "delta": 1e-5,
            "how": "25 runs composed, each at its clients' dearest",
            "private": 25,
            "open": 6,
        },
        "releasable": True,
    }
    return found | changes


def with_links() -> dict[str, Any]:
    """Returns an example whose sites' machines and links are known."""
    found = example()
    for one in found["methods"]:
        one["simulated_seconds"] = one["bytes_per_site"] / 1e3
    clock = {
        "slowest": "nyt",
        "seconds": 95.0,
        "second": 3.5,
        "adapted": {
            "deadline": 31.0,
            "seconds": 281.0,
            "seconds_before": 1355.0,
            "accuracy": 0.77,
            "accuracy_before": 0.79,
        },
    }
    return found | {"clock": clock}


def barely_begun() -> dict[str, Any]:
    """Returns an example that was stopped after one run."""
    nothing = interval(None)
    found = example(
        whole=False,
        runs=1,
        privacy=[{"epsilon": 6.0, "each": {}, **interval(0.77)}],
        privacy_cost=nothing,
        tightest=None,
        paired={"together": None, "alone": None},
        against_the_other=None,
        sites=[],
        sensitivity={"bars": {}, "spread": None},
        risk={"method": "ffa_lora", "runs": 1, "failed": 0, "safe_accuracy": None, "worst": 0.77},
        audit=None,
        refused=["Client 'c' has 1 training examples."],
        releasable=False,
    )
    found["asked"] |= {"quick": True, "price_per_gb": None}
    found["recommendation"] |= {
        "decision": "not_shown",
        "certainty": "low",
        "gain": nothing,
        "repetitions": 0,
    }
    found["methods"][1]["accuracy"] = nothing
    found["methods"][0]["accuracy"] = interval(0.77)
    found["spent"] |= {"private": 1, "open": 0, "epsilon": None, "how": "added up"}
    return found


def _points(*pairs: tuple[Any, float]) -> list[dict[str, Any]]:
    return [{"value": value, "change": change} for value, change in pairs]
