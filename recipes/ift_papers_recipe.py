"""Collect figures with captions, and the sentences that mention them, out of a folder of papers.

tune run ift_papers_recipe --config papers.yaml root=PATH output_dir=OUT
"""

from dataclasses import dataclass, field

from omegaconf import MISSING

from ift_components.config import entry_point
from ift_components.papers.collect import PaperOptions, collect_papers
from ift_components.papers.quality import PictureFilter


@dataclass
class PapersSettings:
    """The keys of a papers config.

    Attributes:
        root: folder of papers: JATS XML with its pictures, and PDF.
        output_dir: the folder to write.
        pictures: limits below which pictures are dropped.
        language: ISO 639-1 code of the papers, for splitting sentences.
        workers: processes that read papers.
    """

    root: str = MISSING
    output_dir: str = MISSING
    pictures: PictureFilter = field(default_factory=PictureFilter)
    language: str = "en"
    workers: int = 1


@entry_point(PapersSettings)
def main(cfg: PapersSettings) -> None:
    """Collect figures with captions, and the sentences that mention them, out of a folder of papers."""
    manifest = collect_papers(cfg.root, cfg.output_dir, PaperOptions(cfg.pictures, cfg.language), cfg.workers)
    for kind in ("refused", "dropped"):
        for reason, count in manifest[kind].items():
            print(f"{kind}: {count} ({reason})")
    counts = manifest["counts"]
    print(
        f"{counts['figures']} figures of {counts['articles_with_figures']} articles, "
        f"{counts['figures_with_mentions']} of them mentioned in the text, out of {counts['papers']} papers"
    )


if __name__ == "__main__":
    main()
