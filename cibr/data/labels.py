"""Which texts say the same, so that a contrast does not hold them against each other."""

import numpy as np
import torch
from jaxtyping import Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from cibr.data.pairs import Pairs


def text_labels(pairs: Pairs) -> Int[Tensor, " m"]:
    """One label a text: the pairs' own, or equal for captions that are no negatives of each other.

    Those are equal captions, and the captions of pictures of one group.
    """
    if pairs.labels is not None:
        return pairs.labels[pairs.text_to_image()]
    first: dict[str, int] = {}
    captions = torch.tensor([first.setdefault(text, len(first)) for text in pairs.texts()])
    if pairs.groups is None:
        return captions
    _, groups, n_looks = torch.unique(pairs.groups, return_inverse=True, return_counts=True)
    of_text = groups[pairs.text_to_image()]
    shared = n_looks[of_text] > 1
    ends = captions[shared], len(first) + of_text[shared]  # a graph of captions and the groups they tell of
    size = len(first) + len(n_looks)
    graph = coo_array((np.ones(len(ends[0])), ends), shape=(size, size))
    return torch.from_numpy(connected_components(graph, directed=False)[1]).long()[captions]
