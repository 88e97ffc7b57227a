"""What verification found, in the order in which people read it; the terminal and the page both follow it."""

from collections.abc import Sequence

from labkit.verification import Finding, Verdict, Verification

CONCLUSIONS = {
    0: "Everything that the route requires is supported.",
    1: "Something that the route requires is not there yet.",
    2: "Files contradict each other: this pack claims more than it shows.",
}


def sections(verification: Verification) -> list[tuple[str, Sequence[Finding]]]:
    """(title, findings) for each kind of finding that there is."""
    named = {
        "Artifacts": verification.artifacts,
        "Cross-checks": verification.cross_checks,
        "Claims": verification.claims,
    }
    return [(title, findings) for title, findings in named.items() if findings]


def conclusion(verification: Verification) -> str:
    """One sentence for the exit code, and how often each verdict was given."""
    verdicts = [finding.verdict for finding in verification.findings]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in Verdict)
    return f"{CONCLUSIONS[verification.exit_code]} ({counts})"


def actions(verification: Verification) -> list[Finding]:
    """What needs an action, contradictions first; each action once."""
    by_action: dict[str, Finding] = {}
    worst_first = sorted(verification.findings, key=lambda finding: finding.verdict is not Verdict.CONTRADICTED)
    for finding in worst_first:
        if finding.next_action and (finding.required or finding.verdict is Verdict.CONTRADICTED):
            by_action.setdefault(finding.next_action, finding)
    return list(by_action.values())
