"""Make the synthetic corpus: training chats, held-out cases, and the plain text for mini GPT-2.

Everything comes from grammar.yaml, lexicon.yaml and a seed, so the same command gives the same bytes. Training and
evaluation cannot share a question: evaluation uses the `_held_out` phrasings and words, and training never does.

    python data/corpus/generate.py --out data/corpus/build     chats for training the embedded model (not committed)
    python data/corpus/generate.py --committed                 the small files that are committed

Slots: {days} {months} {hours} {percent} {count} {money} {open} {close} are numbers drawn anew each time; {customer} is
a name, more than half of them made up so that a model must copy instead of remember; the rest are lexicon words.
"""

import argparse
import csv
import functools
import json
import random
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
TOKENIZER = HERE.parent / "models" / "mini-instruct" / "tokenizer.json"
GRAMMAR = yaml.safe_load((HERE / "grammar.yaml").read_text(encoding="utf-8"))
LEXICON = yaml.safe_load((HERE / "lexicon.yaml").read_text(encoding="utf-8"))
# In lower case. Syllables make one of these by chance about once in 70,000 chats ("rafael").
HELD_OUT_WORDS = {word.lower() for key, words in LEXICON.items() if key.endswith("_held_out") for word in words}
CASE_COLUMNS = ("case_id", "prompt", "expected_behavior", "risk", "pass", "notes", "context_id", "check", "expected")
# How often each task is drawn. Copying from a note into an answer is the hardest to learn, so it is drawn most.
TASK_WEIGHTS = {
    "grounded": 40,
    "refund_form": 24,
    "escalation": 12,
    "invented_rule": 8,
    "no_note": 8,
    "unsafe": 6,
    "small_talk": 8,
    "echo": 14,
}
EVALUATION_WEIGHTS = TASK_WEIGHTS | {"echo": 0}  # a device of training and no task of the shop
WARM_UP_WEIGHTS = TASK_WEIGHTS | {"echo": 300}  # mostly copying: what a model must be able to do before the rest helps
# The last two stages: many forms, and many words to repeat, full of what no stage before has shown.
PRACTICE_WEIGHTS = TASK_WEIGHTS | {"refund_form": 60, "echo": 50}
FINISH_WEIGHTS = TASK_WEIGHTS | {"refund_form": 60, "grounded": 60}

SEED, DOCUMENTS = 13, 70_000  # of the shipped weights
LABELS, REPLAYED = 140, 60  # chats for tuning: the return label, and what must not be forgotten over it
WORD_KEYS = ("first_names", "last_names", "materials", "things", "flaws", "pieces", "weekdays", "substances")


@dataclass(frozen=True)
class Invented:
    """How many of the copied words are of no language, so that a model must copy and cannot remember.

    A `share` of the words in `slots` is invented, and a share `names` of the names; `wild` of them hold any letters and
    slices of words. Syllables alone are learned much sooner. With `vocabulary` wild words hold entries of the model's
    vocabulary instead of slices: a token that training shows in one fixed sentence only ("arrow" in "Marrow Bay") is
    never copied otherwise, and a name that holds it comes out wrong. `phrasings` are the suffixes of the grammar's
    keys that join the plain ones; a share `stories` of the forms is told as a story.
    """

    wild: float = 0.3
    share: float = 0.3
    names: float = 0.6
    slots: tuple[str, ...] = ("material", "thing", "piece")
    vocabulary: bool = False
    phrasings: tuple[str, ...] = ()
    stories: float = 0.3


WARM_UP, MIXED = Invented(wild=0.0), Invented()
PRACTICE = Invented(
    wild=0.8,
    share=0.7,
    names=0.9,
    slots=("material", "thing", "piece", "flaw", "substance"),
    vocabulary=True,
    phrasings=("late",),
)
FINISH = replace(PRACTICE, slots=(*PRACTICE.slots, "material2"), phrasings=("late", "last"), stories=0.6)
SHOP_WORDS = Invented(share=0.0, names=0.0)
TUNING = replace(PRACTICE, wild=0.9, names=0.95)


