"""Checks of the model that is meant: its licence, and what its vocabulary makes of Japanese."""

from pathlib import Path

from labkit.doctor.findings import Finding, Question, not_here, ok, problem
from labkit.errors import LabError
from labkit.evidence import read_csv
from labkit.landscape.licences import commercial_use, licence_names, licences_of
from labkit.landscape.models import EMBEDDED, find_model
from labkit.landscape.tables import stale
from labkit.layout import DATA, MODELS

JAPANESE_CASES = DATA / "eval_cases_ja.csv"
# Tokens for a character: a vocabulary that was made with Japanese in it needs about one or fewer, one that spells
# characters out in UTF-8 up to three.
SPELLED_OUT = 1.5
TAUGHT = ("high", "mid")  # the first word of models.csv's column japanese


def licence(question: Question) -> Finding:
    """What data/landscape knows of the model's licence, for production use."""
    try:
        row = find_model(question.model)
    except LabError as unknown:
        return problem("licence", unknown.what, "read the licence file in the model's repository, and write it down")
    found, names = licences_of(row.repo_id), licence_names(row.repo_id)
    if not found:
        step = f"read it at {row.source_url} and add it to data/landscape/model_licence.csv"
        return problem("licence", f"{row.repo_id}: nobody has verified its licence", step)
    use = commercial_use(row.repo_id)
    seen = f"{row.repo_id}: {names}; production use: {use}"
    duties = " ".join(entry.obligations for entry in found)
    if use != "yes":
        return problem("licence", f"{seen}. {duties}", f"read the text itself: {', '.join(e.url for e in found)}")
    if stale(found):
        return problem("licence", f"{seen}; the row has expired", f"read it again: {', '.join(e.url for e in found)}")
    return ok("licence", f"{seen}. {duties}")


def japanese(question: Question) -> Finding:
    """Tokens for a character of the Japanese cases, where the model's tokenizer is here; else what the table says."""
    folder = MODELS / EMBEDDED if question.model == EMBEDDED else Path(question.model).expanduser()
    if (folder / "tokenizer.json").is_file():
        return _counted(folder)
    try:
        row = find_model(question.model)
    except LabError as unknown:
        return not_here("japanese", f"{unknown.what}, and no tokenizer.json of it is on this machine")
    if row.japanese.split(" ")[0] in TAUGHT:
        return ok("japanese", f"{row.repo_id}: {row.japanese}")
    step = "evaluate it: `labkit eval --base-url URL --cases data/eval_cases_ja.csv`, or take a model taught Japanese"
    return problem("japanese", f"{row.repo_id}: {row.japanese or 'nobody has checked its Japanese'}", step)


def _counted(folder: Path) -> Finding:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [row["prompt"] for row in read_csv(JAPANESE_CASES)]
    characters = sum(map(len, texts))
    each = sum(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts) / characters
    seen = f"{folder.name} spends {each:.1f} tokens on a character of the {len(texts)} Japanese cases"
    if each > SPELLED_OUT:
        step = "its vocabulary spells Japanese out; take a model that was trained on it (`labkit models`)"
        return problem("japanese", seen, step)
    return ok("japanese", seen)
