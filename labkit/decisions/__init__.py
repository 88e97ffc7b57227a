"""From a project to the four decision files: which route, model, runtime and adaptation, and what must prove them.

The decision walks a ladder (task, licence, hardware, runtime, evidence) and keeps what it rejected, so that another
engineer can disagree with a reason instead of a taste. Nothing is loaded: a checkpoint's size and revision are read
from its file. The rules stand in project.py (what may be asked), open_weight.py (what a route can aim at) and
refusals.py (which models are refused, and why).
"""

from labkit.decisions.anti_patterns import anti_pattern_rows
from labkit.decisions.checkpoint import Checkpoint, describe_checkpoint
from labkit.decisions.files import project_of, record_rejection, rejected_in, write_decisions, write_open_weight_route
from labkit.decisions.ladder import ladder_rows
from labkit.decisions.open_weight import compare_routes, open_weight_route
from labkit.decisions.project import ALLOWED, Project, example_project, load_project, project_text
from labkit.decisions.refusals import Rejection, Terms, refusal, refusal_rows, reject, rejections
from labkit.decisions.runtimes import runtime_rows

__all__ = [
    "ALLOWED",
    "Checkpoint",
    "Project",
    "Rejection",
    "Terms",
    "anti_pattern_rows",
    "compare_routes",
    "describe_checkpoint",
    "example_project",
    "ladder_rows",
    "load_project",
    "open_weight_route",
    "project_of",
    "project_text",
    "record_rejection",
    "refusal",
    "refusal_rows",
    "reject",
    "rejected_in",
    "rejections",
    "runtime_rows",
    "write_decisions",
    "write_open_weight_route",
]
