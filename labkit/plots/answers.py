"""Evaluation: failures by risk, what changed case by case, and levers side by side."""

import textwrap
from collections.abc import Mapping

from labkit.evaluation.compare import Comparison
from labkit.levers.table import LeverTable, spread
from labkit.plots.figure import BLUE, GREY, ORANGE, VERMILION, Plot, whole_numbers


def failure_table(summary: Mapping) -> Plot:
    """Passed and failed cases by risk, from eval_summary.json: one bar for each risk and never one average."""
    by_risk = summary["by_risk"]
    risks = list(by_risk)
    passed = [by_risk[risk]["passed"] for risk in risks]
    failed = [by_risk[risk]["failed"] for risk in risks]
    figure = Plot(7.0, 0.5 * len(risks) + 1.4)
    axes = figure.subplots()
    bars = (
        axes.barh(risks, passed, color=BLUE, label="passed"),
        axes.barh(risks, failed, left=passed, color=ORANGE, hatch="//", edgecolor="white", label="failed"),
    )
    for container, counts in zip(bars, (passed, failed), strict=True):
        numbers = [str(count) if count else "" for count in counts]
        for text in axes.bar_label(container, numbers, label_type="center"):
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.5} if text.get_text() else None)
    axes.invert_yaxis()
    whole_numbers(axes, "x")
    axes.set(xlabel="cases", title=f"{summary.get('cases', sum(passed) + sum(failed))} fixed cases by risk")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def case_changes(*comparisons: Comparison) -> Plot:
    """Fixed cases to the right and broken ones to the left, for each risk: one panel for each comparison."""
    tables = [comparison.by_risk() for comparison in comparisons]
    heights = [0.5 * len(table) + 1.6 for table in tables]
    figure = Plot(7.0, sum(heights))
    panels = figure.subplots(len(tables), squeeze=False, height_ratios=heights)[:, 0]
    widest = max([1, *(max(row["fixed"], row["broken"]) for table in tables for row in table.values())])
    for axes, comparison, table in zip(panels, comparisons, tables, strict=True):
        _draw_changes(axes, comparison, table)
        axes.set_xlim(-widest - 1, widest + 1)
    return figure


def _draw_changes(axes, comparison: Comparison, by_risk: Mapping[str, Mapping[str, int]]) -> None:
    looks = {"fixed": {"color": BLUE}, "broken": {"color": ORANGE, "hatch": "//", "edgecolor": "white"}}
    for name, sign in (("fixed", 1), ("broken", -1)):
        counts = [row[name] for row in by_risk.values()]
        bars = axes.barh(list(by_risk), [sign * count for count in counts], label=name, **looks[name])
        axes.bar_label(bars, [str(count or "") for count in counts], padding=3)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    whole_numbers(axes, "x")
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    setting = f"\n{textwrap.fill(comparison.setting, 70)}" if comparison.setting else ""
    axes.set(xlabel="cases whose verdict changed", title=f"{comparison.after} against {comparison.before}{setting}")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def lever_bars(table: LeverTable) -> Plot:
    """For each group of cases the share that passes with each lever: the bar is the worst seed, the line reaches to the
    best. Levers that lose a case which the plain run passes are hatched in that group.
    """
    figure = Plot(width=9.0, height=1.2 + 1.15 * len(table.groups))
    panels = figure.subplots(len(table.groups), 1, sharex=True, squeeze=False)[:, 0]
    for axes, group in zip(panels, table.groups, strict=True):
        for number, lever in enumerate(table.levers):
            least, most, total = table.passed(lever, group)
            lost = any(row.count(group).broken for row in table.runs_of(lever))
            colour = GREY if lever == table.levers[0] else VERMILION if lost else BLUE
            axes.bar(number, least / total, color=colour, hatch="//" if lost else "", edgecolor="white")
            axes.plot([number, number], [least / total, most / total], color="black", lw=2)
            axes.annotate(spread(least, most), (number, most / total), ha="center", va="bottom", fontsize=8)
        axes.set(ylim=(0, 1.3), yticks=[0, 1], yticklabels=["0", str(total)])
        axes.set_title(group, loc="left", fontsize=9, pad=2)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xticks(range(len(table.levers)), table.levers, rotation=20)
    figure.suptitle("cases passed; hatched: a case that the plain run passes is lost", fontsize=10)
    return figure