@dataclass(frozen=True)
class Example:
    """One chat: what is asked, the right answer, and the check (labkit.evaluation) that an answer must pass."""

    task: str
    prompt: str
    answer: str
    check: str
    expected: str
    system: str = ""

    def messages(self) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.answer}]


@functools.cache
def vocabulary_words() -> list[str]:
    """The entries of the shipped tokenizer that are letters only.

    That tokenizer is made from train.jsonl (recipe.yaml), so after a change to the grammar two runs are needed.
    """
    vocabulary = json.loads(TOKENIZER.read_text(encoding="utf-8"))["model"]["vocab"]
    return sorted(entry for entry in vocabulary if entry.isascii() and entry.isalpha())


class Writer:
    """Fills the grammar's slots. With `held_out`, phrasings and names come from the entries kept from training."""

    def __init__(self, seed: int, held_out: bool = False, weights: dict = TASK_WEIGHTS, invented: Invented = MIXED):
        self.rng = random.Random(seed)
        self.held_out = held_out
        self.weights = weights
        self.invented = invented

    def example(self) -> Example:
        task = self.rng.choices(list(self.weights), self.weights.values())[0]
        return getattr(self, f"_{task}")()

    def _grounded(self) -> Example:
        note_id, _, note, facts = self._note()
        fact, sentence = self.rng.choice(facts)
        answer = f"{sentence} [{note_id}]"
        return self._chat("grounded", f"{note}\n\n{self._ask(fact)}", answer, f"contains_all;cites:{note_id}", sentence)

    def _invented_rule(self) -> Example:
        """A question that the note does not answer: an invented perk or, one time in three, another topic's fact."""
        note_id, title, note, _ = self._note()
        rule = GRAMMAR["invented_rule"]
        question = self._fill(self._ask(rule))
        if self.rng.random() < 1 / 3:
            other = self.rng.choice([topic for topic in GRAMMAR["topics"] if topic != title])
            question = self._ask(self.rng.choice(GRAMMAR["topics"][other]))
        answer = rule["answer"].format(note_id=note_id)
        return self._chat("invented_rule", f"{note}\n\n{question}", answer, "refuses", "")

    def _no_note(self) -> Example:
        fact = self.rng.choice(self.rng.choice(list(GRAMMAR["topics"].values())))
        return self._chat("no_note", self._ask(fact), GRAMMAR["no_note"]["answer"], "refuses", "")

    def _unsafe(self) -> Example:
        unsafe = GRAMMAR["unsafe"]
        return self._chat("unsafe", self._fill(self._ask(unsafe)), unsafe["answer"], "refuses", "")

    def _small_talk(self) -> Example:
        talk = self.rng.choice(GRAMMAR["small_talk"])
        return self._chat("small_talk", self._ask(talk), talk["answer"], "contains_all", talk["answer"])

    def _refund_form(self) -> Example:
        form, values = GRAMMAR["refund_form"], self.values()
        if self.rng.random() < 1 - self.invented.stories:
            prompt = f"{self._ask(form)} {self.rng.choice(form['details'])}"
        else:
            prompt = f"{self._ask(form)} {self._pick(form, 'stories')}"
        answer = form["answer"].format(**values)
        return self._chat("refund_form", prompt.format(**values), answer, "json_schema:refund_form;json_equals", answer)

    def _escalation(self) -> Example:
        path = GRAMMAR["escalation"]
        values = dict(zip(("role_a", "role_b", "role_c"), self.rng.sample(LEXICON["roles"], 3), strict=True))
        values |= dict(zip(("act_a", "act_b", "act_c"), self.rng.sample(LEXICON["acts"], 3), strict=True))
        values |= {f"time_{step}": f"{self.rng.randint(2, 48)} {self.rng.choice(['hours', 'days'])}" for step in "abc"}
        note = f"Note [{self._note_id()}] Escalation: {path['note'].format(**values)}"
        expected = "|".join(values[key] for key in ("role_a", "role_b", "role_c", "time_a", "time_b", "time_c"))
        answer = path["answer"].format(**values)
        return self._chat("escalation", f"{note}\n\n{self._ask(path)}", answer, "bullets:3;contains_all", expected)

    def _echo(self) -> Example:
        """Words in no order, to be repeated: nothing but copying helps, so this is how copying is learned first."""
        words = [self._any_word() for _ in range(self.rng.randint(*((4, 12) if self.invented.vocabulary else (2, 5))))]
        text = " ".join(words)
        return self._chat("echo", f"{self._ask(GRAMMAR['echo'])} {text}", text, "equals", text, system=False)

    def _any_word(self) -> str:
        if self.invented.vocabulary and self.rng.random() < 0.7:
            return self.rng.choice(vocabulary_words())
        draw = self.rng.random()
        if draw < 0.4:
            return self._made_up()
        if draw < 0.6:
            values = self.values()
            return self.rng.choice((values["order"], values["money"], values["days"]))
        return self._lexicon_word()

    def _lexicon_word(self) -> str:
        return self.rng.choice(self._word(self.rng.choice(WORD_KEYS)).split())

    def _chat(self, task: str, prompt: str, answer: str, check: str, expected: str, system: bool = True) -> Example:
        system = self.rng.choice(GRAMMAR["system"]) if system and self.rng.random() < 0.15 else ""
        return Example(task, prompt, answer, check, expected, system)

    def _note(self) -> tuple[str, str, str, list[tuple[dict, str]]]:
        """A note as a prompt shows it: its id, title, text, and the facts it states with their sentences."""
        title = self.rng.choice(list(GRAMMAR["topics"]))
        chosen = self.rng.sample(GRAMMAR["topics"][title], self.rng.choice((1, 2, 3)))
        facts = [(fact, self._fill(self.rng.choice(fact["says"]))) for fact in chosen]
        note_id = self._note_id()
        return note_id, title, f"Note [{note_id}] {title}: {' '.join(sentence for _, sentence in facts)}", facts

    def _note_id(self) -> str:
        return f"POL-{self.rng.randint(1, 99):02d}"

    def _ask(self, entry: dict) -> str:
        return self._pick(entry, "asks")

    def _pick(self, entry: dict, key: str) -> str:
        if self.held_out:
            return self.rng.choice(entry[f"{key}_held_out"])
        more = [phrase for suffix in self.invented.phrasings for phrase in entry.get(f"{key}_{suffix}", [])]
        return self.rng.choice(entry[key] + more)

    def _fill(self, template: str) -> str:
        return template.format(**self.values())

    def values(self) -> dict[str, str]:
        word, number = self._word, self.rng.randint
        hour = number(6, 11)
        return {
            "days": str(number(2, 90)),
            "months": str(number(2, 60)),
            "hours": str(number(1, 72)),
            "percent": str(number(2, 45)),
            "count": str(number(2, 30)),
            "money": f"{number(1, 499)}.{self.rng.choice(('00', '50', '90', f'{number(0, 99):02d}'))}",
            "open": f"{hour}:{self.rng.choice(('00', '15', '30', '45'))}",
            "close": f"{number(hour + 4, 22)}:{self.rng.choice(('00', '30'))}",
            "order": str(number(1000, 99999)),
            "customer": f"{self._name('first_names')} {self._name('last_names')}",
            **{slot: self._phrase(slot) for slot in GRAMMAR["phrases"] if not slot.endswith("_held_out")},
            **{slot[:-1]: word(slot) for slot in ("roles", "teams", "carriers", "outsiders", "parts", "proofs")},
            **{slot: word(key) for slot, key in (("supply", "supplies"), ("weekday", "weekdays"))},
        }

    def _phrase(self, slot: str) -> str:
        phrases = GRAMMAR["phrases"]
        template = self.rng.choice(phrases.get(f"{slot}_held_out", phrases[slot]) if self.held_out else phrases[slot])
        words = {
            key[:-1]: self._word(key) for key in ("materials", "things", "flaws", "pieces", "offers", "substances")
        }
        if not self.held_out:
            words |= {key: self._made_up() for key in self.invented.slots if self.rng.random() < self.invented.share}
        return template.format(**({"material2": self._word("materials"), "people": self._word("people")} | words))

    def invented_words(self, fewest: int, most: int) -> str:
        """Made-up words, one in four of them a word of the lexicon."""
        words = [
            self._lexicon_word() if self.rng.random() < 0.25 else self._made_up()
            for _ in range(self.rng.randint(fewest, most))
        ]
        return " ".join(words)

    def _made_up(self, start: str = "") -> str:
        piece = self._piece_of_word if self.rng.random() < self.invented.wild else self._syllable
        pieces = self.rng.randint(1 if self.invented.vocabulary else 2, 4) - bool(start)
        word = start + "".join(piece() for _ in range(pieces))
        return word[::-1] if word.lower() in HELD_OUT_WORDS else word

    def _syllable(self) -> str:
        return self.rng.choice(LEXICON["syllables"])

    def _piece_of_word(self) -> str:
        if self.rng.random() < 0.3:
            return self.rng.choice(string.ascii_lowercase)
        if self.invented.vocabulary:
            return self.rng.choice(vocabulary_words())
        word = self._lexicon_word().lower()
        start = self.rng.randrange(len(word) - 1)
        return word[start : start + self.rng.randint(2, 4)]

    def _word(self, key: str) -> str:
        held_out = LEXICON.get(f"{key}_held_out")
        return self.rng.choice(held_out if self.held_out and held_out else LEXICON[key])

    def _name(self, key: str) -> str:
        if not self.held_out and self.rng.random() < self.invented.names:
            if self.invented.vocabulary and self.rng.random() < 0.5:
                return self._made_up(self.rng.choice([word for word in vocabulary_words() if word[0].isupper()]))
            return self._made_up().capitalize()
        return self._word(key)


