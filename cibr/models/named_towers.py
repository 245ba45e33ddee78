"""Pretrained towers that a model keeps by name: `FrozenTowers`, and `StagedTowers`, whose last
stages are trained.

A name is a folder or a hub id. The weights that stay frozen are neither parameters of the model nor
in its folder, which has the names instead.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cibr.models.loading import (
    is_hub_id,
    is_image_classifier,
    is_timm,
    load_image_classifier,
    load_model,
    load_pretrained,
    load_tokenizer,
)
from cibr.models.preprocessing import ImageProcessor
from cibr.models.towers import (
    Towers,
    TransformersTowers,
    TwoTowers,
    load_transformers_towers,
)
from cibr.utils import check_number

# Pixels, in place of the checkpoints' own, such as 224: half the work. Shipped features have it.
_TIMM_IMAGE_SIZE = 160
_PROJECTIONS = ("visual_projection", "text_projection")  # heads within models of transformers

_Pixels = Float[Tensor, "n 3 h w"]
_Tokens = Int[Tensor, "n t"]
_Pooled = Float[Tensor, "n p"]


class FrozenTowers(Towers):
    """Pretrained towers by name, which are loaded as soon as an image or a text needs them.

    They are not submodules, so their weights are neither parameters of a model nor in its state,
    and they stay in eval mode. Several models may share one object.

    Args:
        image_tower: folder or hub id of an image tower with pooled features.
        text_tower: folder or hub id of a text tower and its tokenizer; the same as `image_tower`
            for a dual encoder of transformers.
        dims_pooled: dimensions of the pooled features of images and of texts; None: the towers are
            loaded now and measured.
        copies: a folder with copies of the towers, which are loaded now in place of the names.

    Raises:
        FileNotFoundError: a tower, its tokenizer or its image preprocessing is missing.
        ValueError: weights that do not fit a tower or are not finite.
    """

    is_frozen = True

    def __init__(
        self,
        image_tower: str,
        text_tower: str,
        dims_pooled: Sequence[int] | None = None,
        copies: Path | None = None,
    ):
        super().__init__()
        self.names = (str(image_tower), str(text_tower))
        self._copies = copies
        self._unregistered: list[TwoTowers | TransformersTowers] = []  # one, once it is loaded
        # A model moves its buffers to its device and type, and the towers follow this one.
        self.register_buffer("_like", torch.empty(0), persistent=False)
        is_loaded_now = dims_pooled is None or copies is not None
        if is_loaded_now:
            dims_pooled = self.loaded.dim_image, self.loaded.dim_text
        self.dim_image, self.dim_text = dims_pooled

    @property
    def loaded(self) -> TwoTowers | TransformersTowers:
        """The towers, on the device and in the type of the model; they are loaded if need be.

        Raises:
            FileNotFoundError: a tower is neither here nor on the hub; the message says the fix.
        """
        if not self._unregistered:
            self._unregistered.append(load_named_towers(*self._locations()))
        [towers] = self._unregistered
        is_alike = all(
            weight.device == self._like.device and weight.dtype == self._like.dtype
            for weight in towers.parameters()
        )
        if not is_alike:
            towers.to(self._like)
        return towers

    def _locations(self) -> tuple[str | Path, str | Path]:
        image_tower, text_tower = self.names
        if self._copies is None:
            return image_tower, text_tower
        if image_tower == text_tower:
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
        image_tower, text_tower = self.names
        are_copied = copy or not (is_hub_id(image_tower) and is_hub_id(text_tower))
        if are_copied:
            self.loaded.write_copies(folder)
        return {
            "image_tower": image_tower,
            "text_tower": text_tower,
            "dims_pooled": [self.dim_image, self.dim_text],
            "are_copied": are_copied,
        }

    @classmethod
    def load(cls, folder: Path, *, are_copied: bool, **arguments: Any) -> "FrozenTowers":
        """Towers from what `save` returned; its copies in the folder are loaded at once."""
        return cls(**arguments, copies=folder if are_copied else None)


class StagedTowers(FrozenTowers):
    """Pretrained towers by name whose last stages are trained, while the earlier ones are frozen.

    Only the parameters of the trained stages belong to a model, its state and its folder. The
    towers stay in eval mode: without dropout and with the stored statistics of batch normalisation,
    so that the gradient of a batch does not depend on its division into micro-batches.

    Args:
        image_tower: see `FrozenTowers`, as `text_tower`, `dims_pooled` and `copies`.
        n_stages: stages that are trained of each tower, counted from its end, see `stages_of`.

    Raises:
        FileNotFoundError: a tower, its tokenizer or its image preprocessing is missing.
        ValueError: a tower with fewer stages, or a dual encoder.
    """

    is_frozen = False

    def __init__(
        self,
        image_tower: str,
        text_tower: str,
        dims_pooled: Sequence[int] | None = None,
        copies: Path | None = None,
        *,
        n_stages: int,
    ):
        super().__init__(image_tower, text_tower, dims_pooled, copies)
        check_number("train_stages", n_stages, 1, whole=True)
        if image_tower == text_tower:
            raise ValueError(f"{image_tower!r} is a dual encoder: fine-tune it as a model itself")
        self.n_stages = n_stages
        self.image_stages = self._last_stages(self.loaded.image_tower, image_tower)
        self.text_stages = self._last_stages(self.loaded.text_tower, text_tower)

    def _last_stages(self, tower: nn.Module, name: str) -> nn.ParameterList:
        stages = stages_of(tower)
        if self.n_stages > len(stages):
            raise ValueError(f"{name!r} has {len(stages)} stages: train at most so many")
        trained = [parameter for stage in stages[-self.n_stages :] for parameter in stage]
        return nn.ParameterList(parameter.requires_grad_() for parameter in trained)

    def save(self, folder: Path, copy: bool = False) -> dict[str, Any]:
        """As `FrozenTowers.save`."""
        return {**super().save(folder, copy), "n_stages": self.n_stages}


def load_named_towers(
    image_tower: str | Path, text_tower: str | Path
) -> TwoTowers | TransformersTowers:
    """Towers without projections and gradients, in eval mode.

    Args:
        image_tower: folder or hub id of an image tower with pooled features; those of an image
            classifier are what its last layer reads.
        text_tower: of a text tower and its tokenizer; the same as `image_tower` for a dual encoder.
    """
    if image_tower == text_tower:
        towers = load_transformers_towers(image_tower, unused=_PROJECTIONS)
        return towers.requires_grad_(False).eval()
    image_model = _load_image_model(image_tower)
    text_model = load_model(text_tower, unused="pooler.")
    if hasattr(image_model.config, "pretrained_cfg"):  # of timm
        statistics = image_model.config.pretrained_cfg
        is_of_one_size = statistics.get("fixed_input_size", False)  # such as a ViT
        processor = ImageProcessor(
            statistics["input_size"][-1] if is_of_one_size else _TIMM_IMAGE_SIZE,
            image_mean=tuple(statistics["mean"]),
            image_std=tuple(statistics["std"]),
        )
    else:
        processor = load_pretrained("AutoImageProcessor", image_tower)
    towers = TwoTowers(image_model, text_model, processor, load_tokenizer(text_tower))
    return towers.requires_grad_(False).eval()


def _load_image_model(name: str | Path) -> nn.Module:
    if is_image_classifier(name) and not is_timm(name):
        model, last_layer = load_image_classifier(name)
        if last_layer is not None:
            return _PooledClassifier(model, last_layer)
    return load_model(name)  # in timm, its pooled output is what a linear classifier reads


class _PooledClassifier(nn.Module):
    """An image classification model of transformers whose pooled output is what its last layer
    reads; a pooled output of its own may be another one, as in ViT.
    """

    def __init__(self, model: nn.Module, last_layer: nn.Linear):
        super().__init__()
        self.model = model
        self.config = model.config
        # Its name, so that a copy of this module finds its own layer.
        [self._last_layer] = [name for name, x in model.named_modules() if x is last_layer]

    def forward(self, pixel_values: _Pixels) -> BaseModelOutputWithPooling:
        read: list[Tensor] = []
        last_layer = self.model.get_submodule(self._last_layer)
        with last_layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0])):
            self.model(pixel_values=pixel_values)
        return BaseModelOutputWithPooling(pooler_output=read[0])

    def save_pretrained(self, folder: Path) -> None:
        """Writes the whole model, as on the hub."""
        self.model.save_pretrained(folder)


def stages_of(tower: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of each stage of a tower, first to last.

    Stages are the blocks of a model of timm, without its stem, the layers of a transformer, and the
    stages of other models of transformers. What comes between the last stage and the pooled
    features, such as a norm, belongs to the last stage.
    """
    is_of_timm = hasattr(tower, "timm_model")
    return _timm_stages(tower.timm_model) if is_of_timm else _transformers_stages(tower)


