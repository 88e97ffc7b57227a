"""Text that grows token by token, without decoding all of it for each token."""

from collections.abc import Collection

LONGEST_TAIL = 16  # tokens that are decoded again for each new one
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
        self.text = ""

    def add(self, token: int) -> None:
        if token in self._left_out:
            return
        self._tail.append(token)
        self.text = self._fixed + self._decoded()[self._known :]
        if len(self._tail) > LONGEST_TAIL and not self.text.endswith("\ufffd"):
            self._fixed, self._tail = self.text, self._tail[-CONTEXT:]
            self._known = len(self._decoded())

    def _decoded(self) -> str:
        return self._tokenizer.decode(self._tail, skip_special_tokens=False)
