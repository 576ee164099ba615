"""Numbers that the second paper prints (Shafran, Peleg and Hoshen, ICCV 2021, table 1)."""

# Model and data set -> AUC in % of the reconstruction error and of the membership error.
TABLE_ONE = {
    "pix2pix, Facades": (93.62, 97.59),
    "pix2pix, Maps2sat": (84.22, 85.65),
    "pix2pix, Cityscapes": (77.74, 83.23),
    "pix2pixHD, Facades": (98.92, 99.95),
    "pix2pixHD, Maps2sat": (95.74, 99.42),
    "pix2pixHD, Cityscapes": (96.04, 99.09),
    "SPADE, Cityscapes": (99.75, 100.0),
    "SPADE, ADE20K": (85.31, 89.79),
    "UperNet50, ADE20K": (96.80, 98.09),
    "UperNet101, ADE20K": (95.74, 96.94),
    "HRNetV2, ADE20K": (83.67, 85.92),
    "Inf-Net, COVID19": (97.16, 99.01),
    "PraNet, polyps": (96.03, 96.38),
}
