"""Where a report's words carry values: `small` in `small cell size`, which the fixed wording around it does not tell."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
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


def value_spans(
    schema: Schema, values: Sequence[tuple[str, str]], report: str
) -> list[tuple[int, int, tuple[str, str]]]:
    """Return where a report, its phrases in any order, tells values: (start, end, (attribute, source value)), left to right.

    Places are counted in characters.

    Args:
        schema: the dataset's.
        values: attributes and their source values; names that the schema does not know are passed over.
        report: the report.
    """
    attributes = {attribute.name: attribute for attribute in schema.attributes}
    inside = {}
    for name, value in values:
        if name in attributes:
            phrase, start, end = value_in_phrase(attributes[name], value)
            inside[phrase] = (start, end, (name, value))
    inside.pop("", None)
    if not inside:
        return []
    # The longest of those that begin at one place: a phrase may be the beginning of another.
    phrases = "|".join(re.escape(phrase) for phrase in sorted(inside, key=len, reverse=True))
    matches = re.finditer(rf"(?<!\w)(?:{phrases})(?!\w)", report)
    found = [(match.start(), *inside[match.group()]) for match in matches]
    return [(place + start, place + end, of) for place, start, end, of in found]


def balanced_weights(values: Sequence[Sequence[tuple[str, str]]], power: float) -> dict[tuple[str, str], float]:
    """Return a weight for every value of every attribute, which grows as the value's share f of its attribute falls.

    f^-power / sum over the attribute's values of f^(1 - power): 1 on average over the images; power 1 lets every value of an
    attribute count the same in sum (scikit-learn's "balanced" class weights), power 0 every image.

    Args:
        values: each image's attributes and values.
        power: 0 to 1.
    """
    counts = Counter(pair for row in values for pair in row)
    totals: Counter[str] = Counter()
    for (name, _), count in counts.items():
        totals[name] += count
    shares = {pair: count / totals[pair[0]] for pair, count in counts.items()}
    sums: defaultdict[str, float] = defaultdict(float)
    for (name, _), share in shares.items():
        sums[name] += share ** (1 - power)
    return {pair: share**-power / sums[pair[0]] for pair, share in shares.items()}


class ValueWeights:
    """Weighs the tokens of reports that are made of attributes.

    Args:
        transform: the model's transform, whose tokenizer is used.
        source: prepared folder, whose schema words the reports.
        weight: of tokens that hold a part of a value, on average over an attribute's images; all others have 1.
        balance: how much more rare values of an attribute count than frequent ones, the power in `balanced_weights`.
        reports: attributes and text of the reports.

    Raises:
        ConfigError: if the weight is negative, the balance is not 0 to 1, there is no schema, or no report has the words of
            its values.
    """

    def __init__(
        self,
        transform: Llama3VisionTransform,
        source: Path,
        weight: float,
        balance: float,
        reports: Sequence[tuple[Sequence[tuple[str, str]], str]],
    ) -> None:
        if not weight >= 0:
            raise ConfigError(f"dataset.value_weight: {weight} is below 0")
        if not 0 <= balance <= 1:
            raise ConfigError(f"dataset.value_balance: {balance} is not between 0 (no balance) and 1")
        node = read_manifest(source).get("schema")
        schema = Schema.from_dict(node) if node else None
        if schema is None or not any(value_spans(schema, values, report) for values, report in reports):
            raise ConfigError(
                f"dataset.value_weight: {weight}, value_balance: {balance} weigh the values of attributes, and no report of "
                f"{source} is made of attributes; set them to 1 and 0"
            )
        self._encoding, self._schema = transform.tokenizer.tt_model.tt_model, schema
        balanced = balanced_weights([values for values, _ in reports], balance)
        self._weights = {pair: weight * share for pair, share in balanced.items()}

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
            (len(report[:start].encode()), len(report[:end].encode()), self._weights[of])
            for start, end, of in value_spans(self._schema, values, report)
        ]
        weights, start = [], 0
        for token in tokens[:-1]:
            end = start + len(self._encoding.decode_single_token_bytes(token))
            weights.append(next((weight for first, last, weight in spans if start < last and first < end), 1.0))
            start = end
        return [*weights, 1.0]
