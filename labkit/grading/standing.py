"""Where a pack stands on everything that can be judged: one verdict and one next action for each name of the tables.

`labkit verify` leaves out what neither the route requires nor the pack holds. A rubric may ask for it all the same:
here what was left out is "not yet", and not judged.
"""

from dataclasses import dataclass

from labkit.verification import Finding, Verdict, Verification
from labkit.verification.claims import CLAIMS
from labkit.verification.crosschecks import CROSS_CHECKS
from labkit.verification.rules import RULES

ARTIFACTS = tuple(rule.name for rule in RULES)
CHECKS = tuple(cross.name for cross in CROSS_CHECKS)
CLAIM_NAMES = tuple(claim.name.format(route="its route") for claim in CLAIMS)
_ACTIONS = {row.name: row.next_action for row in (*RULES, *CROSS_CHECKS)}
_CLAIM_ACTIONS = {name: claim.next_action for name, claim in zip(CLAIM_NAMES, CLAIMS, strict=True)}
_ALL_ACTIONS = {**_ACTIONS, **_CLAIM_ACTIONS}


@dataclass(frozen=True)
class Standing:
    """The verdict on one name; `next_action` is empty where it is supported. `judged` is whether verify named it."""

    verdict: Verdict
    next_action: str
    judged: bool = True


def standings(found: Verification) -> dict[str, Standing]:
    """Every name of the three tables, in their order, with where the pack stands on it."""
    said = {finding.name: _standing(finding) for finding in (*found.artifacts, *found.cross_checks)}
    said |= {name: _standing(claim) for name, claim in zip(CLAIM_NAMES, found.claims, strict=True)}
    return {name: said.get(name) or Standing(Verdict.NOT_YET, act, judged=False) for name, act in _ALL_ACTIONS.items()}


def _standing(finding: Finding) -> Standing:
    return Standing(finding.verdict, finding.next_action)
