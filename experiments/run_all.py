"""All small experiments, one after another, and their page: `make experiments`.

What is there is not run again (``--again`` does); one that stopped goes on; one that fails does not hold up
the others.

Run: python -m experiments.run_all [NAME ...] [--again]        Time: several hours on two cores
"""

import argparse
import subprocess
import sys

from experiments import _frame

CHEAPEST_FIRST = (
    *("noise_amplification", "sampler_truth", "alpha_and_rate", "fedsvd_is_orthonormal_ffa"),
    *("unequal_sites", "local_steps", "heterogeneity", "images", "next_token", "inits"),
    *("freezing", "table_1", "ranks", "many_clients"),
)


def main() -> int:
    """Runs what is asked for; returns how many did not end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", default=[])
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    unknown = set(options.names) - set(_frame.ORDER)
    if unknown:
        parser.error(f"no experiment {sorted(unknown)[0]!r}: choose from {', '.join(_frame.ORDER)}")
    failed = 0
    for name in options.names or CHEAPEST_FIRST:
        if not options.again and _frame.record_of(name) is not None:
            print(f"{name}: there", flush=True)
            continue
        print(f"{name} ...", flush=True)
        command = [sys.executable, "-m", f"experiments.{name}", "--small"]
        code = subprocess.run(command, cwd=_frame.HERE.parent, check=False).returncode
        if code == -2 or code == 130:  # Ctrl-C is meant for all of them
            return code
        failed += code != 0
    subprocess.run([sys.executable, "-m", "experiments.results_page"], cwd=_frame.HERE.parent)
    return failed


if __name__ == "__main__":
    sys.exit(main())
