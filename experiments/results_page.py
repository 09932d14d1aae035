"""docs/results.md from the files of results: nothing on that page is typed by hand.

Run: python -m experiments.results_page        (make results)        Time: seconds
"""

from pathlib import Path
from typing import Any

from experiments import _frame, compare_with_paper, noise_amplification
from experiments._record import interval

PAGE = _frame.HERE.parent / "docs" / "results.md"
PLOT = PAGE.with_name("noise_amplification.svg")
NOT_YET = "not run yet"
RULE = """# Results

Fourteen experiments, each a file in [experiments](../experiments) with its claim, command and time.
*Held*: the whole 95 % interval (Student's t over seeds, paired where two methods share a seed) lies on
the claimed side. *Not held*: it lies on the other one. *Not shown*: neither, so that this measurement
does not tell. A claim held if all of its parts did, and did not if one of them did not. Each part has an
interval of its own: of twenty parts with nothing in them one is expected to look like something. Methods
share one grid of rates; the best one is chosen by validation over all seeds and reported on the test
part. Runs that diverged count as the commonest class. Accuracies are in per cent with half their
interval, in brackets the rate, with a star at an end of the grid. Minutes are wall-clock time, with
whatever else the machine did. Every method under one mechanism: [all_methods.md](all_methods.md); every
mechanism audited: [audit.md](audit.md).

"""


def page(folder: Path = _frame.RESULTS) -> str:
    """Returns the page."""
    studies = [_frame.study_of(name) for name in _frame.ORDER]
    records = [_frame.record_of(study.name, folder) for study in studies]
    head = ["", "experiment", "claim", "verdict", "run"]
    pairs = list(zip(studies, records, strict=True))
    text = RULE + _frame.table(head, [_line(study, record) for study, record in pairs])
    text += "\n".join(["", *(_section(study, record) for study, record in pairs)])
    return text + "\n## Beside the paper\n\n" + compare_with_paper.section(folder)


def _line(study: _frame.Study, record: dict[str, Any] | None) -> list[str]:
    name = f"[{study.name}](../experiments/{study.name}.py)"
    if record is None:
        return [str(study.number), name, study.claim, NOT_YET, "-"]
    ran = f"{record['size']}, {record['machine']['date']}, {record['minutes']:g} min"
    return [str(study.number), name, study.claim, f"**{record['verdict']}**", ran]


def _section(study: _frame.Study, record: dict[str, Any] | None) -> str:
    small, full = study.budgets
    lines = [
        f"## {study.number}. {study.title}",
        "",
        f"Claim ({study.source}): {study.claim}",
        "",
    ]
    if record is None:
        lines += [f"**{NOT_YET[0].upper()}{NOT_YET[1:]}**: `{study.command}`, {small}.", ""]
        return "\n".join([*lines, f"Limits: {study.limits}", ""])
    lines += [f"**{record['verdict'][0].upper()}{record['verdict'][1:]}.** {ran(record)}", ""]
    parts = [
        [part["asked"], part["rule"], interval(part), part["verdict"]] for part in record["parts"]
    ]
    lines += [_frame.table(["part", "claimed", "measured (95 %)", "verdict"], parts)]
    lines += [_frame.table(record["head"], record["table"])]
    lines += [f"Limits: {study.limits}", ""]
    if record["size"] == "small":
        lines += [f"`{study.command} --full`: {full}.", ""]
    return "\n".join(lines)


def ran(record: dict[str, Any]) -> str:
    """Returns when, where and how much was run."""
    machine, runs = record["machine"], record["runs"]
    where = (
        machine["accelerator"]
        or f"{machine['cores']} core{'s' * (machine['cores'] > 1)} of {machine['cpu']}"
    )
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if k in ("jax", "flax"))
    counted = f"{runs['done']} runs" if runs["done"] else f"{len(record['rows'])} measurements"
    counted += f", {runs['failed']} diverged" if runs["failed"] else ""
    counted += f", {runs['refused']} refused" if runs["refused"] else ""
    seeds = f"{record['seeds']} seed{'s' * (record['seeds'] > 1)}"
    return (
        f"{record['size'].capitalize()} size, {seeds}, {counted}, {record['minutes']:g} minutes on {where}, "
        f"{machine['date']}, {versions}."
    )


def main() -> None:
    """Writes the page, and the plot of figure 1."""
    PAGE.write_text(page())
    record = _frame.record_of("noise_amplification")
    if record is not None:
        noise_amplification.draw(record["rows"], PLOT)
    print(PAGE)


if __name__ == "__main__":
    main()
