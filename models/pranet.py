"""PraNet (Fan et al., "PraNet: Parallel Reverse Attention Network for Polyp Segmentation", MICCAI 2020)."""

from models import reverse_attention
from models.reverse_attention import ReverseAttentionNet


def build(backbone: str = "res2net50d", classes: int = 2, width: int = 32, pretrained: bool = False,
          name: str = "pranet") -> ReverseAttentionNet:
    """Build PraNet. The defaults are the model of the paper, with 30,498,319 parameters.

    These are 23,669,352 in Res2Net-50 v1b (res2net50d of timm), 862,016 in three receptive field blocks of `width`
    channels, 277,473 in the partial decoder, and 5,689,478 in three reverse-attention branches. The published 32.55
    million also count the classifier of the backbone for ImageNet (2,049,000), which is not used. The loss is the sum
    of `structure_loss` over the four maps. The authors' test code stretches each map to 0..1; here it is the posterior.
    """
    return reverse_attention.build(backbone, classes, width, pretrained, name, edges=False)
