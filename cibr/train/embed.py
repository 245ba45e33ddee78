"""The recall that an epoch ends with."""

from cibr.inputs import Inputs, embed_pairs
from cibr.metrics import recall_at_k
from cibr.models import DualEncoder

KS = (1, 5, 10)


def recalls(model: DualEncoder, inputs: Inputs) -> dict[str, float]:
    """Recall at 1, 5 and 10 in both directions, as far as the set has that many."""
    images, texts = embed_pairs(model, inputs)
    ks = [k for k in KS if k <= min(len(images), len(texts))]
    return recall_at_k(images, texts, inputs.pairs.text_to_image(), ks)
