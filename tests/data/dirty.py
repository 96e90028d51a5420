"""A workbook as people keep it, made for tests: the dirt of real spreadsheets, and the images that it is about."""

from pathlib import Path

import openpyxl
from trees import save_picture

HEADER = [
    "Patient\nID", "Exam date", "Lesion\nshape\n(0 = round, 1 = oval, 2 = irregular)", "Margin (P/N)", "Dx Nevus",
    "Dx\nMelanoma", "Dx Keratosis", "Ulceration", "Itching (Y/N)", "Crust", "Colour", "Remarks",
]  # fmt: skip


def dirty_row(n: int) -> list[object]:
    kind = n % 3
    return [
        f"P{n:03d}",
        f"2021-03-{1 + n % 28:02d}",
        n % 3,
        "P" if n % 4 else "N",
        *("X" if kind == place else None for place in range(3)),
        "x" if n % 5 == 0 else None,
        "Y" if n % 2 else "N",
        float(n % 2),
        ("red, partly white", "brown")[n % 2],
        f"seen again after {n} weeks, patient was not worried about it at all",
    ]


def dirty_tree(root: Path, count: int = 40) -> Path:
    """Write `images/P001.jpg` ... and `lesions.xlsx`, whose ids are stems, one of them in lower case."""
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(HEADER)
    for n in range(count):
        row = dirty_row(n)
        save_picture(root / "images" / f"{str(row[0]).lower() if n == 7 else row[0]}.jpg", n, size=(40, 30))
        sheet.append(row)
    book.save(root / "lesions.xlsx")
    return root
