"""Towers: the encoders of a dual encoder, up to their pooled features.

Towers read images and texts with a processor and a tokenizer of their own and pool them:
`image_pooled` takes normalised pixels, `text_pooled` token ids. `FrozenTowers` are named and never
trained, `TransformersTowers` are those of a dual encoder of transformers, to be fine-tuned, and
`cibr.models.tiny` has two that are trained from scratch.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from cibr.models._io import from_hub, is_hub_id, load_model, load_tokenizer
from cibr.models.preprocessing import ImageProcessor, preprocess

_TIMM_IMAGE_SIZE = 160  # pixels
_PROJECTIONS = ("visual_projection", "text_projection")  # heads within models of transformers

_Pixels = Float[Tensor, "n 3 h w"]  # normalised images
_Tokens = Int[Tensor, "n t"]  # token ids, or their mask: 1 for tokens, 0 for padding
_Pooled = Float[Tensor, "n p"]


class Towers(nn.Module):
    """An image and a text encoder up to their pooled features, with what prepares their inputs.

    A subclass has `image_pooled`, of normalised images, and `text_pooled`, of token ids and mask.

    Args:
        processor: of images, from transformers, or an `ImageProcessor`.
        tokenizer: of transformers.
        n_positions: tokens that the text tower has positions for.

    Attributes:
        dim_image: dimension of the pooled features of images.
        dim_text: dimension of the pooled features of texts.
        names: of frozen towers, folders or hub ids; else None.
        is_frozen: whether no weight is trained, so that pooled features can be cached.
        is_pretrained: whether training begins at weights that know something.
        reads_padding: whether the text tower attends to padding.
    """

    dim_image: int
    dim_text: int
    names: tuple[str, str] | None = None
    is_frozen = False
    is_pretrained = True
    reads_padding = False

    def __init__(self, processor: Callable, tokenizer, n_positions: int):
        super().__init__()
        self.processor = processor
        self.tokenizer = tokenizer
        self.n_positions = n_positions

    def image_pooled(self, pixels: _Pixels) -> _Pooled:
        """Pooled features of normalised images."""
        raise NotImplementedError

    def text_pooled(self, ids: _Tokens, mask: _Tokens) -> _Pooled:
        """Pooled features of token ids."""
        raise NotImplementedError

    @torch.no_grad()
    def measured_widths(self) -> tuple[int, int]:
        """The dimensions of the pooled features of images and of texts, from a pass of each."""
        images = self.image_pooled(preprocess(self.processor, [Image.new("RGB", (64, 48))]))
        tokens = torch.zeros(1, 2, dtype=torch.long)
        texts = self.text_pooled(tokens, torch.ones_like(tokens))
        return images.shape[1], texts.shape[1]


def mean_pool(states: Float[Tensor, "n t p"], mask: _Tokens) -> _Pooled:
    """The mean over the tokens, without padding."""
    weight = mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)


class TwoTowers(Towers):
    """An image and a text model of transformers that know nothing of each other.

    Args:
        image: with a pooled output.
        text: with hidden states, whose mean over the tokens is pooled.
        processor: of the images.
        tokenizer: of the text model.
    """

    def __init__(self, image: nn.Module, text: nn.Module, processor: Callable, tokenizer):
        super().__init__(processor, tokenizer, text.config.max_position_embeddings)
        self.image_tower = image
        self.text_tower = text

    def image_pooled(self, pixels: _Pixels) -> _Pooled:
        """Pooled features of normalised images."""
        # Convolutions run twice as fast on a CPU in this format.
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return self.image_tower(pixel_values=pixels).pooler_output.flatten(1)

    def text_pooled(self, ids: _Tokens, mask: _Tokens) -> _Pooled:
        """Mean last hidden states of token ids."""
        states = self.text_tower(input_ids=ids, attention_mask=mask).last_hidden_state
        return mean_pool(states, mask)

    def save_copies(self, folder: Path) -> None:
        """Writes `image_tower/` and `text_tower/` into a folder."""
        self.image_tower.save_pretrained(folder / "image_tower")
        if not isinstance(self.processor, ImageProcessor):  # one of timm is in the model's config
            self.processor.save_pretrained(folder / "image_tower")
        self.text_tower.save_pretrained(folder / "text_tower")
        self.tokenizer.save_pretrained(folder / "text_tower")


class TransformersTowers(Towers):
    """The towers of a dual encoder of transformers: any class with `get_image_features` and
    `get_text_features`.

    Where these end in linear projections (CLIP, MetaCLIP 2, AltCLIP, Chinese CLIP, CLIPSeg,
    VisionTextDualEncoder), `exchange_projections` makes their inputs the pooled features. Elsewhere
    (SigLIP) the embeddings take the place of pooled features.

    SigLIP was trained on texts padded to the context, with attention to the padding; see
    https://huggingface.co/docs/transformers/model_doc/siglip.

    Args:
        model: a model of transformers.
        processor: of the images.
        tokenizer: of the model.
    """

    def __init__(self, model: nn.Module, processor: Callable, tokenizer):
        super().__init__(processor, tokenizer, model.config.text_config.max_position_embeddings)
        self.model = model
        self.reads_padding = model.config.model_type.startswith("siglip")

    @property
    def image_tower(self) -> nn.Module:
        """The whole model, which has both towers."""
        return self.model

    @property
    def text_tower(self) -> nn.Module:
        """The whole model, which has both towers."""
        return self.model

    def exchange_projections(self, image: nn.Module, text: nn.Module) -> list[nn.Module]:
        """Replaces the projections of images and texts; returns those before, or identities if it
        had none.
        """
        before = [getattr(self.model, name, nn.Identity()) for name in _PROJECTIONS]
        self.model.visual_projection = image
        self.model.text_projection = text
        return before

    def image_pooled(self, pixels: _Pixels) -> _Pooled:
        """Pooled features of normalised images."""
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    def text_pooled(self, ids: _Tokens, mask: _Tokens) -> _Pooled:
        """Pooled features of token ids."""
        masked = {} if self.reads_padding else {"attention_mask": mask}
        return self.model.get_text_features(input_ids=ids, **masked).pooler_output

    def save_copies(self, folder: Path) -> None:
        """Writes the model without its projections into `towers/` of a folder."""
        self.save_model(folder / "towers")

    def save_model(self, folder: Path) -> None:
        """Writes the model as on the hub, with its tokenizer and image preprocessing."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if not isinstance(self.processor, ImageProcessor):
            self.processor.save_pretrained(folder)


