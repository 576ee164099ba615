"""Inf-Net (Fan et al., "Inf-Net: Automatic COVID-19 Lung Infection Segmentation from CT Images", IEEE TMI 2020)."""

from models import reverse_attention
from models.reverse_attention import ReverseAttentionNet


def build(backbone: str = "res2net50d", classes: int = 2, width: int = 32, pretrained: bool = False,
          name: str = "infnet") -> ReverseAttentionNet:
    """Build Inf-Net. The defaults are the supervised model of the paper, with 31,072,721 parameters.

    It is PraNet with an edge branch (91,074 parameters), whose features also enter the reverse-attention branches
    (483,328 more). The published 33.12 million also count the classifier of the backbone (2,049,000). The loss is that
    of PraNet plus the cross-entropy of the edge map. The authors read the edges of the labels from files; here they are
    computed from the labels (`edges_of`).
    """
    return reverse_attention.build(backbone, classes, width, pretrained, name, edges=True)
