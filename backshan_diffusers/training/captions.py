"""What a prompt says of one pair, where the prompt of all of them leaves open what a back view hardly shows.

A coat that is open in one front and closed in the next has nearly the same back. A model that is told nothing predicts
the mean of both; one that is told which fronts are open predicts a closed one where nothing is said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_FORM = re.compile(r"\s*(?P<attribute>[^=:{}]*[^=:{}\s])\s*(?:=\s*(?P<value>[^:]*[^:\s])\s*)?:\s*(?P<words>\S.*?)\s*")
_NAMED = re.compile(r"\{([^{}]+)\}")
_NOTHING = ("", "none", "false")


@dataclass(frozen=True)
class CaptionRule:
    """Words for what an attribute of a pair may be.

    Args:
        attribute: its name.
        value: what it has to be, as text; upper and lower case are alike. None: anything but nothing, `none` or
            `false`.
        words: what is said then. A name in braces stands for the value of that attribute.
    """

    attribute: str
    value: str | None
    words: str

    @property
    def attributes(self) -> set[str]:
        """Names of those that a pair needs to have."""
        return {self.attribute, *_NAMED.findall(self.words)}

    def applies(self, attributes: Mapping) -> bool:
        """Whether something is said of a pair with these `attributes`."""
        if any(attributes.get(name) is None for name in self.attributes):
            return False
        found = str(attributes[self.attribute]).lower()
        return found not in _NOTHING if self.value is None else found == self.value.lower()

    def say(self, attributes: Mapping) -> str:
        """What is said of a pair to which the rule applies."""
        return _NAMED.sub(lambda name: str(attributes[name[1]]), self.words)


def read_rule(text: str) -> CaptionRule:
    """A rule of the form `ATTRIBUTE=VALUE: WORDS` or `ATTRIBUTE: WORDS`.

    Raises:
        ValueError: if it has another form.
    """
    if (found := _FORM.fullmatch(text)) is None:
        raise ValueError(f"captions has {text!r}: give 'ATTRIBUTE=VALUE: WORDS', as in 'glasses=true: with glasses'.")
    return CaptionRule(**found.groupdict())


def caption(prompt: str, rules: Sequence[CaptionRule], attributes: Mapping) -> str:
    """`prompt`, and behind it, after commas, what the rules say of a pair with these `attributes`."""
    said = [rule.say(attributes) for rule in rules if rule.applies(attributes)]
    return ", ".join(each for each in (prompt, *said) if each)
