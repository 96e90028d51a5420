"""Where a report's words carry values: `small` in `small cell size`, which the fixed wording around it does not tell."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from torchtune.models.llama3_2_vision import Llama3VisionTransform

from ift_components.data.prepared import read_manifest
from ift_components.data.schema import Attribute, Schema
from ift_components.errors import ConfigError


def value_in_phrase(attribute: Attribute, value: str) -> tuple[str, int, int]:
    """Return how a source value reads in a report, and where in that phrase the value begins and ends, in characters.

    Where the wording does not hold the value's text, as `granularity` for a yes, the whole phrase tells the value.
    """
    phrase, wording = attribute.in_report(value), attribute.phrases.get(value, attribute.phrase)
    before, has_value, _ = wording.partition("{value}")
    if not has_value:
        return phrase, 0, len(phrase)
    start = len(before.replace("{name}", attribute.name))
    return phrase, start, start + len(attribute.text(value))


def value_spans(schema: Schema, values: Sequence[tuple[str, str]], report: str) -> list[tuple[int, int]]:
    """Return the places of values in a report, its phrases in any order, as (start, end) in characters, from left to right.

    Args:
        schema: the dataset's.
        values: attributes and their source values; names that the schema does not know are passed over.
        report: the report.
    """
    attributes = {attribute.name: attribute for attribute in schema.attributes}
    places = [value_in_phrase(attributes[name], value) for name, value in values if name in attributes]
    inside = {phrase: (start, end) for phrase, start, end in places if phrase}
    if not inside:
        return []
    # The longest of those that begin at one place: a phrase may be the beginning of another.
    phrases = "|".join(re.escape(phrase) for phrase in sorted(inside, key=len, reverse=True))
    matches = re.finditer(rf"(?<!\w)(?:{phrases})(?!\w)", report)
    return [(m.start() + inside[m.group()][0], m.start() + inside[m.group()][1]) for m in matches]


class ValueWeights:
    """Weighs the tokens of reports that are made of attributes.

    Args:
        transform: the model's transform, whose tokenizer is used.
        source: prepared folder, whose schema words the reports.
        weight: of tokens that hold a part of a value; all others have 1.
        reports: attributes and text of the reports, to see whether they are made of attributes at all.

    Raises:
        ConfigError: if the weight is negative, there is no schema, or no report has the words of its values.
    """

    def __init__(
        self,
        transform: Llama3VisionTransform,
        source: Path,
        weight: float,
        reports: Iterable[tuple[Sequence[tuple[str, str]], str]],
    ) -> None:
        if not weight >= 0:
            raise ConfigError(f"dataset.value_weight: {weight} is below 0")
        node = read_manifest(source).get("schema")
        schema = Schema.from_dict(node) if node else None
        if schema is None or not any(value_spans(schema, values, report) for values, report in reports):
            raise ConfigError(
                f"dataset.value_weight: {weight} weighs the values of attributes, and no report of {source} is made of "
                "attributes; set it to 1"
            )
        self._encoding, self._schema, self._weight = transform.tokenizer.tt_model.tt_model, schema, weight

    def weights(
        self, values: Sequence[tuple[str, str]], reports: Sequence[str], responses: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Return a weight for every token of some responses.

        Args:
            values: the image's attributes and their source values.
            reports: its reports, in any order of phrases.
            responses: what `response_tokens` gives for each, the end-of-turn token last.
        """
        return [self._row(values, *pair) for pair in zip(map(str.strip, reports), responses, strict=True)]

    def _row(self, values: Sequence[tuple[str, str]], report: str, tokens: Sequence[int]) -> list[float]:
        # Tokens are pieces of UTF-8, which may end inside a character: places are counted in bytes.
        spans = [
            (len(report[:start].encode()), len(report[:end].encode()))
            for start, end in value_spans(self._schema, values, report)
        ]
        weights, start = [], 0
        for token in tokens[:-1]:
            end = start + len(self._encoding.decode_single_token_bytes(token))
            weights.append(self._weight if any(start < last and first < end for first, last in spans) else 1.0)
            start = end
        return [*weights, 1.0]
