"""A folder of strangers' packs, graded: each verified in a process of its own, marked by a rubric, compared for copies.

A grade is never more than what `labkit verify` says of the pack. A pack that cannot be read is a grade too.
"""

from labkit.grading.discovery import Submission, find_submissions
from labkit.grading.grade import UNREADABLE, Grade
from labkit.grading.rubric import Rubric, load_rubric
from labkit.grading.run import grade_folder

__all__ = ["UNREADABLE", "Grade", "Rubric", "Submission", "find_submissions", "grade_folder", "load_rubric"]
