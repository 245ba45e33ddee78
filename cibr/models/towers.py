"""Towers: the encoders of a dual encoder, up to their pooled features.

Towers read images and texts with a processor and a tokenizer of their own and pool them:
`image_pooled` takes normalised pixels, `text_pooled` token ids. `TwoTowers` are two models of
transformers, `TransformersTowers` are those of one dual encoder. `cibr.models.named_towers` has
pretrained ones that are frozen, wholly or up to their last stages, and `cibr.models.tiny` two that
are trained from scratch.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from cibr.models.loading import load_model, load_pretrained, load_tokenizer
from cibr.models.preprocessing import ImageProcessor, preprocess

_Pixels = Float[Tensor, "n 3 h w"]  # normalised images
_Tokens = Int[Tensor, "n t"]  # token ids, or their mask: 1 for tokens, 0 for padding
_Pooled = Float[Tensor, "n p"]


class Towers(nn.Module):
    """The interface of an image and a text encoder, up to their pooled features.

    To be saved, a subclass also needs an entry in `cibr.models.TOWERS`.

    Attributes:
        processor: of images, from transformers, or an `ImageProcessor`.
        tokenizer: of transformers.
        n_positions: tokens that the text tower has positions for.
        dim_image: dimension of the pooled features of images.
        dim_text: dimension of the pooled features of texts.
        names: of frozen towers, folders or hub ids; else None.
        is_frozen: whether no weight is trained, so that pooled features can be cached.
        is_pretrained: whether training begins at weights that know something.
        reads_padding: whether the text tower attends to padding.
    """

    processor: Callable
    tokenizer: Any
    n_positions: int
    dim_image: int
    dim_text: int
    names: tuple[str, str] | None = None
    is_frozen = False
    is_pretrained = True
    reads_padding = False

    def image_pooled(self, pixels: _Pixels) -> _Pooled:
        """Pooled features of normalised images."""
        raise NotImplementedError

    def text_pooled(self, ids: _Tokens, mask: _Tokens) -> _Pooled:
        """Pooled features of token ids."""
        raise NotImplementedError

    def save(self, folder: Path, copy: bool = False) -> dict[str, Any]:
        """Writes the files that `load` needs besides weights, and returns its other arguments, as
        JSON can store them.

        Args:
            folder: an existing one.
            copy: whether towers that are stored by name are copied, too.
        """
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path, **arguments: Any) -> "Towers":
        """Towers from what `save` wrote and returned, with new weights."""
        raise NotImplementedError


def mean_pool(states: Float[Tensor, "n t p"], mask: _Tokens) -> _Pooled:
    """The mean over the tokens, without padding."""
    weight = mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)


class TwoTowers(Towers):
    """An image and a text model of transformers that know nothing of each other.

    Args:
        image_tower: a model with a pooled output.
        text_tower: a model with hidden states, whose mean over the tokens is pooled.
        processor: of the images.
        tokenizer: of the text model.
    """

    def __init__(
        self, image_tower: nn.Module, text_tower: nn.Module, processor: Callable, tokenizer: Any
    ):
        super().__init__()
        self.image_tower = image_tower
        self.text_tower = text_tower
        self.processor = processor
        self.tokenizer = tokenizer
        self.n_positions = text_tower.config.max_position_embeddings
        self.dim_image, self.dim_text = _measured_dims(self)

    def image_pooled(self, pixels: _Pixels) -> _Pooled:
        """Pooled features of normalised images."""
        # Convolutions run twice as fast on a CPU in this format.
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return self.image_tower(pixel_values=pixels).pooler_output.flatten(1)

    def text_pooled(self, ids: _Tokens, mask: _Tokens) -> _Pooled:
        """Mean last hidden states of token ids."""
        states = self.text_tower(input_ids=ids, attention_mask=mask).last_hidden_state
        return mean_pool(states, mask)

    def write_copies(self, folder: Path) -> None:
        """Writes both models, as on the hub, into `image_tower/` and `text_tower/` of a folder."""
        self.image_tower.save_pretrained(folder / "image_tower")
        if not isinstance(self.processor, ImageProcessor):  # timm's mean and std are in the config
            self.processor.save_pretrained(folder / "image_tower")
        self.text_tower.save_pretrained(folder / "text_tower")
        self.tokenizer.save_pretrained(folder / "text_tower")


class TransformersTowers(Towers):
    """The towers of a dual encoder of transformers: any class with `get_image_features` and
    `get_text_features`.

    Where these end in linear projections (CLIP, MetaCLIP 2, AltCLIP, Chinese CLIP, CLIPSeg,
    VisionTextDualEncoder), their inputs are the pooled features: the projections are taken out of
    the model. Elsewhere (SigLIP) the embeddings take the place of pooled features.

    SigLIP was trained on texts padded to the context, with attention to the padding; see
    https://huggingface.co/docs/transformers/model_doc/siglip.

    Args:
        model: a model of transformers.
        processor: of the images.
        tokenizer: of the model.

    Attributes:
        projections: of images and of texts, identities where the model had none.
    """

    def __init__(self, model: nn.Module, processor: Callable, tokenizer: Any):
        super().__init__()
        self.model = model
        self.processor = processor
        self.tokenizer = tokenizer
        self.n_positions = model.config.text_config.max_position_embeddings
        self.reads_padding = model.config.model_type.startswith("siglip")
        image_projection = getattr(model, "visual_projection", nn.Identity())
        text_projection = getattr(model, "text_projection", nn.Identity())
        self.projections = (image_projection, text_projection)  # not submodules: a head has them
        self._set_projections(nn.Identity(), nn.Identity())
        self.dim_image, self.dim_text = _measured_dims(self)

    @property
    def image_tower(self) -> nn.Module:
        """The whole model, whose weights and configuration the feature cache reads."""
        return self.model

    @property
    def text_tower(self) -> nn.Module:
        """The whole model, whose weights and configuration the feature cache reads."""
        return self.model

    def _set_projections(self, image: nn.Module, text: nn.Module) -> None:
        self.model.visual_projection = image
        self.model.text_projection = text

    def image_pooled(self, pixels: _Pixels) -> _Pooled:
        """Pooled features of normalised images."""
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    def text_pooled(self, ids: _Tokens, mask: _Tokens) -> _Pooled:
        """Pooled features of token ids."""
        masked = {} if self.reads_padding else {"attention_mask": mask}
        return self.model.get_text_features(input_ids=ids, **masked).pooler_output

    def write_model(self, folder: Path, image: nn.Module, text: nn.Module) -> None:
        """Writes the model with these projections as on the hub, with its tokenizer and image
        preprocessing.
        """
        self._set_projections(image, text)
        try:
            self.model.save_pretrained(folder)
        finally:
            self._set_projections(nn.Identity(), nn.Identity())
        self.tokenizer.save_pretrained(folder)
        if not isinstance(self.processor, ImageProcessor):
            self.processor.save_pretrained(folder)

    def write_copies(self, folder: Path) -> None:
        """Writes the model without its projections into `towers/` of a folder."""
        self.write_model(folder / "towers", nn.Identity(), nn.Identity())


@torch.no_grad()
def _measured_dims(towers: Towers) -> tuple[int, int]:
    """The dimensions of the pooled features of images and of texts, from a pass of each."""
    pixels = preprocess(towers.processor, [Image.new("RGB", (64, 48))])  # any image
    ids = torch.zeros(1, 2, dtype=torch.long)
    mask = torch.ones_like(ids)
    return towers.image_pooled(pixels).shape[1], towers.text_pooled(ids, mask).shape[1]


def load_transformers_towers(name: str | Path, unused: tuple[str, ...] = ()) -> TransformersTowers:
    """The towers of a dual encoder of transformers, with its projections.

    Args:
        name: its folder or hub id.
        unused: prefixes of weights that may be missing, see `load_model`.

    Raises:
        FileNotFoundError: there is none of this name.
        ValueError: a model of another kind, or weights that do not fit.
    """
    model = load_model(name, unused)
    if not (hasattr(model, "get_image_features") and hasattr(model, "logit_scale")):
        raise ValueError(
            f"{type(model).__name__} is not a dual encoder: give a model such as a CLIPModel"
        )
    processor = load_pretrained("AutoImageProcessor", name)
    return TransformersTowers(model, processor, load_tokenizer(name))
