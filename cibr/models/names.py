"""A head that knows names: embeddings of images by an image classifier, without one caption.

The classifier of an image tower says how probable each of its classes is, and the text tower embeds
what the classes are. Let p(x) be the probabilities of an image's features x, at a temperature of
their softmax, E the unit vectors of the classes' texts, one a row, and c the mean of E. Before they
are normalised, the embeddings of an image and of a text with pooled features y are

    u = normalize(E' p(x) - c) + R x,    w = A (normalize(y) - c),

where R is zero and A the identity before training. So an image starts at the mean of the classes'
texts that its classifier expects, in the space of the text tower. That is ConSE (Norouzi et al.
2014, https://arxiv.org/abs/1312.5650) with all classes instead of the most probable ones, and
centred; the idea of a space of class names is DeViSE's (Frome et al. 2013,
https://research.google/pubs/devise-a-deep-visual-semantic-embedding-model). Training moves all of
it: classifier, E, c, R and A.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cibr.models.heads import Head
from cibr.models.loading import is_image_classifier, load_image_classifier

_Pooled = Float[Tensor, "n p"]
_Vectors = Float[Tensor, "n d"]


class Classifier(NamedTuple):
    """The last layer of an image classifier, and what its classes are.

    Args:
        weight: [k, p], for pooled features with p dimensions.
        bias: [k].
        texts: of the k classes, such as names with their definitions.
    """

    weight: Float[Tensor, "k p"]
    bias: Float[Tensor, " k"]
    texts: list[str]


class NamesHead(Head):
    """Images as the classes that they look like, texts as they are: see the module.

    Args:
        dim_image: p, dimension of the pooled features of images.
        dim_text: d, dimension of the pooled features of texts and of the joint space.
        n_classes: k, number of the classifier's classes.
        softmax_temperature: of the class probabilities; above 1 more classes have a say.
        dropout: probability of dropout, in the features of images and of texts.

    Attributes:
        classifier: from features of images to logits of the classes.
        class_vectors: E, [k, d].
        centre: c, [d].
        image_map: R, a linear map without a bias.
        text_map: A, a linear map without a bias.
    """

    def __init__(
        self,
        dim_image: int,
        dim_text: int,
        n_classes: int,
        softmax_temperature: float = 2.5,
        dropout: float = 0.2,
    ):
        super().__init__(dim_text, dim_image, dim_text)
        self.n_classes = n_classes
        self.softmax_temperature = softmax_temperature
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(dim_image, n_classes)
        self.class_vectors = nn.Parameter(torch.zeros(n_classes, dim_text))
        self.centre = nn.Parameter(torch.zeros(dim_text))
        self.image_map = nn.Linear(dim_image, dim_text, bias=False)
        self.text_map = nn.Linear(dim_text, dim_text, bias=False)

    @torch.no_grad()
    def start_at(self, classifier: Classifier, class_features: Float[Tensor, "k d"]) -> None:
        """Sets all weights to those of the untrained start.

        Args:
            classifier: of the image tower.
            class_features: of the text tower, for the classifier's texts.
        """
        self.classifier.weight.copy_(classifier.weight)
        self.classifier.bias.copy_(classifier.bias)
        self.class_vectors.copy_(F.normalize(class_features, dim=1))
        self.centre.copy_(self.class_vectors.mean(0))
        nn.init.zeros_(self.image_map.weight)
        nn.init.eye_(self.text_map.weight)

    def project_images(self, pooled: _Pooled) -> _Vectors:
        """u of the module's formula, [n, d]."""
        pooled = self.dropout(pooled)
        logits = self.classifier(pooled) / self.softmax_temperature
        expected = logits.softmax(dim=1) @ self.class_vectors
        return F.normalize(expected - self.centre, dim=1) + self.image_map(pooled)

    def project_texts(self, pooled: _Pooled) -> _Vectors:
        """w of the module's formula, [n, d]."""
        return self.text_map(self.dropout(F.normalize(pooled, dim=1)) - self.centre)

    def settings(self) -> dict[str, Any]:
        """The arguments that build the head again, as JSON can store them."""
        return {
            "dim_image": self.dim_image,
            "dim_text": self.dim_text,
            "n_classes": self.n_classes,
            "softmax_temperature": self.softmax_temperature,
            "dropout": self.dropout.p,
        }


def load_classifier(image_tower: str, texts: Sequence[str] | None = None) -> Classifier:
    """The classifier of an image tower and the texts of its classes.

    Args:
        image_tower: folder or hub id of an image classification model of timm or transformers.
        texts: of its classes; by default the labels in its configuration, followed by WordNet's
            definition where they are ImageNet's, as in models of timm.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: a tower without a classifier, classes without names, or another number of texts.
    """
    fix = "give an image classification model, such as timm/tf_efficientnet_lite0.in1k"
    if not is_image_classifier(image_tower):
        raise ValueError(f"{image_tower!r} has no classifier, so it knows no names: {fix}")
    model, last_layer = load_image_classifier(image_tower)
    if last_layer is None:
        raise ValueError(f"the classifier of {image_tower!r} is not one linear layer: {fix}")
    texts = list(_class_texts(model.config) if texts is None else texts)
    if len(texts) != last_layer.out_features:
        raise ValueError(
            f"class_texts has {len(texts)} texts: give one for each of the "
            f"{last_layer.out_features} classes of {image_tower!r}"
        )
    if texts[0] == "LABEL_0":  # what transformers writes where nothing is known
        raise ValueError(f"the classes of {image_tower!r} have no names: give class_texts")
    weight = last_layer.weight.detach()
    bias = weight.new_zeros(len(weight)) if last_layer.bias is None else last_layer.bias.detach()
    return Classifier(weight, bias, texts)


def _class_texts(config: Any) -> list[str]:
    """The labels of a configuration; WordNet's definition follows where one is ImageNet's."""
    from timm.data import ImageNetInfo, infer_imagenet_subset  # late: timm takes long to import

    labels = [config.id2label[i] for i in range(config.num_labels)]
    subset = infer_imagenet_subset({"num_classes": len(labels)})
    if subset is None:
        return labels
    info = ImageNetInfo(subset)
    names = info.label_descriptions()
    defined = info.label_descriptions(detailed=True)
    return [
        text if label == name else label
        for label, name, text in zip(labels, names, defined, strict=True)
    ]
