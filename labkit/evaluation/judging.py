"""An LLM as a second judge: another endpoint grades each answer with a fixed prompt.

Its grade is an opinion with a model and a prompt behind it. It stands beside the verdict of the checks and never
replaces it; where it could not be read there is no grade, and no grade is no pass.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from labkit.adaptation.prompts import PromptVariant, read_prompt
from labkit.decoding import Sampling
from labkit.errors import LabError
from labkit.evaluation.levers import Asked
from labkit.evaluation.runner import Grade, Result
from labkit.evaluation.targets import Target, endpoint_target
from labkit.layout import DATA

JUDGE_PROMPT = DATA / "judges" / "pass_or_fail.yaml"
KEY_VARIABLE = "LABKIT_JUDGE_API_KEY"
GREEDY = Sampling(max_tokens=256)
SCHEMA = {
    "type": "object",
    "properties": {"pass": {"type": "boolean"}, "reason": {"type": "string"}},
    "required": ["pass", "reason"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Judge:
    target: Target
    prompt: PromptVariant

    def grade(self, result: Result) -> Grade | None:
        """None for a case without an answer. A server that refuses the form of the grade is asked without it."""
        if not result.answered or not result.reply.text.strip():
            return None
        messages = tuple(self.prompt.messages_for(question_about(result)))
        try:
            try:
                text = self.target.ask(Asked(messages, SCHEMA), GREEDY).text
            except LabError:
                text = self.target.ask(Asked(messages), GREEDY).text
        except LabError as error:
            return self._grade(None, f"no grade: {error.what}")
        return self._grade(*read_grade(text))

    def _grade(self, passed: bool | None, reason: str) -> Grade:
        return Grade(passed, reason, self.target.model, self.prompt.label)


def open_judge(base_url: str, model: str | None = None, prompt: PromptVariant | None = None) -> Judge:
    """The judge at an OpenAI-compatible server. Its key is LABKIT_JUDGE_API_KEY: the key of the server that is
    evaluated is never sent to another. Raises LabError when no server answers."""
    key = os.environ.get(KEY_VARIABLE, "").strip() or "none"
    return Judge(endpoint_target(base_url, key, model), prompt or read_prompt(JUDGE_PROMPT))


def question_about(result: Result) -> str:
    """What the judge is asked: the question with its note or passages, what a right answer does, and the answer."""
    question = result.asked.messages[-1]["content"]
    return f"Asked:\n{question}\n\nA right answer:\n{result.case.expected_behavior}\n\nAnswer:\n{result.reply.text}"


def read_grade(text: str) -> tuple[bool | None, str]:
    """Passed or not, and the reason; (None, why not) for anything but {"pass": true or false, "reason": "..."}."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None, f"no grade: not JSON: {text[:80]!r}"
    if not isinstance(said, dict) or set(said) != {"pass", "reason"}:
        return None, f"no grade: not the fields pass and reason: {text[:80]!r}"
    if not isinstance(said["pass"], bool) or not isinstance(said["reason"], str):
        return None, f"no grade: pass must be true or false, and reason text: {text[:80]!r}"
    return said["pass"], said["reason"].strip()


def with_grades(
    judge: Judge, results: Sequence[Result], on_grade: Callable[[Result], None] = lambda result: None
) -> list[Result]:
    """`results`, each with its grade, in the same order; the judge is asked as many at once as its target takes."""
    return list(_graded(judge, results, on_grade))


def _graded(judge: Judge, results: Sequence[Result], on_grade: Callable[[Result], None]) -> Iterator[Result]:
    with ThreadPoolExecutor(judge.target.concurrency) as pool:
        for result, grade in zip(results, pool.map(judge.grade, results), strict=True):
            graded = replace(result, grade=grade)
            on_grade(graded)
            yield graded
