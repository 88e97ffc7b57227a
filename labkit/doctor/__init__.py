"""What to look at when something does not work: symptoms, checks that this machine can make, and the way round.

table holds the symptoms (data/landscape/troubleshooting.csv), the other modules the checks, examine puts both together.
"""

from labkit.doctor.examine import Diagnosis, as_dict, examine, exit_code
from labkit.doctor.findings import Finding, Question, State

__all__ = ["Diagnosis", "Finding", "Question", "State", "as_dict", "examine", "exit_code"]