class FrozenTowers(Towers):
    """Pretrained towers by name, which are loaded as soon as an image or a text needs them.

    They are no submodules, so their weights are neither parameters of a model nor in its state, and
    they stay in eval mode. Several models may share one object.

    Args:
        image: folder or hub id of an image tower with pooled features.
        text: folder or hub id of a text tower and its tokenizer; the same as `image` for a dual
            encoder of transformers.
        dims: dimensions of the pooled features of images and of texts; None: the towers are loaded
            now, and tell.
        copies: a folder with copies of the towers, which are loaded now in place of the names.

    Raises:
        FileNotFoundError: a tower, its tokenizer or its image preprocessing is missing.
        ValueError: weights that do not fit a tower or are not finite.
    """

    is_frozen = True

    def __init__(
        self,
        image: str,
        text: str,
        dims: Sequence[int] | None = None,
        copies: Path | None = None,
    ):
        nn.Module.__init__(self)
        self.names = (str(image), str(text))
        self._copies = copies
        self._towers: list[Towers] = []  # in a list, so that it is not registered as a submodule
        self.register_buffer("_like", torch.empty(0), persistent=False)  # has device and type
        needs_towers = dims is None or copies is not None
        self.dim_image, self.dim_text = self.loaded.measured_widths() if needs_towers else dims

    @property
    def loaded(self) -> TwoTowers | TransformersTowers:
        """The towers, on the device and in the type of the model; they are loaded if need be.

        Raises:
            FileNotFoundError: a tower is neither here nor on the hub; the message says the fix.
        """
        if not self._towers:
            self._towers.append(load_towers(*self._locations()))
        [towers] = self._towers
        weight = next(towers.parameters())
        if weight.device != self._like.device or weight.dtype != self._like.dtype:
            towers.to(self._like)
        return towers

    def _locations(self) -> tuple[str | Path, str | Path]:
        if self._copies is None:
            return self.names
        if self.names[0] == self.names[1]:
            return self._copies / "towers", self._copies / "towers"
        return self._copies / "image_tower", self._copies / "text_tower"

    @property
    def processor(self) -> Callable:
        """Of images."""
        return self.loaded.processor

    @property
    def tokenizer(self) -> Any:
        """Of texts."""
        return self.loaded.tokenizer

    @property
    def n_positions(self) -> int:
        """Tokens that the text tower has positions for."""
        return self.loaded.n_positions

    @property
    def reads_padding(self) -> bool:
        """Whether the text tower attends to padding."""
        return self.loaded.reads_padding

    def image_pooled(self, pixels: _Pixels) -> _Pooled:
        """Pooled features of normalised images."""
        return self.loaded.image_pooled(pixels)

    def text_pooled(self, ids: _Tokens, mask: _Tokens) -> _Pooled:
        """Pooled features of token ids."""
        return self.loaded.text_pooled(ids, mask)

    def save(self, folder: Path, copy: bool = False) -> dict[str, Any]:
        """Returns the arguments of `load`; towers without a hub id, and all with `copy`, are copied
        into the folder.

        Raises:
            FileNotFoundError: towers to be copied that are missing.
        """
        is_copied = copy or not all(map(is_hub_id, self.names))
        if is_copied:
            self.loaded.save_copies(folder)
        image, text = self.names
        dims = [self.dim_image, self.dim_text]
        return {"image": image, "text": text, "dims": dims, "are_copied": is_copied}

    @classmethod
    def load(cls, folder: Path, *, are_copied: bool, **arguments: Any) -> "FrozenTowers":
        """Towers from what `save` returned; its copies in the folder are loaded at once."""
        return cls(**arguments, copies=folder if are_copied else None)


