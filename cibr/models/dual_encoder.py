"""`DualEncoder`: pictures and texts as unit vectors in one space, from scratch, frozen towers or a whole CLIP.

One class around three backbones. A backbone pools each side (`image_pooled`, `text_pooled`) and projects it
(`image_head`, `text_head`); this class adds what is common: preprocessing, the tokenizer, the temperature,
log variances where an estimator learns them, embedding of any pictures and strings, and a folder to save to.
"""

import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, CLIPModel

from cibr.images import to_rgb
from cibr.models import pretrained, saving, tiny

MAX_LOGIT_SCALE = 100.0  # as in CLIP


class Encoded(NamedTuple):
    """One side of a batch: unit vectors, what the head saw, and log variances where the model learns them."""

    features: Float[Tensor, "n d"]
    pooled: Float[Tensor, "n p"]
    log_variance: Float[Tensor, "n d"] | None


class DualEncoder(nn.Module):
    """An image encoder and a text encoder with a joint space of `dim` dimensions.

    Build one with `tiny`, `frozen`, `clip` or `from_pretrained` rather than by hand.

    Examples:
        >>> from cibr import DualEncoder, load_pairs
        >>> pairs = load_pairs("glyphs", "test")
        >>> model = DualEncoder.tiny(pairs.texts())
        >>> model.embed_images([pairs.image(0), pairs.image(1)]).shape
        torch.Size([2, 128])
        >>> round(model.embed_texts(["latin small letter a"]).norm().item(), 4)
        1.0
    """

    def __init__(self, backbone: nn.Module, processor, tokenizer, learn_variance: bool = False):
        super().__init__()
        self.backbone, self.processor, self.tokenizer = backbone, processor, tokenizer
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.learn_variance = learn_variance
        if learn_variance:
            self.image_log_variance = _variance_head(backbone.dim_image_pooled, backbone.dim)
            self.text_log_variance = _variance_head(backbone.dim_text_pooled, backbone.dim)
        self.register_buffer("mean", torch.tensor(processor.image_mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(processor.image_std).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def tiny(
        cls,
        texts: list[str],
        *,
        dim: int = 128,
        width: int = 32,
        image_size: int = 32,
        dropout: float = 0.0,
        **options,
    ) -> "DualEncoder":
        """A small model from scratch; its tokenizer is learned from `texts`. `torch.manual_seed` fixes it."""
        if not texts:
            raise ValueError("a tiny model learns its tokenizer from texts: give at least one")
        tokenizer = tiny.train_tokenizer(texts)
        backbone = tiny.TinyBackbone(dim, width, len(tokenizer), tokenizer.model_max_length, dropout)
        return cls(backbone, tiny.square_processor(image_size), tokenizer, **options)

    @classmethod
    def frozen(
        cls,
        image_tower: str = pretrained.IMAGE_TOWER,
        text_tower: str = pretrained.TEXT_TOWER,
        *,
        dim: int = 512,
        image_size: int = 160,
        dropout: float = 0.5,
        trained_blocks: int = 0,
        **options,
    ) -> "DualEncoder":
        """Two pretrained towers by folder or hub id, held fixed, under projection heads to be trained; of an
        EfficientNet of timm so many last blocks are trained too."""
        image, text = pretrained.load_tower(image_tower), pretrained.load_tower(text_tower)
        backbone = pretrained.FrozenBackbone(image, text, dim, dropout, trained_blocks)
        processor = tiny.square_processor(image_size)
        processor.image_mean, processor.image_std = pretrained.tower_normalisation(image_tower, image)
        return cls(backbone, processor, pretrained.text_tokenizer(text_tower), **options)

    @classmethod
    def clip(cls, name: str, **options) -> "DualEncoder":
        """A `CLIPModel` by folder or hub id, such as `openai/clip-vit-base-patch32`, with its temperature."""
        clip = pretrained.from_hub(CLIPModel, name, dtype=torch.float32)
        processor = pretrained.from_hub(AutoImageProcessor, name)
        model = cls(pretrained.ClipBackbone(clip), processor, pretrained.text_tokenizer(name), **options)
        model.log_logit_scale.data.copy_(clip.logit_scale.data)
        model.limit_logit_scale()
        return model

    @property
    def kind(self) -> str:
        """`tiny`, `frozen` or `clip`."""
        return self.backbone.kind

    @property
    def dim(self) -> int:
        """The dimensions of the joint space."""
        return self.backbone.dim

    @property
    def image_size(self) -> int:
        """The side of the square that pictures are cut to, in pixels."""
        return self.processor.crop_size["height"]

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """The multiplier of the cosines, 1 / temperature."""
        return self.log_logit_scale.exp()

    def limit_logit_scale(self) -> None:
        """Keeps the multiplier at 100 or less, as in CLIP; for after a step. A clamp inside the loss would have no
        gradient beyond 100, from where the temperature could not come back."""
        self.log_logit_scale.data.clamp_(max=math.log(MAX_LOGIT_SCALE))

    def set_temperature(self, temperature: float, learn: bool) -> None:
        """Sets the temperature and whether training moves it."""
        self.log_logit_scale.data.fill_(-math.log(temperature))
        self.log_logit_scale.requires_grad_(learn)

    def preprocess(self, images: list[Image.Image]) -> UInt8[Tensor, "n 3 h w"]:
        """Pictures of any mode and size, resized and cropped, as bytes; `normalise` makes them the tower's."""
        rgb = [to_rgb(image) for image in images]
        return self.processor(rgb, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]

    def normalise(self, pixels: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """Bytes to the values that the image tower reads."""
        return (pixels.float() / 255 - self.mean) / self.std

    def tokenize(self, texts: list[str], truncate: bool = False) -> tuple[Int[Tensor, "n t"], Int[Tensor, "n t"]]:
        """Token ids and mask, padded to the longest text.

        Raises:
            ValueError: a text longer than the context, unless `truncate` is set.
        """
        context = self.context
        limit = {"truncation": True, "max_length": context} if truncate else {}
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt", verbose=False, **limit)
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        if ids.shape[1] > context:
            longest = int(mask.sum(1).argmax())
            raise ValueError(
                f"a text has {int(mask[longest].sum())} tokens and the model reads {context}: "
                f"{texts[longest][:80]!r}... Shorten it, or cut such texts: truncate=True, truncate_texts in a run"
            )
        return ids, mask

    @property
    def context(self) -> int:
        """The number of tokens that the text encoder reads."""
        return min(self.backbone.context, self.tokenizer.model_max_length)

    def encode_images(self, pixels: Float[Tensor, "n 3 h w"]) -> Encoded:
        """Normalised pictures to unit features."""
        return self.project_images(self.backbone.image_pooled(pixels))

    def encode_texts(self, ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"]) -> Encoded:
        """Token ids to unit features."""
        return self.project_texts(self.backbone.text_pooled(ids, mask))

    def project_images(self, pooled: Float[Tensor, "n p"]) -> Encoded:
        """Pooled image features to unit features."""
        log_variance = self.image_log_variance(pooled) if self.learn_variance else None
        return Encoded(F.normalize(self.backbone.image_head(pooled), dim=-1), pooled, log_variance)

    def project_texts(self, pooled: Float[Tensor, "n p"]) -> Encoded:
        """Pooled text features to unit features."""
        log_variance = self.text_log_variance(pooled) if self.learn_variance else None
        return Encoded(F.normalize(self.backbone.text_head(pooled), dim=-1), pooled, log_variance)

    def embed_images(self, images: list[Image.Image], batch_size: int = 256) -> Float[Tensor, "n d"]:
        """Pictures as unit vectors.

        Args:
            images: PIL images of any mode and size.
            batch_size: how many go through the tower at once.

        Returns:
            Unit float32 vectors on the CPU.
        """
        if isinstance(images, Image.Image):
            raise ValueError("embed_images takes a list of pictures; put a single picture in a list")
        batches = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
        return self._embed(
            lambda batch: self.encode_images(self.normalise(self._move(self.preprocess(batch)))), batches
        )

    def embed_texts(self, texts: list[str], batch_size: int = 256, truncate: bool = False) -> Float[Tensor, "n d"]:
        """Texts as unit vectors.

        Args:
            texts: strings.
            batch_size: how many go through the tower at once.
            truncate: cut texts that are longer than the context instead of refusing them.

        Returns:
            Unit float32 vectors on the CPU.

        Raises:
            ValueError: a text longer than the context, unless `truncate` is set.
        """
        if isinstance(texts, str):
            raise ValueError("embed_texts takes a list of strings; put a single text in a list")
        batches = (texts[i : i + batch_size] for i in range(0, len(texts), batch_size))
        return self._embed(
            lambda batch: self.encode_texts(*map(self._move, self.tokenize(batch, truncate))), batches
        )

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.log_logit_scale.device)

    @torch.no_grad()
    def _embed(self, encode, batches) -> Float[Tensor, "n d"]:
        was_training = self.training
        self.eval()
        try:
            parts = [encode(batch).features.float().cpu() for batch in batches]
        finally:
            self.train(was_training)
        return torch.cat(parts) if parts else torch.zeros(0, self.dim)

    def own_state(self) -> dict[str, Tensor]:
        """All weights that training can move: without the frozen towers."""
        frozen = ("backbone.image_tower.", "backbone.text_tower.") if self.kind == "frozen" else ()
        return {k: v for k, v in self.state_dict().items() if not k.startswith(frozen)}

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes weights, tokenizer and preprocessing to a folder; see `cibr.models.saving`."""
        return saving.save(self, Path(folder))

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "DualEncoder":
        """Loads what `save_pretrained` wrote, bit for bit, or any `CLIPModel` by folder or hub id.

        The repository brings two small models of its own, trained on glyphs: `clip-tiny` and `cibr-tiny`.

        Raises:
            FileNotFoundError: nothing to load there; the message says where was looked.
            ValueError: a folder that is half-written or damaged; the message names the file.
        """
        source = pretrained.trained_model(str(name))
        if saving.holds_model(source):
            return saving.load(cls, source)
        return cls.clip(str(name))


def _variance_head(dim_in: int, dim: int) -> nn.Linear:
    """Log variances from pooled features, one constant at the start: a standard deviation of 0.1 an axis."""
    head = nn.Linear(dim_in, dim)
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, 2 * math.log(0.1))
    return head
