"""What prepares the inputs of towers: images as pixels, texts as tokens."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Float
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.implementations import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from cibr.data import Pairs
from cibr.data.pairs import to_rgb
from cibr.utils import batched

_DECODED_AT_ONCE = 16  # images in memory at full size
_MOST_END_TOKENS = 4  # that a tokenizer adds to a text
_VOCABULARY_SIZE = 2048  # of a tiny model's tokenizer, at most


@dataclass
class ImageProcessor:
    """Image preprocessing of tiny models and of image towers of timm, with the interface of those
    of transformers: an antialiased bicubic resize of the short side, a centre crop and a
    normalisation.

    The pixels equal those of `transformers.CLIPImageProcessor`, in two thirds of its time and
    without importing torchvision.

    Args:
        size: the side of the square images, in pixels.
        image_mean: channel means of the normalisation, for values in [0, 1].
        image_std: channel standard deviations of the normalisation.
    """

    size: int
    image_mean: Sequence[float] = (0.5, 0.5, 0.5)
    image_std: Sequence[float] = (0.5, 0.5, 0.5)

    def __call__(self, images: list[Image.Image], return_tensors: str = "pt") -> dict[str, Tensor]:
        """`pixel_values` of RGB images, normalised squares [n, 3, size, size]; `return_tensors` is
        there for the interface.
        """
        mean = torch.tensor(self.image_mean).view(3, 1, 1)
        std = torch.tensor(self.image_std).view(3, 1, 1)
        squares = torch.stack([self._square(image) for image in images])
        return {"pixel_values": (squares.float() / 255 - mean) / std}

    def _square(self, image: Image.Image) -> Tensor:
        """Resized and cropped pixels, [3, size, size], from 0 to 255."""
        pixels = torch.from_numpy(np.array(image)).movedim(2, 0)
        short = min(pixels.shape[1:])
        if short != self.size:
            sides = [self.size * side // short for side in pixels.shape[1:]]
            pixels = F.interpolate(pixels[None], sides, mode="bicubic", antialias=True)[0]
        top, left = ((side - self.size) // 2 for side in pixels.shape[1:])
        return pixels[:, top : top + self.size, left : left + self.size]


def preprocess(processor: Callable, images: list[Image.Image]) -> Float[Tensor, "n 3 h w"]:
    """Images of any size and mode, see `to_rgb`, as inputs of an image tower."""
    return processor([to_rgb(image) for image in images], return_tensors="pt")["pixel_values"]


def decode_images(
    processor: Callable, pairs: Pairs, rows: Iterable[int]
) -> Float[Tensor, "n 3 h w"]:
    """Images of pairs as inputs of an image tower.

    Photos are far larger at full size, so only a few are in memory at a time.
    """
    batches = batched(rows, _DECODED_AT_ONCE)
    return torch.cat([preprocess(processor, [pairs.image(i) for i in batch]) for batch in batches])


def train_tokenizer(texts: list[str], context: int = 64) -> transformers.PreTrainedTokenizerFast:
    """A lower-case byte-level BPE tokenizer learned from texts; it can encode every string."""
    learned = ByteLevelBPETokenizer(lowercase=True, unicode_normalizer="nfc", add_prefix_space=True)
    learned.train_from_iterator(
        texts,
        vocab_size=_VOCABULARY_SIZE,
        min_frequency=0,
        show_progress=False,
        special_tokens=["<pad>", "<end>"],
    )
    tokenizer = Tokenizer.from_str(learned.to_str())  # of a class that has a post-processor
    ends = [("<end>", tokenizer.token_to_id("<end>"))]
    tokenizer.post_processor = TemplateProcessing(single="$A <end>", special_tokens=ends)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        model_max_length=context,
    )


def warn_of_cut_texts(tokenizer: Any, context: int, pairs: Pairs, texts: list[str]) -> None:
    """Warns with the number of texts that have more tokens than a model reads.

    Args:
        tokenizer: of the model.
        context: the most tokens that it reads.
        pairs: whose texts these are, for the message.
        texts: captions or prompts.
    """
    # A token has a byte or more, so shorter texts fit and are not tokenised.
    shortest = context - _MOST_END_TOKENS
    doubtful = [text for text in texts if len(text.encode(errors="replace")) > shortest]
    n_cut = sum(len(tokenizer(text, verbose=False)["input_ids"]) > context for text in doubtful)
    if n_cut:
        warnings.warn(
            f"{n_cut:,} of {len(texts):,} texts of {pairs.name}-{pairs.split} are cut to the "
            f"{context} tokens that the model reads",
            stacklevel=2,
        )
