"""What is changed against the plain run, and what a case is therefore asked. One change at a time can be judged."""

from dataclasses import dataclass
from functools import cached_property

from labkit.adaptation.prompts import Message, PromptVariant
from labkit.adaptation.rag import Index, Library, ground
from labkit.evaluation.cases import Case
from labkit.evaluation.forms import schema_of


@dataclass(frozen=True)
class Asked:
    """What a target is asked: the conversation, and the JSON Schema that the answer is kept to, where there is one."""

    messages: tuple[Message, ...]
    schema: dict | None = None


def plainly(question: str) -> Asked:
    """A question with nothing around it."""
    return Asked(({"role": "user", "content": question},))


@dataclass(frozen=True)
class Levers:
    """The documents that cases without a note are grounded in, the prompt around each question, and whether an answer
    that must be a form is decoded within the form's schema. None of them is the plain run."""

    library: Library | None = None
    prompt: PromptVariant | None = None
    constrained: bool = False

    def asked(self, case: Case) -> Asked:
        """A case that comes with a note keeps it; any other gets the best passage of the library."""
        question = self._question(case)
        messages = self.prompt.messages_for(question) if self.prompt else plainly(question).messages
        return Asked(tuple(messages), schema_of(case.form) if self.constrained and case.form else None)

    def as_dict(self) -> dict:
        """What eval_summary.json records of those that are used; empty for the plain run."""
        used = dict(self.library.as_lever()) if self.library else {}
        if self.prompt:
            used["prompt"] = {"name": self.prompt.name, "version": self.prompt.version}
        if self.constrained:
            used["schema"] = "answers that must be a form are decoded within its schema"
        return used

    @property
    def label(self) -> str:
        """The same in a few words, for the rows: "plain" without any."""
        ranking = (self.library.embeddings or "bm25") if self.library else ""
        words = [f"prompt {self.prompt.label}" if self.prompt else "", f"rag {ranking}" if ranking else ""]
        return " + ".join(word for word in [*words, "schema" if self.constrained else ""] if word) or "plain"

    @property
    def prompt_version(self) -> str:
        return self.prompt.label if self.prompt else ""

    def _question(self, case: Case) -> str:
        return case.full_prompt() if case.context_id or not self.library else ground(self._index, case.prompt).prompt

    @cached_property
    def _index(self) -> Index:
        return self.library.index()


PLAIN = Levers()
