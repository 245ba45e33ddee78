"""`DualEncoder`: images and texts as unit vectors; from scratch, over pretrained towers or from
transformers.

It is made of parts: towers, which pool (`cibr.models.towers`), and a head, which projects
(`cibr.models.heads`). It has the temperature, embeds any images and strings, and has a folder
format (`DualEncoder.save_pretrained`).
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cibr.data.photos import load_classes
from cibr.models.heads import Head, LinearHead, ResidualHead, TransformersHead
from cibr.models.loading import check_weights, resolve
from cibr.models.named_towers import FrozenTowers, StagedTowers
from cibr.models.names import Classifier, NamesHead, load_classifier
from cibr.models.parts import build_head, describe_head, load_towers, save_towers
from cibr.models.preprocessing import preprocess, train_tokenizer
from cibr.models.tiny import TinyTowers
from cibr.models.towers import Towers, TransformersTowers, load_transformers_towers
from cibr.utils import batched

_Pixels = Float[Tensor, "n 3 h w"]
_Tokens = Int[Tensor, "n t"]
_Vectors = Float[Tensor, "n d"]
_Pooled = Float[Tensor, "n p"]
# The towers whose features data/photos has.
IMAGE_TOWER = "timm/tf_efficientnet_lite0.in1k"
TEXT_TOWER = "sentence-transformers/all-MiniLM-L6-v2"
_DESCRIPTION = "cibr.json"
_WEIGHTS = "cibr.safetensors"


class Encoded(NamedTuple):
    """One modality of a batch: unit vectors, and the pooled features that the head projected.

    A model without projections, such as SigLIP, has no pooled features; the unnormalised vectors
    take their place, and its `dim_image_pooled` is None.
    """

    features: Float[Tensor, "n d"]
    pooled: Float[Tensor, "n p"]


class DualEncoder(nn.Module):
    """An image encoder and a text encoder with a joint space of `dim` dimensions.

    Build one with `tiny`, `names`, `frozen` or `from_pretrained`, or from its parts.

    Args:
        towers: what pools images and texts.
        head: what projects pooled features to the joint space.

    Attributes:
        log_logit_scale: the logarithm of the multiplier of the cosines.
        trained_on: the images of its training by `image_key`; empty if they are not known.
        is_pretrained: whether its embeddings mean something already, so that training goes on from
            what it knows.

    Examples:
        >>> from cibr import DualEncoder, load_pairs
        >>> pairs = load_pairs("glyphs", "test")
        >>> model = DualEncoder.tiny(pairs.texts())
        >>> model.embed_images([pairs.image(0), pairs.image(1)]).shape
        torch.Size([2, 128])
        >>> round(model.embed_texts(["latin small letter a"]).norm().item(), 4)
        1.0
    """

    def __init__(self, towers: Towers, head: Head):
        super().__init__()
        self.towers = towers
        self.head = head
        self.trained_on: set[str] = set()
        self.is_pretrained = False
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @classmethod
    def tiny(
        cls,
        texts: list[str],
        *,
        dim: int = 128,
        width: int = 32,
        image_size: int = 32,
        dropout: float = 0.0,
    ) -> "DualEncoder":
        """A small untrained model with a tokenizer learned from `texts`; `torch.manual_seed` sets
        its weights.

        Args:
            texts: of a training set.
            dim: dimension of the joint space.
            width: channels of the image tower's first layer.
            image_size: side of the square that images are cropped to, in pixels.
            dropout: probability of dropout, in the head and the text tower.
        """
        towers = TinyTowers(train_tokenizer(texts), width, image_size, dropout)
        return cls(towers, LinearHead(dim, towers.dim_image, towers.dim_text, dropout))

    @classmethod
    def names(
        cls,
        image_tower: str = IMAGE_TOWER,
        text_tower: str = TEXT_TOWER,
        *,
        class_texts: Sequence[str] | None = None,
        train_stages: int = 0,
        softmax_temperature: float = 2.5,
        dropout: float = 0.2,
    ) -> "DualEncoder":
        """A model that knows the names of an image classifier's classes, before it has seen a
        caption: see `cibr.models.names`. It can be used as it is, or trained.

        For the default towers, a clone of the repository has the classifier and the text features
        of its classes (`data/photos`), in half precision; the towers are then loaded when an image
        or a text needs them.

        Args:
            image_tower: folder or hub id of an image classification model of timm or transformers.
            text_tower: folder or hub id of the text tower and its tokenizer; its features are means
                over tokens.
            class_texts: what the classes are; by default as `load_classifier` says.
            train_stages: the last stages of both towers that are trained with the head.
            softmax_temperature: of the class probabilities.
            dropout: probability of dropout, in the head.

        Raises:
            FileNotFoundError: a tower, the tokenizer or the image preprocessing is missing.
            ValueError: an image tower without a classifier, classes without names, another number
                of texts than classes, more stages than a tower has; weights that do not fit a tower
                or are not finite.
        """
        stored = None if class_texts else load_classes((image_tower, text_tower))
        dims_pooled = None
        if stored is None:
            classifier = load_classifier(image_tower, class_texts)
        else:
            classifier = Classifier(stored.weight, stored.bias, stored.texts)
            dims_pooled = stored.weight.shape[1], stored.features.shape[1]
        if train_stages:
            towers = StagedTowers(image_tower, text_tower, dims_pooled, n_stages=train_stages)
        else:
            towers = FrozenTowers(image_tower, text_tower, dims_pooled)
        head = NamesHead(
            towers.dim_image,
            towers.dim_text,
            len(classifier.texts),
            softmax_temperature,
            dropout,
        )
        model = cls(towers, head)
        class_features = stored.features if stored else model.pool_texts(classifier.texts)
        head.start_at(classifier, class_features)
        model.is_pretrained = True
        return model.eval()

    @classmethod
    def frozen(
        cls,
        image_tower: str = IMAGE_TOWER,
        text_tower: str = TEXT_TOWER,
        *,
        dims_pooled: Sequence[int] | None = None,
        dim: int = 512,
        dropout: float = 0.4,
    ) -> "DualEncoder":
        """Frozen pretrained towers under a trainable head.

        Args:
            image_tower: folder or hub id of a tower with pooled features.
            text_tower: folder or hub id of the text tower and its tokenizer; its features are means
                over tokens. The same as `image_tower` for a dual encoder of transformers; its
                pooled features are the inputs of its projections, or its embeddings where it has
                none (SigLIP).
            dims_pooled: of the features of images and texts, if there are some already
                (`Pairs.features`): the towers are then loaded when an image or a text needs them.
            dim: dimension of the joint space.
            dropout: probability of dropout, in the head.

        Raises:
            FileNotFoundError: a tower, the tokenizer or the image preprocessing is missing.
            ValueError: towers that are not a dual encoder of transformers; weights that do not fit
                a tower or are not finite.
        """
        towers = FrozenTowers(image_tower, text_tower, dims_pooled)
        return cls(towers, ResidualHead(dim, towers.dim_image, towers.dim_text, dropout))

    @classmethod
    def from_transformers(cls, towers: TransformersTowers) -> "DualEncoder":
        """A trainable dual encoder of transformers, whose projections become the head."""
        image, text = towers.projections
        dim = getattr(image, "out_features", towers.dim_image)
        model = cls(towers, TransformersHead(image, text, dim))
        model.log_logit_scale.data.fill_(towers.model.logit_scale.item())
        model.is_pretrained = True
        return model.eval()

    @property
    def dim(self) -> int:
        """The dimension of the joint space."""
        return self.head.dim

    @property
    def dim_image_pooled(self) -> int | None:
        """The dimension of the pooled features of images, None without projections."""
        return self.head.dim_image

    @property
    def dim_text_pooled(self) -> int | None:
        """The dimension of the pooled features of texts, None without projections."""
        return self.head.dim_text

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.log_logit_scale.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.log_logit_scale.dtype

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the towers."""
        return self.towers.tokenizer

    @property
    def context(self) -> int:
        """The maximum number of tokens of the text encoder."""
        return min(self.towers.n_positions, self.tokenizer.model_max_length)

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """The multiplier of the cosines, 1 / temperature."""
        return self.log_logit_scale.exp()

    def limit_logit_scale(self) -> None:
        """Clamps the multiplier to at most 100 after a step, as in CLIP."""
        # A clamp inside the loss would have no gradient above 100, so it could not recover.
        self.log_logit_scale.data.clamp_(max=math.log(100))

    def set_temperature(self, temperature: float, learn: bool = True) -> None:
        """Sets the temperature, above 0, and whether it is trained."""
        self.log_logit_scale.data.fill_(-math.log(temperature))
        self.log_logit_scale.requires_grad_(learn)

    def preprocess(self, images: list[Image.Image]) -> _Pixels:
        """Resizes, crops and normalises images.

        Args:
            images: PIL images of any size, in any mode but `F` and `I`.

        Returns:
            The inputs of `encode_images`, [n, 3, h, w].
        """
        return preprocess(self.towers.processor, images)

    def tokenize(self, texts: list[str]) -> tuple[_Tokens, _Tokens]:
        """Token ids and attention mask, padded to the longest text and cut to the context.

        SigLIP attends to padding, so its texts are padded to the context and its mask is 1
        throughout.
        """
        reads_padding = self.towers.reads_padding
        padding = "max_length" if reads_padding else True
        tokens = self.tokenizer(
            texts,
            padding=padding,
            truncation=True,
            max_length=self.context,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = tokens["attention_mask"]
        if reads_padding:
            mask = torch.ones_like(mask)
        return tokens["input_ids"], mask

    def encode_images(self, images: _Pixels | _Pooled) -> Encoded:
        """Encodes images on the model's device.

        Args:
            images: from `preprocess`, [n, 3, h, w]; or pooled features [n, p].

        Returns:
            Unit vectors [n, d] and pooled features [n, p].
        """
        images = images.to(self.device, self.dtype)
        are_pixels = images.ndim == 4
        pooled = self.towers.image_pooled(images) if are_pixels else images
        return Encoded(F.normalize(self.head.project_images(pooled), dim=-1), pooled)

    def encode_texts(self, texts: _Tokens | _Pooled, mask: _Tokens | None = None) -> Encoded:
        """Encodes texts on the model's device.

        Args:
            texts: token ids from `tokenize`, [n, t]; or pooled features [n, q], without a mask.
            mask: 1 for tokens, 0 for padding, [n, t].

        Returns:
            Unit vectors [n, d] and pooled features [n, q].
        """
        if mask is None:
            pooled = texts.to(self.device, self.dtype)
        else:
            pooled = self.towers.text_pooled(texts.to(self.device), mask.to(self.device))
        return Encoded(F.normalize(self.head.project_texts(pooled), dim=-1), pooled)

    def embed_images(self, images: Iterable[Image.Image], batch_size: int = 256) -> _Vectors:
        """Embeds images as unit vectors.

        Args:
            images: PIL images of any size, in any mode but `F` and `I`.
            batch_size: images encoded at once.

        Returns:
            Unit vectors [n, d], float32, on the CPU.

        Raises:
            ValueError: a mode without a fixed range of greys, `F` or `I`; batch_size < 1.
        """
        return self.unit_vectors(
            lambda batch: self.encode_images(self.preprocess(batch)), batched(images, batch_size)
        )

    def embed_texts(self, texts: Iterable[str], batch_size: int = 256) -> _Vectors:
        """Embeds texts as unit vectors; those longer than the context are cut.

        Args:
            texts: strings.
            batch_size: texts encoded at once.

        Returns:
            Unit vectors [n, d], float32, on the CPU.

        Raises:
            ValueError: one string; batch_size < 1.
        """
        if isinstance(texts, str):
            raise ValueError("embed_texts got one string: pass a list of strings")
        return self.unit_vectors(
            lambda batch: self.encode_texts(*self.tokenize(batch)), batched(texts, batch_size)
        )

    def pool_texts(self, texts: Iterable[str], batch_size: int = 64) -> _Pooled:
        """Pooled features of texts [m, q], on the model's device; see `embed_texts`."""
        with self.evaluating():
            batches = [self.tokenize(batch) for batch in batched(texts, batch_size)]
            return torch.cat([self.encode_texts(*batch).pooled for batch in batches])

    def unit_vectors(self, encode: Callable[[Any], Encoded], batches: Iterable) -> _Vectors:
        """Encodes batches in eval mode and without gradients, one after another.

        Args:
            encode: takes a batch.
            batches: of any kind.

        Returns:
            Unit vectors of all batches [n, d], float32, on the CPU.
        """
        with self.evaluating():
            vectors = [encode(batch).features.float().cpu() for batch in batches]
        return torch.cat([torch.zeros(0, self.dim), *vectors])  # also of no batches

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """A context in eval mode and without gradients; the mode is restored afterwards."""
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(was_training)

    def load_weights(self, weights: Mapping[str, Tensor], source: str | Path) -> None:
        """Sets all weights, which are those of `state_dict`: frozen towers have none in it.

        Args:
            weights: by name.
            source: their file or folder, for messages.

        Raises:
            ValueError: weights that are missing, of another shape or not finite.
        """
        try:
            missing = self.load_state_dict(weights, strict=False).missing_keys
        except RuntimeError as error:  # another shape
            reason = " ".join(str(error).split())
            raise ValueError(f"the weights in {str(source)!r} do not fit: {reason}") from error
        check_weights(self, str(source), missing)

    def save_pretrained(self, folder: str | Path, copy_towers: bool = False) -> Path:
        """Writes a folder that `from_pretrained` reads, bit for bit; other files in it are kept.

        `cibr.json` names and describes the towers and the head, so that each can be built again,
        and has the keys of the training images; `cibr.safetensors` has the weights of all parts.
        Tiny towers add their tokenizer. Frozen towers are stored by name; those without a hub id,
        and all with `copy_towers`, are copied to `image_tower/` and `text_tower/`, or `towers/`. A
        dual encoder of transformers is saved as on the hub instead, with its tokenizer, its image
        preprocessing and its projections, and `cibr.json` has only the keys.

        Args:
            folder: where to write.
            copy_towers: whether frozen towers are copied, for a machine that cannot get them.

        Raises:
            ValueError: a part whose class is in neither `cibr.models.HEADS` nor
                `cibr.models.TOWERS`.
            FileNotFoundError: towers to be copied that are missing.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        description: dict[str, Any] = {"trained_on": sorted(self.trained_on)}
        if isinstance(self.head, TransformersHead):  # as on the hub, without towers in cibr.json
            self.towers.model.logit_scale.data.fill_(self.log_logit_scale.item())
            self.towers.write_model(folder, self.head.image, self.head.text)
        else:
            description["head"] = describe_head(self.head)
            description["towers"] = save_towers(self.towers, folder, copy=copy_towers)
            weights = {name: x.contiguous() for name, x in self.state_dict().items()}
            save_file(weights, folder / _WEIGHTS)
        (folder / _DESCRIPTION).write_text(json.dumps(description))
        return folder

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "DualEncoder":
        """Loads a folder that `save_pretrained` wrote, bit for bit, or a dual encoder of
        transformers with its temperature.

        Shipped with the package are `clip-tiny` and `cibr-tiny`, trained on glyphs, and
        `names-flickr8k`, trained on photos; `names` is the start of `DualEncoder.names` over the
        default towers. Any transformers class with `get_image_features` and `get_text_features`,
        such as `CLIPModel` (`openai/clip-vit-base-patch32`) or `SiglipModel`
        (`google/siglip-base-patch16-224`), loads with its own tokenizer and image preprocessing.
        The bias of SigLIP's logits is kept but not used: it changes no ranking.

        Frozen towers that are stored by name are loaded when an image or a text needs them.

        Args:
            name: a folder, a hub id, the name of a shipped model, or `names`.

        Raises:
            FileNotFoundError: the model, its tokenizer or its image preprocessing is missing; the
                message names the places searched.
            ValueError: a model that is not a dual encoder, or weights that do not fit it or are not
                finite.
        """
        if name == "names":
            return cls.names()
        folder = Path(resolve(str(name)))
        file = folder / _DESCRIPTION
        if not file.exists():  # a hub id, or a folder that transformers wrote
            return cls.from_transformers(load_transformers_towers(name))
        description = json.loads(file.read_text())
        if "trained_on" not in description:
            raise ValueError(f"{file} is of another version of cibr: train the model again")
        is_of_transformers = "towers" not in description
        if is_of_transformers:
            model = cls.from_transformers(load_transformers_towers(folder))
        else:
            towers = load_towers(description["towers"], folder)
            model = cls(towers, build_head(description["head"]))
            model.load_weights(_load_weights(folder / _WEIGHTS), folder)
        model.trained_on = set(description["trained_on"])
        model.is_pretrained = True
        return model.eval()


def _load_weights(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}): save it again") from error


def image_key(digest: str) -> str:
    """The name of an image in `DualEncoder.trained_on`: the start of its digest."""
    return digest[:16]
