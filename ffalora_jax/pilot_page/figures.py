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
            axes.plot([place], [mean], "o", color=color(0))
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
    bars = found["sensitivity"]
    if not bars:
        return None
    base = bars[0]["base"]

    def reach(bar: dict[str, Any]) -> float:
        return max(abs(point["accuracy"] - base) for point in bar["points"])

    ordered = sorted(bars, key=reach)

    def draw(axes: Axes) -> None:
        for place, bar in enumerate(ordered):
            for point in sorted(bar["points"], key=lambda point: -abs(point["accuracy"] - base)):
                width = point["accuracy"] - base
                axes.barh(place, width, left=base, height=0.55, color=color(0 if width >= 0 else 1))
                side = 4 if width >= 0 else -4
                axes.annotate(
                    literal(_value(point["value"])),
                    (point["accuracy"], place),
                    (side, 0),
                    textcoords="offset points",
                    ha="left" if width >= 0 else "right",
                    va="center",
                    fontsize=8,
                )
        axes.axvline(base, color=INK, linewidth=1)
        names = [t(f"setting_{bar['setting'].rpartition('.')[2]}") for bar in ordered]
        axes.set_yticks(range(len(ordered)), names)
        axes.margins(x=0.25)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        axes.set_xlabel(t("axis_accuracy"))

    return drawing(draw, SIZE)


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