def _timm_stages(model: nn.Module) -> list[list[nn.Parameter]]:
    from timm.models import group_parameters  # late: timm takes long to import

    groups = group_parameters(model, model.group_matcher(coarse=True))
    _stem, *stages = [groups[i] for i in sorted(groups)]
    return [[model.get_parameter(name) for name in stage] for stage in stages]


def _transformers_stages(model: nn.Module) -> list[list[nn.Parameter]]:
    lists = {name: x for name, x in model.named_modules() if isinstance(x, nn.ModuleList)}
    if not lists:
        raise ValueError(f"{type(model).__name__} has no stages: leave train_stages out")
    # Stages lie in one of the outermost lists, the one with most of the weights.
    depth = min(name.count(".") for name in lists)
    path = max(
        [name for name in lists if name.count(".") == depth],
        key=lambda name: sum(weight.numel() for weight in lists[name].parameters()),
    )
    stages = [list(stage.parameters()) for stage in lists[path]]

    names = [name for name, _ in model.named_parameters()]  # in the order of the forward pass
    last_of_list = max(i for i, name in enumerate(names) if name.startswith(f"{path}."))
    for name in names[last_of_list + 1 :]:
        # Mean-pooled texts pass no pooler, and a classifier comes after the pooled features.
        if "pooler" not in name and "classifier" not in name:
            stages[-1].append(model.get_parameter(name))
    return stages
