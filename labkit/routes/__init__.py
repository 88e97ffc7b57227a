"""The three compute routes: what each proves, what it cannot, and which one a learner should take."""

from labkit.routes.choice import DRILL, Constraints, RouteDecision, Scenario, choose_route, typical_constraints
from labkit.routes.forms import colab_notes_markdown, compute_route_markdown, gpu_plan_markdown, planned_stop
from labkit.routes.route import ROUTE_NAMES, Route, load_route, load_routes
from labkit.routes.sizes import ACCEPTANCE_STEPS, loss_band_says, training_size

__all__ = [
    "ACCEPTANCE_STEPS",
    "DRILL",
    "ROUTE_NAMES",
    "Constraints",
    "Route",
    "RouteDecision",
    "Scenario",
    "choose_route",
    "colab_notes_markdown",
    "compute_route_markdown",
    "gpu_plan_markdown",
    "load_route",
    "load_routes",
    "loss_band_says",
    "planned_stop",
    "training_size",
    "typical_constraints",
]
