"""What one loader worker delivers at 560 pixels: `python tests/benchmarks/loader_speed.py [--images 200]`.

Real pictures of three kinds are prepared as a user would (VQA-RAD's JPEGs, MedPix 2.0's PNGs, DICOM files of 2,048 x 2,500
pixels in 12 bits made of MedPix's, which preparation windows to PNG), then read in random order from the prepared folder,
on one thread. Times are those of the processor, so that other work on the machine does not count. A second table compares
Pillow's decoder with torchvision's on the same bytes.
"""

import argparse
import csv
import io
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.io import ImageReadMode, decode_image

from ift_components.data.build import BuildOptions, prepare
from ift_components.data.builders import image_text
from ift_components.data.images import ImageTransform
from ift_components.data.mcq import QuestionOptions
from ift_components.data.prepared import load_reports
from ift_components.data.rows import Rows
from ift_components.models import tiny_vision_transform

HERE = Path(__file__).resolve()
SHARED = HERE.parents[3] / "shared" / "data"
SIZE = 560
sys.path.append(str(HERE.parents[1] / "data"))
from trees_medical import dicom_bytes  # noqa: E402 (a folder of tests)


def folder_of(kind: str, images: int, root: Path) -> Path:
    """Return a prepared folder of real pictures of one kind, embedded."""
    where, suffix = {"JPEG": ("vqa_rad", "jpg"), "PNG": ("medpix2", "png")}.get(kind, ("medpix2", "png"))
    pictures = sorted((SHARED / where / "images").glob(f"*.{suffix}"))
    pictures = pictures[:: max(1, len(pictures) // images)][:images]
    source = root / kind
    source.mkdir()
    names = []
    for path in pictures:
        if kind == "DICOM":
            grey = Image.open(path).convert("L").resize((2048, 2500), Image.Resampling.BICUBIC)
            noise = np.random.default_rng(len(names)).normal(0, 4, (2500, 2048))  # a detector's, in 12 bits
            pixels = np.clip(np.asarray(grey, np.float32) * 16 + noise, 0, 4095).astype(np.uint16)
            (source / f"{path.stem}.dcm").write_bytes(
                dicom_bytes(pixels, bits=12, WindowCenter="2048", WindowWidth="4096")
            )
            names.append(f"{path.stem}.dcm")
        else:
            (source / path.name).symlink_to(path)
            names.append(path.name)
    with (source / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "text"], *([name, "A scan."] for name in names)])
    made = image_text(source, "t.csv", val_fraction=0.0, test_fraction=0.0, follow_links=True)
    prepare(made, root / f"{kind}-prepared", QuestionOptions(), BuildOptions(workers=2))
    return root / f"{kind}-prepared"


def milliseconds(work: Callable[[int], object], order: Sequence[int]) -> float:
    """Return the processor's time of one call, the mean over an order."""
    work(order[0])
    start = time.process_time()
    for index in order:
        work(index)
    return 1000 * (time.process_time() - start) / len(order)


def stored(rows: Rows, place: int) -> bytes:
    content, _ = rows._file.image(place)
    assert content is not None
    return content


def of_pillow(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


def of_torchvision(content: bytes) -> torch.Tensor:
    return decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)


def measure(rows: Rows, transform: ImageTransform) -> tuple[str, str]:
    """Return the cells of both tables."""
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    whole = milliseconds(lambda place: transform(rows[place]["image"]), order)
    read = milliseconds(lambda place: stored(rows, place), order)
    contents = [stored(rows, place) for place in range(len(rows))]
    pillow = milliseconds(lambda place: of_pillow(contents[place]), order)
    vision = milliseconds(lambda place: of_torchvision(contents[place]), order)
    pictures = [of_pillow(content) for content in contents[:50]]
    few = list(range(len(pictures)))
    squash = milliseconds(lambda place: transform.squash(pictures[place]), few)
    squashed = [transform.squash(picture) for picture in pictures]
    normalise = milliseconds(lambda place: transform.normalise(squashed[place]), few)
    pixels = int(np.median([picture.width * picture.height for picture in pictures]))
    parts = f"{read:.1f} | {pillow:.1f} | {squash:.1f} | {normalise:.1f}"
    differing = [
        int(np.abs(np.asarray(picture, np.int16) - of_torchvision(content).permute(1, 2, 0).numpy()).max())
        for picture, content in zip(pictures, contents, strict=False)
    ]
    return (
        f"{pixels:,} | {parts} | {whole:.1f} | {1000 / whole:.0f}",
        f"{pillow:.1f} | {vision:.1f} | {pillow / vision:.2f} | {max(differing)}",
    )


def main() -> None:
    """Print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200, help="pictures of each kind; of DICOM a quarter")
    count = parser.parse_args().images
    torch.set_num_threads(1)
    transform = ImageTransform(tiny_vision_transform(image_size=SIZE))
    print(f"torchvision {torchvision.__version__}, Pillow {Image.__version__}")
    print("| stored as | median pixels | read | decode | squash | normalise | ms an image | images/s of a worker |")
    print("|---|---|---|---|---|---|---|---|")
    compared = []
    with tempfile.TemporaryDirectory() as root:
        for kind in ("JPEG", "PNG", "DICOM"):
            with redirect_stdout(sys.stderr):
                folder = folder_of(kind, count if kind != "DICOM" else count // 4, Path(root))
            line, decoders = measure(load_reports(folder, "train"), transform)
            print(f"| {kind} | {line} |", flush=True)
            compared.append(f"| {kind} | {decoders} |")
    print("\n| stored as | Pillow, ms | torchvision, ms | ratio | largest difference of 255 |\n|---|---|---|---|---|")
    print("\n".join(compared))


if __name__ == "__main__":
    main()
