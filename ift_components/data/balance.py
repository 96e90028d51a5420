"""Weights that draw rare samples more often: by the words of their text, or by an attribute's value."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ift_components.errors import ConfigError

_WORD = re.compile(r"\w+")


@runtime_checkable
class Described(Protocol):
    """A dataset that tells what its samples say, without reading their images."""

    def texts(self) -> list[str]:
        """Return what each sample's responses say, one text a sample, the same in every epoch."""

    def values(self, attribute: str) -> list[str | None]:
        """Return each sample's value of an attribute, None where it has none."""


def word_weights(texts: Sequence[str]) -> NDArray[np.float64]:
    """Return weights that grow as the corpus frequency of a text's words falls, [n], with sum 1.

    A text's weight is the mean of 1 / f(w) over its different words w, with f(w) the number of texts that hold the word. The
    paper (2603.19482) draws samples "that contain words with lower overall frequencies" more often and gives no formula. A text
    without words weighs as one whose words stand in every text.

    Args:
        texts: the corpus, [n].
    """
    words = [set(_WORD.findall(text.casefold())) for text in texts]
    frequency = Counter(word for text in words for word in text)
    weights = [sum(1 / frequency[w] for w in text) / len(text) if text else 1 / len(texts) for text in words]
    return np.array(weights) / sum(weights)


def value_weights(values: Sequence[str | None]) -> NDArray[np.float64]:
    """Return weights under which every value is drawn as often as the others, [n], with sum 1; no value counts as a value."""
    count = Counter(values)
    return np.array([1 / (count[value] * len(count)) for value in values])


def balancing_weights(balance: Any, dataset: object, key: str) -> NDArray[np.float64]:
    """Return the weights of a dataset's samples, [n], with sum 1.

    Args:
        balance: `words`, or a mapping `{attribute: NAME}`.
        dataset: what to balance.
        key: where it stands in the config, for messages.

    Raises:
        ConfigError: if `balance` is neither, the dataset's samples do not tell what they say, or none has the attribute.
    """
    by_attribute = isinstance(balance, dict) and list(balance) == ["attribute"]
    if balance != "words" and not by_attribute:
        raise ConfigError(f"{key}: {balance} is neither 'words' nor a mapping like {{attribute: label}}")
    if not isinstance(dataset, Described):
        raise ConfigError(
            f"{key}: samples of {type(dataset).__name__} have no text to be balanced by; leave the key out"
        )
    if not by_attribute:
        return word_weights(dataset.texts())
    values = dataset.values(balance["attribute"])
    if not any(value is not None for value in values):
        raise ConfigError(f"{key}: no sample has the attribute '{balance['attribute']}'")
    return value_weights(values)
