"""What an OpenAI-compatible endpoint really supports, found by asking it, feature by feature.

A parameter that is accepted with 200 and then has no effect is the fault that this room exists to find: no client
notices it. `probes.py` is one table; adding a feature is adding a row and a function.
"""

from labkit.conformance.findings import Finding, Probe, Verdict
from labkit.conformance.limits import BrokenLimit, Held, break_limits
from labkit.conformance.probes import NOT_PROVED, PROBES, conformance, feature_rows

__all__ = [
    "NOT_PROVED",
    "PROBES",
    "BrokenLimit",
    "Finding",
    "Held",
    "Probe",
    "Verdict",
    "break_limits",
    "conformance",
    "feature_rows",
]