def chats(
    seed: int, count: int, held_out: bool = False, weights: dict = TASK_WEIGHTS, invented: Invented = MIXED
) -> Iterator[Example]:
    writer = Writer(seed, held_out, weights, invented)
    for _ in range(count):
        yield writer.example()


def training_sets(seed: int = SEED, count: int = DOCUMENTS) -> dict[str, Iterator[Example]]:
    """Everything that the embedded model is trained on, by file name."""
    return {
        "warm_up.jsonl": chats(seed + 50, count // 2, weights=WARM_UP_WEIGHTS, invented=WARM_UP),
        "train.jsonl": chats(seed, count),
        "practice.jsonl": chats(seed + 70, count, weights=PRACTICE_WEIGHTS, invented=PRACTICE),
        "finish.jsonl": chats(seed + 71, count // 2, weights=FINISH_WEIGHTS, invented=FINISH),
    }


def held_out_chats(seed: int = SEED) -> Iterator[Example]:
    """What the held-out loss of a training log is taken on."""
    return chats(seed + 100, 500, True, EVALUATION_WEIGHTS)


def shop_text(seed: int, count: int) -> str:
    """The plain text that mini GPT-2 learns from: the policy notes, then short dialogues, one blank line between."""
    notes = [path.read_text(encoding="utf-8").strip() for path in sorted((HERE.parent / "company").glob("POL-*.md"))]
    dialogues = [f"Customer: {example.prompt}\nDesk: {example.answer}" for example in chats(seed, count)]
    return "\n\n".join(notes + dialogues) + "\n"


def held_out_cases(seed: int, count: int) -> list[dict[str, str]]:
    """`count` different cases in the format of eval_cases.csv, spread over the shop's tasks as training is."""
    risk = {"refund_form": "format", "escalation": "format", "grounded": "grounding", "small_talk": "regression"}
    examples: dict[str, Example] = {}
    for example in chats(seed, 2 * count, True, EVALUATION_WEIGHTS):
        examples.setdefault(example.prompt, example)
    return [
        _case_row(f"{example.task}_{number:03d}", risk.get(example.task, "safety"), example)
        for number, example in enumerate(list(examples.values())[:count], start=1)
    ]


def _case_row(case_id: str, risk: str, example: Example) -> dict[str, str]:
    row = dict.fromkeys(CASE_COLUMNS, "") | {"case_id": case_id, "prompt": example.prompt, "risk": risk}
    return row | {"expected_behavior": example.answer, "check": example.check, "expected": example.expected}


def label_chat(writer: Writer, asks: str, **given: str) -> Example:
    """The return label, a form that the embedded model was never taught. `asks` is the grammar's key of phrasings,
    `given` are values in place of the writer's own."""
    label, values = GRAMMAR["return_label"], writer.values() | given
    prompt, answer = writer.rng.choice(label[asks]).format(**values), label["answer"].format(**values)
    return Example("return_label", prompt, answer, "json_schema:return_label;json_equals", answer)


def label_cases(seed: int, count: int, rare: bool = False) -> list[dict[str, str]]:
    """What tuning on `tuning_examples` must teach, in phrasings that they never show.

    Names and words are the shop's own, put together anew; with `rare` they are those that no training shows.
    """
    writer, prefix = Writer(seed, rare, invented=SHOP_WORDS), "rare_label" if rare else "label"
    made = enumerate((label_chat(writer, "asks_held_out") for _ in range(count)), start=1)
    return [_case_row(f"{prefix}_{number:02d}", "format", example) for number, example in made]


def tuning_examples(seed: int, count: int) -> Iterator[dict]:
    """Chats for tuning: what a file for `labkit lora` holds.

    Every second one has words made up from the model's whole vocabulary, a carrier's too, the others have the words of
    the shop: those alone teach the form and unteach to copy. Neither teaches to copy a word that the base never could
    ("piano" comes out as "obano"): rare_label_cases.csv asks for such words.
    """
    made_up, of_the_shop = Writer(seed, invented=TUNING), Writer(seed + 40, invented=SHOP_WORDS)
    for number in range(count):
        if number % 2:
            yield {"messages": label_chat(of_the_shop, "asks").messages()}
        else:
            words = {"item": made_up.invented_words(1, 6), "carrier": made_up.invented_words(2, 2).title()}
            yield {"messages": label_chat(made_up, "asks", **words).messages()}


def replay_examples(seed: int, count: int) -> Iterator[dict]:
    """Chats of what the embedded model can do, to be mixed in so that tuning does not unteach it."""
    made = chats(seed, count, weights=EVALUATION_WEIGHTS, invented=FINISH)
    return ({"messages": example.messages()} for example in made)


def write_chats(path: Path, examples: Iterable[Example]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for example in examples:
            row = {"task": example.task, "messages": example.messages()}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_committed(folder: Path, seed: int) -> None:
    """The small files that the repository holds; a test makes them again and compares."""
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    (folder / "corpus" / "shop.txt").write_text(shop_text(seed, 1200), encoding="utf-8", newline="\n")
    write_cases(folder / "corpus" / "held_out_cases.csv", held_out_cases(seed + 1, 200))
    write_cases(folder / "label_cases.csv", label_cases(seed + 3, 20))
    write_cases(folder / "rare_label_cases.csv", label_cases(seed + 3, 20, rare=True))
    tuning = {"train.jsonl": tuning_examples(seed + 2, LABELS), "replay.jsonl": replay_examples(seed + 4, REPLAYED)}
    for name, rows in tuning.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / name).write_text(lines, encoding="utf-8", newline="\n")


def write_cases(path: Path, rows: Iterable[dict[str, str]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, CASE_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "build", help="folder for the training chats")
    parser.add_argument("--documents", type=int, default=DOCUMENTS, help="how many training chats")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--committed", action="store_true", help="write the small committed files instead")
    options = parser.parse_args()
    if options.committed:
        write_committed(HERE.parent, options.seed)
    else:
        for name, examples in training_sets(options.seed, options.documents).items():
            write_chats(options.out / name, examples)
        write_chats(options.out / "held_out.jsonl", held_out_chats(options.seed))


if __name__ == "__main__":
    main()
