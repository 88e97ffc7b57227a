"""Constrained decoding: tokens that would leave a JSON schema, or any JSON object, are never chosen.

llguidance computes which tokens may come next; this room only gives it the schema and applies its mask.
"""

import copy
import json
from collections.abc import Iterator
from functools import lru_cache

import llguidance
import llguidance.numpy as masks  # the functions on torch tensors would load torch's compiler, which takes seconds
from torch import Tensor

from labkit.errors import LabError

LONGEST_SCHEMA = 20_000  # characters
MOST_CONDITIONS = 4  # in all allOf of a schema: conditions that must hold together can take hours to compile


class Constraint:
    """What may still come. Made for one answer, told each token of it.

    Every method raises LabError for a grammar that turns out too much for the matcher.
    """

    def __init__(self, tokenizer, vocabulary: int, grammar: str):
        self._matcher = llguidance.LLMatcher(_tokenizer(tokenizer, vocabulary), grammar)
        self._mask = masks.allocate_token_bitmask(1, vocabulary)
        self._check()

    def fresh(self) -> "Constraint":
        """The same for another answer, without compiling the grammar again."""
        copied = copy.copy(self)
        copied._matcher, copied._mask = self._matcher.deep_copy(), self._mask.copy()
        return copied

    def allowed(self, logits: Tensor) -> Tensor:
        """`logits`, shape (vocab,), with minus infinity for every token that may not come now."""
        masks.fill_next_token_bitmask(self._matcher, self._mask)
        self._check()
        logits = logits.clone()
        masks.apply_token_bitmask_inplace(logits.numpy(), self._mask)
        return logits

    def take(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().strip().splitlines()[0][:200]
            raise LabError(f"the schema cannot be enforced: {reason}", "simplify the schema")

    @property
    def complete(self) -> bool:
        """Whether nothing but the end may come."""
        return self._matcher.is_stopped()


def json_grammar(schema: dict, after: str = "") -> str:
    """A grammar for JSON that `schema` describes, and a fixed text after it. Raises LabError for a schema too large.

    At most one space between the parts: a model that may put more may put them for ever.
    """
    _check_size(schema)
    inner = {**schema, "x-guidance": {"whitespace_pattern": " ?"}}
    if after:
        return llguidance.LLMatcher.grammar_from_lark(f"start: %json {json.dumps(inner)} {json.dumps(after)}")
    return llguidance.LLMatcher.grammar_from_json_schema(json.dumps(inner))


def _check_size(schema: dict) -> None:
    conditions = sum(len(found) for found in _values(schema, "allOf") if isinstance(found, list))
    if conditions > MOST_CONDITIONS:
        what = f"the schema cannot be enforced: {conditions} conditions in allOf, at most {MOST_CONDITIONS}"
        raise LabError(what, "put the conditions into one")
    if any(not _above_zero(found) for found in _values(schema, "multipleOf")):
        what = "the schema cannot be enforced: a multipleOf is not a number above 0"
        raise LabError(what, "give multipleOf a number above 0, or leave it out")
    if len(json.dumps(schema)) > LONGEST_SCHEMA:
        what = f"the schema cannot be enforced: it is longer than {LONGEST_SCHEMA} characters"
        raise LabError(what, "simplify the schema")


def _above_zero(value: object) -> bool:
    """Whether `value` may be a multipleOf; a property that is called so has its schema there, an object or a bool."""
    return isinstance(value, dict | bool) or (isinstance(value, int | float) and value > 0)


def _values(node: object, key: str) -> Iterator[object]:
    """Every value that stands under `key` anywhere in `node`."""
    if isinstance(node, dict):
        yield from (value for name, value in node.items() if name == key)
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from _values(child, key)


@lru_cache(maxsize=2)
def _tokenizer(tokenizer, vocabulary: int) -> llguidance.LLTokenizer:
    from llguidance.hf import from_tokenizer

    return from_tokenizer(tokenizer, vocabulary)
