"""The same cases for other tools, which ask the same server: files to run them with, and what could not be said."""

from labkit.evaluation.export.lm_eval import write_lm_eval
from labkit.evaluation.export.plan import Export
from labkit.evaluation.export.promptfoo import write_promptfoo

EXPORTS = {"lm-eval": write_lm_eval, "promptfoo": write_promptfoo}

__all__ = ["EXPORTS", "Export", "write_lm_eval", "write_promptfoo"]
