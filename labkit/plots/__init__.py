"""The workbook's pictures. Each function returns a figure that a notebook shows by naming it; none touches pyplot.

A pyplot figure is global state: it shows twice, leaks memory, and depends on the backend a kernel happens to have.
Colours are those of Okabe and Ito (2008), which stay apart for colour-blind readers; pass and fail also differ by
hatching, so the pictures survive a black-and-white printer.
"""

from labkit.plots.answers import case_changes, failure_table, lever_bars
from labkit.plots.figure import Plot, save_plot
from labkit.plots.learning import LiveLoss, causal_mask, compare_curves, loss_curve
from labkit.plots.measured import edge_plot, latency_plot, quantization_plot, throughput_plot
from labkit.plots.planning import memory_bars, route_minutes

__all__ = [
    "LiveLoss",
    "Plot",
    "case_changes",
    "causal_mask",
    "compare_curves",
    "edge_plot",
    "failure_table",
    "latency_plot",
    "lever_bars",
    "loss_curve",
    "memory_bars",
    "quantization_plot",
    "route_minutes",
    "save_plot",
    "throughput_plot",
]
