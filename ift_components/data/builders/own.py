"""What the builders for datasets of one's own share."""

from dataclasses import dataclass

from ift_components.data.problems import Problems
from ift_components.data.source import ImageStore, OnBadRow
from ift_components.data.splitting import Division


@dataclass(frozen=True, kw_only=True)
class OwnData(Division):
    """How the rows of a table become records; the builders take each field as a keyword.

    Attributes:
        images: hold the images in the prepared files, or their paths.
        on_bad_row: stop at bad rows, or leave them out.
        private: keep reports, questions and images out of messages, manifest and preview, and the files to their owner.
        follow_links: whether images may lie where a link inside the folder leads.
    """

    images: ImageStore = "embed"
    on_bad_row: OnBadRow = "error"
    private: bool = False
    follow_links: bool = False

    def problems(self) -> Problems:
        """Return a collector of bad rows for reading a table ahead of the build."""
        return Problems(private=self.private, follow_links=self.follow_links)
