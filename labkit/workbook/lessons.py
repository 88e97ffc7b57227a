"""The lessons in reading order."""

from dataclasses import dataclass

from labkit.errors import LabError
from labkit.routes import Route


@dataclass(frozen=True)
class Lesson:
    """One notebook. `file` is its name in notebooks/; minutes differ by route and stand in the route file."""

    number: str
    file: str
    title: str

    def minutes(self, route: Route) -> int:
        return route.minutes[self.number]


LESSONS = (
    Lesson("13.0", "13_0_checklist.ipynb", "Plan and checklist"),
    Lesson("13.1", "13_1_compute_route.ipynb", "Compute route"),
    Lesson("13.2", "13_2_run_train_serve.ipynb", "Run, train, serve"),
    Lesson("13.3", "13_3_model_runtime.ipynb", "Model and runtime"),
    Lesson("13.4", "13_4_release_runbook.ipynb", "Release runbook"),
    Lesson("13.5", "13_5_model_landscape.ipynb", "Model landscape"),
    Lesson("13.6", "13_6_adaptation.ipynb", "Adaptation"),
    Lesson("13.7", "13_7_edge_deployment.ipynb", "Edge deployment"),
)


def lesson(number: str) -> Lesson:
    """The lesson called `number`, such as "13.2". Raises LabError for any other text."""
    for candidate in LESSONS:
        if candidate.number == number:
            return candidate
    raise LabError(f"there is no lesson {number!r}", f"choose one of {', '.join(entry.number for entry in LESSONS)}")


def run_order(number: str | None = None) -> tuple[Lesson, ...]:
    """One lesson, or all of them with 13.0 last: its boxes fill from what the other lessons left in the pack."""
    return (lesson(number),) if number else (*LESSONS[1:], LESSONS[0])
