"""What the builders for datasets of one's own share."""

from dataclasses import dataclass

from ift_components.data.source import ImageStore, OnBadRow
from ift_components.data.splitting import Division


@dataclass(frozen=True, kw_only=True)
class OwnData(Division):
    """How the rows of a table become records; the builders take each field as a keyword.

    Attributes:
        images: hold the images in the prepared files, or their paths.
        on_bad_row: stop at bad rows, or leave them out.
    """

    images: ImageStore = "embed"
    on_bad_row: OnBadRow = "error"
