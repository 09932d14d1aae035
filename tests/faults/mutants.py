"""Mutation testing: small faults are put into the code, one by one; its tests must fail for each.

Claim: of the mutants of each module in mutants.toml at least 90 % are killed by that module's tests, those
left out that stand there because nothing can kill them; and every one that is not killed stands there.
Run: python -m tests.faults.mutants [--only methods/rolora.py ...] [--every N] [--jobs 2] [--found FILE]
     Time: one to two hours on two cores. Needs cosmic-ray (extra `mutants`), whose operators make them.

One process imports what is the same for all; each mutant is a fork of it that runs the tests in a copy of the
code. --found keeps what was found and goes on from there; --every 5 takes each fifth mutant.
"""

import argparse
import ast
import collections
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "ffalora_jax"
TABLE = Path(__file__).with_suffix(".toml")
SECONDS, SHARE = 120, 0.9
"""Of the processor, however busy the machine is; what waits for ever is ended after ten times that."""
OPERATORS = """
ReplaceBinaryOperator_Add_Sub ReplaceBinaryOperator_Sub_Add ReplaceBinaryOperator_Mul_Div
ReplaceBinaryOperator_Div_Mul ReplaceBinaryOperator_Pow_Mul ReplaceBinaryOperator_FloorDiv_Div
ReplaceBinaryOperator_Mod_Div ReplaceBinaryOperator_BitAnd_BitOr ReplaceBinaryOperator_BitOr_BitAnd
ReplaceComparisonOperator_Eq_NotEq ReplaceComparisonOperator_NotEq_Eq ReplaceComparisonOperator_Lt_LtE
ReplaceComparisonOperator_LtE_Lt ReplaceComparisonOperator_Gt_GtE ReplaceComparisonOperator_GtE_Gt
ReplaceComparisonOperator_Is_IsNot ReplaceComparisonOperator_IsNot_Is ReplaceUnaryOperator_USub_UAdd
ReplaceUnaryOperator_Delete_Not ReplaceUnaryOperator_Delete_Invert AddNot ReplaceTrueWithFalse
ReplaceFalseWithTrue ReplaceAndWithOr ReplaceOrWithAnd NumberReplacer ZeroIterationForLoop
""".split()
"""One replacement for each operator of the language: further ones of the same place tell little more."""


class Mutant(NamedTuple):
    """One fault, the place in words that survive a moved line, and the text with the fault in it."""

    module: str
    operator: str
    line: str
    number: int
    row: int
    text: str

    @property
    def name(self) -> tuple[str, str, str, int]:
        """What it is known by in mutants.toml."""
        return self.module, self.operator, self.line, self.number


class Tests(NamedTuple):
    """What must kill the mutants of a module."""

    words: list[str]
    """Arguments of pytest."""
    fresh_cache: bool
    """Whether what the package keeps on disk is left out: it may be what the module computes."""


def main() -> int:
    """Runs the mutants; the exit code says whether enough were killed and all others are explained."""
    table = tomllib.loads(TABLE.read_text())
    tests = {
        module: Tests(
            [word.format(name=Path(module).stem) for word in group["tests"]],
            group.get("fresh_cache", False),
        )
        for group in table["group"]
        for module in group["modules"]
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=tests, metavar="MODULE", default=list(tests))
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--found", type=Path)
    options = parser.parse_args()
    import_what_is_the_same()
    found = kept(options.found)
    with tempfile.TemporaryDirectory(prefix="mutants-") as home:
        os.environ["FFALORA_TEST_CACHE"] = str(Path(home, "cache"))
        places = [copied(Path(home, f"job-{job}")) for job in range(options.jobs)]
        for number, module in enumerate(options.only):
            if tests[module] not in [tests[before] for before in options.only[:number]]:
                sound(module, tests[module], places[0])
            todo = [m for m in list(mutants(module))[:: options.every] if m.name not in found]
            for mutant, outcome in outcomes(todo, tests[module], places):
                found[mutant.name] = outcome
                said = f"{module}:{mutant.row} {mutant.operator} {mutant.number}: {mutant.line}"
                print(f"{outcome}: {said}", flush=True)
                if options.found:
                    with options.found.open("a") as file:
                        file.write(json.dumps([*mutant.name, outcome]) + "\n")
    explained = {tuple(s[k] for k in Mutant._fields[:4]) for s in table.get("survivor", [])}
    return report(found, options.only, explained)


def kept(file: Path | None) -> dict[tuple, str]:
    """Returns what an earlier run found."""
    lines = file.read_text().splitlines() if file and file.is_file() else []
    return {tuple(name): outcome for *name, outcome in map(json.loads, lines)}


def report(found: dict[tuple, str], modules: list[str], explained: set[tuple]) -> int:
    """Prints a line a module; 1 where too few were killed or one that survived is not explained."""
    wrong = 0
    for module in modules:
        ends = collections.Counter(out for name, out in found.items() if name[0] == module)
        alive = {name for name, out in found.items() if name[0] == module and out == "survived"}
        killed, killable = ends.total() - len(alive), ends.total() - len(alive & explained)
        share = killed / max(1, killable)
        print(
            f"{module}: {ends.total()} mutants, {killed} killed ({ends['timed out']} by time): {share:.1%} "
            f"of the {killable} that can be, {killed / max(1, ends.total()):.1%} of all; {len(alive)} "
            f"survived, {len(alive - explained)} of them unexplained"
        )
        wrong += (killable > 0 and share < SHARE) or not alive <= explained
    return 1 if wrong else 0


