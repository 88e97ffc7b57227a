"""Errors that a learner reads: what happened, where, and what to do next."""


class LabError(Exception):
    """A failure with a remedy.

    `what` says what happened, `next_step` what to do about it, `where` the file, row, cell or port concerned.
    The command line prints the three and exits with `exit_code`; it never shows a traceback for one of these.
    """

    exit_code = 2

    def __init__(self, what: str, next_step: str, where: str = ""):
        super().__init__(what)
        self.what, self.next_step, self.where = what, next_step, where

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        return f"{self.what}{place}. Next: {self.next_step}"
