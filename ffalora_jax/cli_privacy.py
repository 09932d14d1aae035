"""The command ``ffalora privacy``, and the argument parser of all small commands. Loads no JAX."""

import argparse
import json
import sys

from ffalora_jax.errors import InputError, positive


class Parser(argparse.ArgumentParser):
    """Argparse, with our form of error."""

    def error(self, message: str):
        raise InputError(f"{message[:1].upper()}{message[1:]}: see `{self.prog} --help`.")


def parser_of(command: str, description: str) -> Parser:
    """Returns the parser of one command."""
    return Parser(prog=f"ffalora {command}", description=description, allow_abbrev=False)


def run(arguments: list[str]) -> int:
    """Answers from the accountant alone: epsilon from noise, or noise from epsilon."""
    from ffalora_jax import accounting

    parser = parser_of(
        "privacy",
        "What Poisson-sampled DP-SGD costs: epsilon from a noise multiplier, or the other way round.",
    )
    parser.add_argument("--num-examples", type=int, required=True, help="examples of one client")
    parser.add_argument("--batch-size", type=int, required=True, help="expected examples in a draw")
    parser.add_argument(
        "--steps", type=int, required=True, help="rounds x local steps, over the whole run"
    )
    parser.add_argument("--epsilon", type=float, help="budget; asks for the noise multiplier")
    parser.add_argument(
        "--noise-multiplier", type=float, help="noise stddev / clip norm; asks for epsilon"
    )
    parser.add_argument("--delta", type=float, default=1e-5, help="default 1e-5")
    parser.add_argument(
        "--accountant", choices=("pld", "rdp"), default="pld", help="pld is tighter"
    )
    parser.add_argument(
        "--capacity", type=int, help="most examples in a draw, as runs cap it; default uncapped"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    asked = parser.parse_args(arguments)
    if (asked.epsilon is None) == (asked.noise_multiplier is None):
        raise InputError(
            "Expected exactly one of --epsilon and --noise-multiplier: give the one you know."
        )
    positive(noise_multiplier=asked.noise_multiplier, epsilon=asked.epsilon)
    draw = accounting.sampling(asked.num_examples, asked.batch_size, asked.capacity)
    if asked.steps < 1:
        raise InputError(f"Expected --steps >= 1, got {asked.steps}.")
    warning = accounting.check_delta(asked.delta, asked.num_examples)
    sums = (asked.steps, asked.delta, asked.accountant)
    sigma = asked.noise_multiplier
    if sigma is None:
        sigma = accounting.noise_for(draw, asked.epsilon, *sums)
    answer = {
        "epsilon": accounting.epsilon_of(draw, sigma, *sums),
        "delta": asked.delta,
        "noise_multiplier": sigma,
        "sampling_probability": draw.probability,
        "steps": asked.steps,
        "accountant": asked.accountant,
        "neighbours": accounting.NEIGHBOURS,
    }
    if asked.json:
        print(json.dumps(answer))
    else:
        for name, value in answer.items():
            print(f"{name:21} {value:.6g}" if isinstance(value, float) else f"{name:21} {value}")
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    return 0
