"""What every picture is made of: a figure without pyplot, colours, and saving to a file."""

import io
from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from labkit.errors import LabError

BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#999999"
PALETTE = (BLUE, ORANGE, GREEN, VERMILION, "#56B4E9", "#CC79A7", "#F0E442", GREY)


class Plot(Figure):
    """A figure that any Jupyter front end shows as a picture, whether or not an inline backend is set up."""

    def __init__(self, width: float = 7.0, height: float = 3.6):
        super().__init__(figsize=(width, height), dpi=100, layout="constrained")
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def save_plot(figure: Plot, path: Path) -> None:
    """Write the picture; the file's name says in which format. Raises LabError for a format or a place that is none."""
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise LabError(
            f"{path.name} cannot be drawn: {error}", "give a .png or .svg file in a folder that is there"
        ) from None


def colours(count: int) -> list[str]:
    return [PALETTE[index % len(PALETTE)] for index in range(count)]


def whole_numbers(axes, which: str) -> None:
    from matplotlib.ticker import MaxNLocator

    getattr(axes, f"{which}axis").set_major_locator(MaxNLocator(integer=True))


def field_of(row: object, key: str) -> object:
    return row.get(key) if isinstance(row, Mapping) else getattr(row, key, None)
