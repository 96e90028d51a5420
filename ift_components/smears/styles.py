"""The two looks of drawn cells. Colours are (hue, saturation, value), each 0 to 1; lengths are in half image sides."""

from dataclasses import dataclass

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Rim:
    """The cell's edge, which tells the cell types apart together with the nucleus's hue.

    Attributes:
        colour: of the rim.
        strength: opacity, 0 for none.
        place: distance of the rim's middle from the outline, positive outside.
        width: from its middle to where it has faded.
    """

    colour: Colour
    strength: float
    place: float
    width: float


@dataclass(frozen=True)
class Style:
    """What a style fixes; everything else comes from the attributes or from chance.

    Attributes:
        nuclei: colours of the nucleus, by label.
        rims: by label.
        cytoplasm: colours by value.
        granules: colours by value.
        ground: two corners of the box that the ground's colour comes from.
        discs: colour of the red cells around.
        disc_strength: range of their opacity.
        disc_pallor: range of how much they pale towards the middle.
        platelets: colour of the specks around.
        vacuole: colour and opacity of vacuoles.
        frost: colour and opacity of frosted cytoplasm's speckles, the cytoplasm's colour scaled.
        chromatin: colour and opacity of the patches in loose chromatin, the nucleus's colour scaled.
        mottle: opacity of patches in dense chromatin.
        covered: opacity of granules over the nucleus, relative to elsewhere.
        granule_strength: range of the granules' opacity.
        jitter: largest change of hue, saturation and value, for each part of each image.
        cast: largest change of each colour channel of an image, relative.
        radius: ranges of the cell's radius, for big and small.
        nucleus: ranges of the nucleus's radius in cell radii, for high and low nuclear cytoplasmic ratio.
        shift: largest offset of the cell from the middle.
        blurred: share of images that are out of focus.
        blur: strongest blur, standard deviation in 84ths of a side.
        grain: largest strength of pixel noise.
        vignette: largest darkening towards the corners.
    """

    nuclei: tuple[Colour, ...]
    rims: tuple[Rim, ...]
    cytoplasm: tuple[Colour, ...]
    granules: tuple[Colour, ...]
    ground: tuple[Colour, Colour]
    discs: Colour
    disc_strength: tuple[float, float]
    disc_pallor: tuple[float, float]
    platelets: Colour
    vacuole: tuple[Colour, float]
    frost: tuple[Colour, float]
    chromatin: tuple[Colour, float]
    mottle: float
    covered: float
    granule_strength: tuple[float, float]
    jitter: Colour
    cast: float
    radius: tuple[tuple[float, float], tuple[float, float]]
    nucleus: tuple[tuple[float, float], tuple[float, float]]
    shift: float
    blurred: float
    blur: float
    grain: float
    vignette: float


STYLES = {
    "schematic": Style(
        nuclei=((0.57, 0.95, 0.42), (0.75, 0.85, 0.48), (0.66, 0.90, 0.36), (0.84, 0.75, 0.52), (0.96, 0.90, 0.42)),
        rims=(
            Rim((0.70, 0.80, 0.12), 1.00, -0.02, 0.055),
            Rim((0.12, 0.55, 1.00), 1.00, 0.00, 0.045),
            Rim((0.00, 0.00, 0.00), 0.00, 0.00, 0.050),
            Rim((0.50, 0.50, 0.85), 0.70, 0.06, 0.070),
            Rim((0.95, 0.70, 0.80), 1.00, 0.00, 0.040),
        ),
        cytoplasm=((0.59, 0.55, 0.90), (0.53, 0.18, 1.00), (0.74, 0.42, 0.90)),
        granules=((0.92, 0.38, 1.00), (0.78, 0.90, 0.38), (0.01, 0.90, 0.88)),
        ground=((0.00, 0.00, 0.03), (1.00, 0.60, 0.25)),
        discs=(0.03, 0.30, 0.40),
        disc_strength=(-0.40, 0.55),  # below 0: none
        disc_pallor=(0.0, 0.6),
        platelets=(0.80, 0.40, 0.50),
        vacuole=((0.15, 0.06, 1.00), 1.00),
        frost=((1.0, 1.0, 0.60), 0.90),
        chromatin=((1.0, 0.55, 1.70), 0.85),
        mottle=0.0,
        covered=0.50,
        granule_strength=(0.9, 1.0),
        jitter=(0.030, 0.12, 0.10),
        cast=0.10,
        radius=((0.60, 0.70), (0.42, 0.51)),
        nucleus=((0.80, 0.88), (0.52, 0.60)),
        shift=0.12,
        blurred=0.3,
        blur=1.0,
        grain=0.12,
        vignette=0.15,
    ),
    "smear": Style(
        nuclei=((0.70, 0.62, 0.36), (0.755, 0.52, 0.46), (0.655, 0.66, 0.34), (0.785, 0.38, 0.56), (0.84, 0.56, 0.38)),
        rims=(
            Rim((0.72, 0.55, 0.35), 0.75, -0.02, 0.055),
            Rim((0.10, 0.16, 1.00), 0.80, 0.00, 0.050),
            Rim((0.00, 0.00, 0.00), 0.00, 0.00, 0.050),
            Rim((0.66, 0.30, 0.75), 0.55, 0.05, 0.070),
            Rim((0.93, 0.40, 0.68), 0.75, 0.00, 0.045),
        ),
        cytoplasm=((0.61, 0.36, 0.78), (0.60, 0.10, 0.92), (0.73, 0.28, 0.76)),
        granules=((0.93, 0.34, 0.88), (0.77, 0.60, 0.36), (0.99, 0.58, 0.72)),
        ground=((0.055, 0.08, 0.93), (0.095, 0.18, 1.00)),
        discs=(0.99, 0.22, 0.74),
        disc_strength=(0.55, 1.0),
        disc_pallor=(0.25, 0.85),
        platelets=(0.78, 0.40, 0.50),
        vacuole=((0.08, 0.06, 0.97), 0.90),
        frost=((1.0, 1.2, 0.70), 0.85),
        chromatin=((1.0, 0.60, 1.60), 0.75),
        mottle=0.15,
        covered=0.45,
        granule_strength=(0.75, 1.0),
        jitter=(0.016, 0.07, 0.05),
        cast=0.06,
        radius=((0.57, 0.68), (0.42, 0.51)),
        nucleus=((0.78, 0.88), (0.52, 0.62)),
        shift=0.08,
        blurred=1.0,
        blur=0.85,
        grain=0.08,
        vignette=0.22,
    ),
}