def mutants(module: str) -> Iterator[Mutant]:
    """All mutants of a module but those of annotations, which no test can see."""
    from cosmic_ray.ast import Visitor, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.operators.provider import OperatorProvider

    class Places(Visitor):
        def visit(self, node):
            starts.extend(start for start, _ in operator.mutation_positions(node))
            return node

    source = (PACKAGE / module).read_text()
    lines, unseen = source.splitlines(), list(annotations(source))
    for name in OPERATORS:
        operator, starts, seen = OperatorProvider()[name](), [], collections.Counter()
        Places().walk(get_ast(source))
        for occurrence, start in enumerate(starts):
            line = lines[start[0] - 1].strip()
            seen[line] += 1
            is_star = lines[start[0] - 1][start[1] :].startswith("*, ")  # keyword arguments follow
            if not is_star and not any(begin <= start < end for begin, end in unseen):
                text = mutate_code(source, operator, occurrence)
                yield Mutant(module, name, line, seen[line], start[0], text)


def annotations(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where the annotations of a source begin and end."""
    for node in ast.walk(ast.parse(source)):
        for field in ("annotation", "returns"):
            found = getattr(node, field, None)
            if found is not None:
                yield (found.lineno, found.col_offset), (found.end_lineno, found.end_col_offset)


def outcomes(
    todo: Iterable[Mutant], tests: Tests, places: list[Path]
) -> Iterator[tuple[Mutant, str]]:
    """Runs the mutants, one in each place at a time: killed, survived or timed out."""
    todo, free, running = iter(todo), list(places), {}
    while True:
        while free and (mutant := next(todo, None)):
            place = free.pop()
            (place / "ffalora_jax" / mutant.module).write_text(mutant.text)
            running[begin(place, tests)] = mutant, place, time.monotonic() + 10 * SECONDS
        if not running:
            return
        time.sleep(0.05)
        for child, (mutant, place, deadline) in list(running.items()):
            outcome = ended(child, deadline)
            if outcome:
                shutil.copy2(PACKAGE / mutant.module, place / "ffalora_jax" / mutant.module)
                free.append(place)
                del running[child]
                yield mutant, outcome


def ended(child: int, deadline: float) -> str:
    """How a child ended, or an empty text while it runs; after the deadline it is killed.

    The system ends it sooner where it has used up its time of the processor.
    """
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return "timed out"
    if pid:
        return "killed" if status else "survived"
    if time.monotonic() < deadline:
        return ""
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timed out"


def sound(module: str, tests: Tests, place: Path) -> None:
    """Runs the tests without a mutant.

    Raises:
        SystemExit: They fail, or take so long that a mutant would be killed by the clock alone.
    """
    for limit in (10 * SECONDS, SECONDS // 2):  # the first compiles, as no other does
        start = time.monotonic()
        child, outcome = begin(place, tests, limit, keep=True), ""
        while not outcome:
            time.sleep(0.05)
            outcome = ended(child, start + 10 * limit)
        if outcome != "survived":
            said = (place / "out").read_text()[-3000:]
            raise SystemExit(f"{said}\n{module}: {outcome} without a mutant, in {limit} s")
    print(f"{module}: its tests take {time.monotonic() - start:.0f} s", flush=True)


def copied(place: Path) -> Path:
    """Makes a copy of the code and the tests, with the rest linked."""
    place.mkdir()
    for path in ROOT.iterdir():
        if path.name in ("ffalora_jax", "tests"):
            shutil.copytree(path, place / path.name)
        elif not path.name.startswith("."):
            (place / path.name).symlink_to(path)
    return place


def import_what_is_the_same() -> None:
    """Imports what no mutant changes; nothing here may start a thread, since a fork has one only."""
    import beartype  # noqa: F401
    import cosmic_ray.mutating  # noqa: F401
    import dp_accounting  # noqa: F401
    import flax.nnx  # noqa: F401
    import hypothesis.strategies  # noqa: F401
    import jax.numpy  # noqa: F401
    import jax_privacy  # noqa: F401
    import jaxtyping  # noqa: F401
    import optax  # noqa: F401
    import orbax.checkpoint  # noqa: F401
    import pytest  # noqa: F401


def begin(place: Path, tests: Tests, seconds: int = SECONDS, keep: bool = False) -> int:
    """Starts the tests in a fork that works in a place; returns its process id.

    Args:
        place: copy of the code.
        tests: which.
        seconds: time of the processor after which the system ends it.
        keep: whether compiled Python is written, which then spares all later ones the time.
    """
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    out = os.open(place / "out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    code = 1
    try:
        code = _test(place, tests, keep)
    except BaseException:  # a fork must never come back into the loop of its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _test(place: Path, tests: Tests, keep: bool) -> int:
    import pytest

    os.chdir(place)
    os.environ["PYTHONPATH"] = str(place)
    if tests.fresh_cache:  # but for compiled programs
        shared, fresh = Path(os.environ["FFALORA_TEST_CACHE"]), place / "cache"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        (shared / "xla").mkdir(exist_ok=True, parents=True)
        (fresh / "xla").symlink_to(shared / "xla")
        os.environ["FFALORA_TEST_CACHE"] = str(fresh)
    sys.path[:0] = [str(place)]
    for name in [n for n in sys.modules if n.split(".")[0] in ("ffalora_jax", "tests")]:
        del sys.modules[name]
    sys.dont_write_bytecode = not keep
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # a plugin would be compiled anew each time
    return int(pytest.main(["-x", "--rootdir", str(place), *tests.words]))


if __name__ == "__main__":
    sys.exit(main())
