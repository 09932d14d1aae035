"""The licences of all that an installation brings, from the packages' own metadata.

Claim: every package names a licence, and none of them is a strong copyleft one.
Run: python -m tests.faults.licences     Time: a second
"""

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
STRONG = re.compile(r"\b(A?GPL)\b|Affero|(?<!Lesser )General Public", re.IGNORECASE)


def main() -> int:
    """Prints a line a package; the exit code says whether the claim holds."""
    wrong = absent = 0
    for line in CONSTRAINTS.read_text().splitlines():
        name = re.split(r"[=<>;\[ ]", line.strip())[0]
        if not name or name.startswith("#"):
            continue
        try:
            found = licence(distribution(name))
        except PackageNotFoundError:
            absent += 1
            continue
        strong = bool(STRONG.search(found)) and "LGPL" not in found
        wrong += strong or not found
        print(f"{name:32} {found or 'NONE NAMED'}{'  <- strong copyleft' if strong else ''}")
    print(f"{absent} of the constraints are not installed here; {wrong} to look at")
    return 1 if wrong else 0


def licence(package: Distribution) -> str:
    """Returns the licence that a package names: expression, classifiers, or the first line of the field."""
    facts = package.metadata
    expression = facts.get("License-Expression")
    if expression:
        return expression
    classifiers = [
        c.split(" :: ")[-1] for c in facts.get_all("Classifier") or () if c.startswith("License")
    ]
    if classifiers:
        return ", ".join(classifiers)
    field = (facts.get("License") or "").strip()
    return field.splitlines()[0] if field else ""


if __name__ == "__main__":
    sys.exit(main())
