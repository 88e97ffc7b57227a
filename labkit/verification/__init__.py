"""Read a pack back and say what it supports: artifact rules, cross-checks between files, and claims.

`rules.py`, `crosschecks.py` and `claims.py` are each one table; adding a rule is adding a row and a function.
"""

from labkit.verification.verdicts import Finding, Verdict, Verification
from labkit.verification.verify import LESSONS, verify

__all__ = ["LESSONS", "Finding", "Verdict", "Verification", "verify"]
