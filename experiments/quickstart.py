"""Three runs on the same data, seed and number of steps: what privacy costs, and what FFA-LoRA saves.

FFA-LoRA without privacy, FFA-LoRA at epsilon 6 (`experiments/quickstart.toml`), plain LoRA at epsilon 6.
Optimisers were chosen on the validation part of seed 0: SGD .5 or 1 with privacy; without, where no clipping
tames SGD (.1 to .5 tried), Adam .003.

Run: make demo        (or: python experiments/quickstart.py [--model.name tiny --data.name synthetic ...])
"""

import sys
from pathlib import Path

from ffalora_jax import cli, flags
from ffalora_jax.console import progress, show_comparison, show_run
from ffalora_jax.errors import InputError
from ffalora_jax.report import write_report
from ffalora_jax.simulation import free_path, simulate

EXPERIMENT = Path(__file__).with_name("quickstart.toml")
RUNS = {
    "private": {},
    "open": {
        "privacy.mechanism": "none",
        "optimizer.name": "adam",
        "optimizer.learning_rate": 0.003,
    },
    "plain_lora": {"method.name": "fedavg_lora"},
}


def main(arguments: list[str]) -> int:
    """Runs the three, compares them, and says where the report is."""
    experiment, out = flags.read_run([str(EXPERIMENT), *arguments])
    folder = Path(out) if out else free_path(Path("runs", "quickstart"))
    cli.use_jax()
    runs = []
    for number, (name, changes) in enumerate(RUNS.items(), 1):
        with progress(f"{number}/{len(RUNS)} {name}") as observe:
            changed = experiment.replace(name=f"quickstart, {name}", **changes)
            runs.append(simulate(changed, out=folder / name, observe=observe))
    report = write_report(runs, folder / "report.html")
    show_run(runs[0])
    print()
    show_comparison([runs[1], runs[0], runs[2]])
    print(f"\nreport: {report.absolute()}")
    return cli.DONE


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        print(f"quickstart: {error}", file=sys.stderr)
        sys.exit(cli.BAD_INPUT)
    except KeyboardInterrupt as error:
        print(f"quickstart: {str(error) or cli.UNSAVED}", file=sys.stderr)
        sys.exit(cli.INTERRUPTED)
