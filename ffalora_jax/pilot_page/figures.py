"""The page's pictures: accuracy by epsilon, and what the result hangs on."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from ffalora_jax.pilot_page.texts import Texts, epsilon
from ffalora_jax.report.figures import FAINT, INK, color, drawing, literal

SIZE = (5.2, 2.9)


def by_epsilon(found: dict[str, Any], t: Texts) -> str | None:
    """Draws accuracy against epsilon, from no privacy to the strongest; None of a single one."""
    points = found["privacy"]
    if len(points) < 2:
        return None

    def draw(axes: Axes) -> None:
        for place, point in enumerate(points):
            mean, low, high = (point[name] for name in ("mean", "low", "high"))
            if low is not None:
                axes.plot([place, place], [low, high], color=color(0), linewidth=4, alpha=0.35)
            face = "white" if len(point["each"]) == 1 else color(0)
            axes.plot([place], [mean], "o", color=color(0), markerfacecolor=face)
            axes.annotate(f"{100 * mean:.1f} %", (place, mean), (7, 4), textcoords="offset points")
        if found["majority"] is not None:
            axes.axhline(found["majority"], color=FAINT, linestyle="--", linewidth=1)
        names = [epsilon(point["epsilon"], t("no_privacy")) for point in points]
        axes.set_xticks(range(len(points)), names)
        axes.set_xlim(-0.4, len(points) - 0.3)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel(t("axis_epsilon"))
        axes.set_ylabel(t("axis_accuracy"))

    return drawing(draw, SIZE)


def tornado(found: dict[str, Any], t: Texts) -> str | None:
    """Draws how far each setting moved the accuracy, the strongest on top; None of none."""
    bars, spread = found["sensitivity"]["bars"], found["sensitivity"]["spread"]
    if not bars:
        return None
    ordered = sorted(bars, key=lambda name: max(abs(one["change"]) for one in bars[name]))

    def draw(axes: Axes) -> None:
        if spread is not None:
            axes.axvspan(-100 * spread, 100 * spread, color=FAINT, alpha=0.25, linewidth=0)
        for place, name in enumerate(ordered):
            for point in sorted(bars[name], key=lambda point: -abs(point["change"])):
                width = 100 * point["change"]
                axes.barh(place, width, height=0.55, color=color(0 if width >= 0 else 1))
                axes.annotate(
                    literal(_value(point["value"])),
                    (width, place),
                    (4 if width >= 0 else -4, 0),
                    textcoords="offset points",
                    ha="left" if width >= 0 else "right",
                    va="center",
                    fontsize=8,
                )
        axes.axvline(0, color=INK, linewidth=1)
        names = [t(f"setting_{name.rpartition('.')[2]}") for name in ordered]
        axes.set_yticks(range(len(ordered)), names)
        axes.margins(x=0.25)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(t("axis_change"))

    return drawing(draw, SIZE)


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