def load_transformers_towers(name: str | Path, unused: tuple[str, ...] = ()) -> TransformersTowers:
    """The towers of a dual encoder of transformers, with its projections.

    Args:
        name: its folder or hub id.
        unused: of `load_model`.

    Raises:
        FileNotFoundError: there is none of this name.
        ValueError: a model of another kind, or weights that do not fit.
    """
    model = load_model(name, unused)
    if not (hasattr(model, "get_image_features") and hasattr(model, "logit_scale")):
        raise ValueError(
            f"{type(model).__name__} is not a dual encoder: give a model such as a CLIPModel"
        )
    return TransformersTowers(model, from_hub("AutoImageProcessor", name), load_tokenizer(name))


def load_towers(image: str | Path, text: str | Path) -> TwoTowers | TransformersTowers:
    """Towers without gradients and projections.

    Args:
        image: folder or hub id of an image tower with pooled features.
        text: of a text tower and its tokenizer; the same as `image` for a dual encoder.
    """
    if image == text:
        towers = load_transformers_towers(image, unused=_PROJECTIONS)
        towers.exchange_projections(nn.Identity(), nn.Identity())
        return towers.requires_grad_(False).eval()
    image_model = load_model(image)
    text_model = load_model(text, unused="pooler.")
    if hasattr(image_model.config, "pretrained_cfg"):
        statistics = image_model.config.pretrained_cfg
        mean = tuple(statistics["mean"])
        std = tuple(statistics["std"])
        processor = ImageProcessor(_TIMM_IMAGE_SIZE, image_mean=mean, image_std=std)
    else:
        processor = from_hub("AutoImageProcessor", image)
    towers = TwoTowers(image_model, text_model, processor, load_tokenizer(text))
    return towers.requires_grad_(False).eval()
