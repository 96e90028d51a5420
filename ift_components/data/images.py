"""The one path from a picture to the encoder's input."""

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchtune.models.clip import CLIPImageTransform
from torchtune.models.llama3_2_vision import Llama3VisionTransform


class ImageTransform:
    """Turns a picture into one tile: upright, RGB, squashed to a square, normalised in fp32.

    The authors squash every image to one 560 x 560 tile. One tile for every image of a run also keeps an image's embedding
    independent of its batch mates, because torchtune's encoder attends to the padding tiles of a mixed batch.

    Args:
        transform: the model's transform; its tile size, mean and standard deviation are used.
    """

    def __init__(self, transform: Llama3VisionTransform) -> None:
        reference = transform.transform_image
        self.size = reference.tile_size
        # The model's own transform converts to bf16 before it normalises; this one stays in fp32.
        self._normalise = CLIPImageTransform(
            image_mean=reference.mean,
            image_std=reference.std,
            tile_size=self.size,
            max_num_tiles=1,
            dtype=torch.float32,
        )

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the picture as [1 tile, 3, size, size] in fp32."""
        upright = ImageOps.exif_transpose(image).convert("RGB")
        squashed = upright.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return self._normalise({"image": squashed})["image"]
