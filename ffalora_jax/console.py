"""What a person sees in the terminal: one progress line while a run goes on, a table at its end."""

import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ffalora_jax.loaded_run import Run
from ffalora_jax.loop import Event, Observer
from ffalora_jax.report import words


@contextlib.contextmanager
def progress(title: str = "") -> Iterator[Observer]:
    """Shows round, accuracy, epsilon, bytes and time left, on stderr; lines if it is no terminal."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield lambda event: _print_line(console, title, event)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[facts]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title or "run", total=1, facts="")
        accuracy: list[float] = []

        def observe(event: Event) -> None:
            if event.line is None:
                bar.update(task, description=_label(title, event.stage))
                if event.rounds:
                    bar.update(task, total=event.rounds, completed=event.rounds_done)
                return
            if event.line["accuracy"] is not None:
                accuracy.append(event.line["accuracy"])
            shown = words.percent(accuracy[-1]) if accuracy else "–"
            bar.update(
                task,
                description=_label(title, event.stage),
                completed=event.rounds_done,
                total=event.rounds,
                facts=_facts(event, shown),
            )

        yield observe


def show_run(run: Run) -> None:
    """Prints a run's result: table, sites, where the report is."""
    console = Console()
    show_comparison([run], console)
    sites = run.metrics[-1].get("test_accuracy_per_client") if run.metrics else None
    if sites:
        each = ", ".join(f"{name} {words.percent(value)}" for name, value in sites.items())
        console.print(f"per site: {each}", highlight=False, markup=False)
        if judged := words.judged(run, "{}"):
            console.print(judged, highlight=False)
    if members := run.metrics[-1].get("members") if run.metrics else None:
        each = ", ".join(map(words.percent, members["test_accuracy"]))
        spread = f"standard deviation {100 * members['spread']:.1f} points"
        console.print(f"members alone: {each} ({spread} over the initialisations)", highlight=False)
    if words.diverged(run):
        console.print(f"warning: {words.answer(run)}", style="yellow", markup=False)
    for warning in run.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)
    console.print(f"report: {run.folder.report}", highlight=False, markup=False, soft_wrap=True)


def show_comparison(runs: list[Run], console: Console | None = None) -> None:
    """Prints one line a run: accuracy, epsilon, bytes, seconds."""
    table = Table(box=None, pad_edge=False)
    for name in ("run", "test", "epsilon", "a site", "in all", "seconds"):
        table.add_column(name, justify="left" if name == "run" else "right", no_wrap=True)
    rows = [words.row(run) for run in runs]
    for facts in rows:
        table.add_row(
            facts.label,
            words.percent(facts.accuracy),
            words.number(facts.epsilon),
            words.size(facts.bytes_per_client),
            words.size(facts.bytes_total),
            f"{facts.seconds:.0f}",
        )
    console = console or Console()
    console.print(table)
    guessing = (
        "test: accuracy at the end; always naming each site's commonest class: "
        f"{words.percent(rows[0].majority)}"
    )
    tokens = "test: the share of the responses' tokens predicted, each from all before it"
    has_classes = rows[0].majority is not None or rows[0].accuracy is None
    console.print(guessing if has_classes else tokens, highlight=False)


def _label(title: str, stage: str) -> str:
    return f"{title}: {stage}" if title else stage


def _facts(event: Event, accuracy: str) -> str:
    assert event.line is not None
    epsilon = words.number(event.line["epsilon"])
    return f"validation {accuracy}  epsilon {epsilon}  sent {words.size(event.bytes_total)}"


def _print_line(console: Console, title: str, event: Event) -> None:
    text = _label(title, event.stage)
    if event.line is None and event.rounds:
        text += f" {event.rounds_done}/{event.rounds}"
    if event.line is not None:
        facts = _facts(event, words.percent(event.line["accuracy"]))
        text = f"{_label(title, 'round')} {event.rounds_done}/{event.rounds}  {facts}"
    console.print(text, highlight=False, markup=False, soft_wrap=True)
