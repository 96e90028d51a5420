"""Column headers as people write them: line breaks, and legends in brackets that explain the codes below."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

_BRACKET = re.compile(r"\(([^()]*)\)|\[([^\[\]]*)\]")
_SEPARATOR = r"(?:=|:|→|->)"
_CODE = r"[\w+\-.<>]{1,8}"
_PAIR = re.compile(rf"({_CODE})\s*{_SEPARATOR}\s*(.+?)(?=[\s,;/|]+{_CODE}\s*{_SEPARATOR}|[\s,;/|]*$)", re.DOTALL)
_LIST = re.compile(r"\s*[,;/|\n]\s*")


@dataclass(frozen=True)
class Header:
    """What a header cell says.

    Attributes:
        name: the column's name in one line, without legends.
        legend: what each code means; empty where the header does not say.
        codes: the codes that it lists, explained or not.
    """

    name: str
    legend: Mapping[str, str] = field(default_factory=dict)
    codes: tuple[str, ...] = ()


def read_header(text: str, values: Collection[str] = ()) -> Header:
    """Take a header apart: `Shape (0 = round, 1 = oval)` is named `Shape`; brackets of other kinds stay in the name.

    Args:
        text: the header cell.
        values: what stands below it; a bracket that lists some of these leaves the name too.
    """
    below = {value.casefold() for value in values}
    legend: dict[str, str] = {}
    codes: list[str] = []

    def legend_or_name(match: re.Match[str]) -> str:
        content = match.group(1) if match.group(1) is not None else match.group(2)
        pairs = {code: " ".join(meaning.split()) for code, meaning in _PAIR.findall(content)}
        items = [item for item in _LIST.split(content.strip()) if item]
        if len(pairs) >= 2:  # noqa: PLR2004
            legend.update(pairs)
            codes.extend(pairs)
        elif len(items) >= 2 and all(len(item) <= 3 for item in items):  # noqa: PLR2004 (codes, as in 0/1/2 or P/N)
            codes.extend(items)
        elif len(items) >= 2 and below.issuperset(item.casefold() for item in items):  # noqa: PLR2004
            return " "
        else:
            return match.group()
        return " "

    name = _BRACKET.sub(legend_or_name, text)
    name = " ".join(name.replace("_", " ").split()).strip(" :;,-")
    return Header(name or " ".join(text.split()), legend, tuple(codes))
