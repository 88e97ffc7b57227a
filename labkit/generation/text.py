"""Text that grows token by token, without decoding all of it again each time that it is read."""

from collections.abc import Collection

LONGEST_TAIL = 16  # tokens that are decoded again together with new ones
CONTEXT = 4  # tokens before the new ones: what a token says may depend on whether it is the first (leading spaces)


class GrowingText:
    """The text of the tokens added so far; those in `left_out` are no text.

    A token may be part of a character, so only a tail that ends with a whole one becomes fixed.
    """

    def __init__(self, tokenizer, left_out: Collection[int]):
        self._tokenizer, self._left_out = tokenizer, left_out
        self._fixed = ""
        self._tail: list[int] = []
        self._known = 0  # characters of the tail's text that are the end of the fixed text
        self._text: str | None = ""  # None: there are tokens that were not decoded yet

    def add(self, token: int) -> None:
        if token not in self._left_out:
            self._tail.append(token)
            self._text = None

    @property
    def text(self) -> str:
        if self._text is None:
            self._text = self._fixed + self._decoded()[self._known :]
            if len(self._tail) > LONGEST_TAIL and not self._text.endswith("\ufffd"):
                self._fixed, self._tail = self._text, self._tail[-CONTEXT:]
                self._known = len(self._decoded())
        return self._text

    def _decoded(self) -> str:
        return self._tokenizer.decode(self._tail, skip_special_tokens=False)
