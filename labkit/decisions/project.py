"""The project that is decided about: what may be asked for, and which wishes contradict each other."""

from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

from labkit.errors import LabError
from labkit.evidence import json_text, read_json
from labkit.routes import ROUTE_NAMES

ALLOWED = {
    "privacy": ("public", "private_docs", "regulated"),
    "available_route": ROUTE_NAMES,
    "budget_level": ("none", "small", "medium"),
    "use": ("production", "research"),
    "exposure": ("loopback", "public"),
    "auth": ("none", "api_key"),
}


@dataclass(frozen=True)
class Project:
    """What is to be built and under which limits.

    privacy: public, private_docs (a company's own notes) or regulated (law or contract says where data may be).
    budget_level: none, small (some dollars: one card by the hour) or medium (a large card, or several).
    use: production (which a research licence forbids) or research. exposure: loopback (this machine) or public, which
    needs auth. Raises LabError, naming the allowed values, for any other; for a rented GPU without a budget; for
    regulated data on free Colab, which no evidence could make right; and for a public service without auth.
    """

    task: str
    privacy: str
    available_route: str
    needs_service_api: bool
    needs_fine_tuning: bool
    budget_level: str
    use: str = "production"
    exposure: str = "loopback"
    auth: str = "none"

    def __post_init__(self):
        if not isinstance(self.task, str) or not self.task.strip() or "\n" in self.task:
            raise LabError("task is not a line of text", 'name the task, for example "course Q&A assistant"')
        for name, allowed in ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise LabError(f"{name} is {getattr(self, name)!r}", f"choose one of {', '.join(allowed)}")
        for name in ("needs_service_api", "needs_fine_tuning"):
            if not isinstance(getattr(self, name), bool):
                raise LabError(f"{name} is {getattr(self, name)!r}", "choose true or false")
        if self.available_route == "rented_gpu" and self.budget_level == "none":
            raise LabError("a rented GPU costs money and budget_level is none", "choose small, medium or another route")
        if self.available_route == "free_colab" and self.privacy == "regulated":
            raise LabError(
                "regulated data may not be uploaded to free Colab",
                "choose local_cpu, or work with invented text and privacy public",
            )
        if self.exposure == "public" and self.auth == "none":
            raise LabError(
                "public without auth: whoever finds the address uses the model, and you pay",
                "set auth to api_key, or exposure to loopback",
            )


def example_project(route: str = "rented_gpu") -> Project:
    """The chapter's project on `route`. Only the rented GPU is asked for a service API: the others cannot hold one."""
    return Project("course Q&A assistant", "private_docs", route, route == "rented_gpu", False, "small")


def load_project(path: Path) -> Project:
    """The project in a JSON file. Raises LabError for missing, unknown or wrong fields."""
    path = Path(path)
    try:
        values = read_json(path)
    except LabError as error:
        raise LabError(error.what, "give a JSON file with the fields that lesson 13.3 prints") from None
    return parse_project(values, path.name)


def parse_project(values: object, where: str) -> Project:
    """The project in `values`, as read from JSON. Raises LabError for missing, unknown or wrong fields."""
    wanted = {field.name for field in fields(Project) if field.default is MISSING}
    known = {field.name for field in fields(Project)}
    if not isinstance(values, dict) or not wanted <= set(values) <= known:
        odd = "it is not an object"
        if isinstance(values, dict):
            odd = ", ".join(sorted((wanted - set(values)) | (set(values) - known)))
        raise LabError(
            f"the project has missing or unknown fields: {odd}",
            f"give {', '.join(sorted(wanted))}, and {', '.join(sorted(known - wanted))} if you like",
            where=where,
        )
    return Project(**values)


def project_text(project: Project) -> str:
    """The project as the JSON that `--project` reads back."""
    return json_text(asdict(project))
