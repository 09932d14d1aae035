"""Every Python and every end of the version ranges: installed afresh, and the fast suite run there,
in random order.

Claim: the suite passes on Python 3.11, 3.12 and 3.13 as constraints.txt has them, and on the lowest versions
that pyproject.toml allows; the built wheel alone, outside the checkout, runs the quickstart.
Run: python -m tests.faults.pythons [--only 3.12 lowest wheel] [-- PYTEST ARGUMENTS]
     Time: 15 minutes a Python on two cores. Interpreters are python3.11, python3.12, ... of the PATH.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# In random order (pytest-randomly is installed), each case with a seed of its own, which it prints.
SUITE = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "--tb=short"]
FACTS = "import sys, jax, flax, numpy; print(*sys.version.split()[:1], jax.__version__, flax.__version__)"
LOWEST = "lowest"
CASES = ("3.11", "3.12", "3.13", LOWEST, "wheel")
OLDEST = "3.11"


class Cannot(Exception):
    """A case that cannot be run here, and why."""


def main() -> int:
    """Runs the cases; the exit code says whether all that could be run passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("pytest", nargs="*", help="in place of the whole fast suite")
    options = parser.parse_args()
    wrong = 0
    for case in options.only:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix=f"python-{case}-") as place:
            try:
                run = wheel if case == "wheel" else suite
                said = run(case, Path(place), options.pytest)
            except Cannot as why:
                print(f"{case}: not run, {why}", flush=True)
                continue
            except subprocess.CalledProcessError as error:
                wrong, said = wrong + 1, f"FAILED ({error.cmd[0]} ended with {error.returncode})"
        print(f"{case}: {said}, {(time.perf_counter() - start) / 60:.0f} minutes", flush=True)
    return 1 if wrong else 0


def suite(case: str, place: Path, arguments: list[str]) -> str:
    """Installs the checkout with its test extra and runs the tests."""
    python = environment(OLDEST if case == LOWEST else case, place)
    versions = lowest(python, place) if case == LOWEST else ROOT / "constraints.txt"
    # A copy: an editable install writes beside the sources, and the cases must not meet there.
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "build", "runs")
    copy = shutil.copytree(ROOT, place / "code", ignore=ignored)
    install(python, "-c", versions, "-e", f"{copy}[test]", "pytest-randomly")
    # An old package may warn of what a newer one that it needs has deprecated since.
    old = "ignore::DeprecationWarning", "ignore::FutureWarning"
    quiet = [part for one in old for part in ("-W", one)] if case == LOWEST else []
    called = [python, "-m", "pytest", *SUITE, *quiet, *arguments]
    subprocess.run(called, cwd=copy, check=True, env=clean() | {"FFALORA_SHARED": shared()})
    return f"passed with {facts(python, copy)}"


def wheel(case: str, place: Path, arguments: list[str]) -> str:
    """Builds the wheel, installs it alone, and runs the quickstart on the tiny model elsewhere."""
    python = environment(OLDEST, place)
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "build", "runs")
    copy = shutil.copytree(ROOT, place / "code", ignore=ignored)
    built = [python, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", place / "built", copy]
    subprocess.run(built, check=True, env=clean())
    shutil.copytree(copy / "experiments", place / "away" / "experiments")
    shutil.rmtree(copy)
    (found,) = (place / "built").glob("*.whl")
    install(python, "-c", ROOT / "constraints.txt", found)
    small = ["--model.name", "tiny", "--data.name", "synthetic", "--rounds", "3", "--out", "out"]
    called = [python, "experiments/quickstart.py", *small]
    subprocess.run(called, cwd=place / "away", check=True, env=clean())
    assert (place / "away" / "out" / "report.html").is_file()
    return f"the quickstart ran with {facts(python, place / 'away')}"


def environment(version: str, place: Path) -> Path:
    """Makes a virtual environment; returns its interpreter."""
    name = f"python{version}"
    found = shutil.which(name)
    if not found or subprocess.run([found, "--version"], capture_output=True).returncode:
        raise Cannot(f"there is no {name} on the PATH")
    subprocess.run([found, "-m", "venv", place / "venv"], check=True)
    return place / "venv" / "bin" / "python"


def install(python: Path, *what) -> None:
    """Installs with pip."""
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([python, "-m", "pip", "install", *quiet, *what], check=True, env=clean())


def lowest(python: Path, place: Path) -> Path:
    """Returns a constraints file of the lowest versions that pyproject.toml allows, by uv."""
    install(python, "uv")
    file = place / "lowest.txt"
    asked = ["pip", "compile", "--quiet", "--resolution", "lowest-direct", "--extra", "test"]
    shown = ["--no-header", "--no-annotate", "--python-version", OLDEST, "-o", file]
    called = [python, "-m", "uv", *asked, *shown, ROOT / "pyproject.toml"]
    subprocess.run(called, check=True, env=clean())
    return file


def facts(python: Path, where: Path) -> str:
    """Returns the versions that a case ran with."""
    found = subprocess.run([python, "-c", FACTS], cwd=where, capture_output=True, text=True)
    python_version, jax, flax = found.stdout.split()
    return f"Python {python_version}, jax {jax}, flax {flax}"


def shared() -> str:
    """Where the data beside the checkout lie."""
    return os.environ.get("FFALORA_SHARED", str(ROOT.parent / "shared"))


def clean() -> dict[str, str]:
    """The environment without what would let this process's packages in."""
    left_out = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in left_out}


if __name__ == "__main__":
    sys.exit(main())
