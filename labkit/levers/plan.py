"""Which levers there are, in the order in which they are tried: cheapest to undo first. Loads without torch."""

from dataclasses import dataclass, replace

from labkit.adaptation.lora.settings import PRESETS, LoraSettings
from labkit.errors import LabError


@dataclass(frozen=True)
class Lever:
    """One change against the plain run, and nothing else.

    `prompt` names a variant of data/prompts, `constrained` decodes forms within their schema, `rag` puts the best
    passage before a question, `dtype` is another number format. `tuning` trains before the cases are asked, once for
    each seed.
    """

    name: str
    title: str
    prompt: str = ""
    constrained: bool = False
    rag: bool = False
    dtype: str = "auto"
    tuning: LoraSettings | None = None

    @property
    def trained(self) -> bool:
        return self.tuning is not None


PLAIN = Lever("plain", "nothing changed")
LESSON = "13.6"
FOLDER, CASES, RUN, RESULTS = "levers", "cases.csv", "run.json", "eval_results.csv"  # in the pack, and below it

_MINI = PRESETS["mini"]

LEVERS = (
    PLAIN,
    Lever("prompt", "another system prompt", prompt="desk"),
    Lever("schema", "forms decoded within their schema", constrained=True),
    Lever("rag", "the best passage put before the question", rag=True),
    Lever("int8", "linear layers in 8 bits", dtype="int8"),
    Lever("nf4", "linear layers in 4 bits", dtype="nf4-dq"),
    Lever("lora", "an adapter, trained on the new form and on chats of before", tuning=_MINI),
    Lever("no_replay", "an adapter, trained on the new form alone", tuning=replace(_MINI, replay_share=0.0)),
    Lever("full", "every weight trained, on the same chats as the adapter", tuning=replace(_MINI, full=True)),
)


def lever(name: str) -> Lever:
    """The lever called `name`. Raises LabError for any other text."""
    found = next((entry for entry in LEVERS if entry.name == name), None)
    if found is None:
        raise LabError(f"there is no lever called {name!r}", f"choose from {', '.join(entry.name for entry in LEVERS)}")
    return found
