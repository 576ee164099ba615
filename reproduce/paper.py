"""Numbers that the paper prints, and its names of settings and attacks."""

# Table 2, max-F / AUC in %. The learned attack of Salem et al. fails with a DPC shadow.
COLUMNS = ("psp-psp", "dlv3-psp", "dlv3-uper", "dpc-psp", "dpc-uper")
TABLE = {
    "pixelwise": ("77.2 / 67.2", "92.4 / 63.5", "92.3 / 62.6", "-", "-"),
    "threshold-confidence": ("77.4 / 62.0", "92.3 / 63.4", "92.3 / 59.2", "92.3 / 63.4", "92.3 / 59.2"),
    "threshold-loss": ("82.2 / 74.9", "94.4 / 81.4", "93.0 / 72.4", "94.4 / 81.4", "93.0 / 72.4"),
    "concate-full": ("80.6 / 81.2", "94.5 / 85.0", "92.8 / 71.8", "93.2 / 73.5", "92.6 / 68.8"),
    "loss-full": ("84.2 / 82.6", "95.7 / 89.1", "93.2 / 76.3", "93.1 / 73.5", "92.4 / 68.3"),
    "concate-random": ("83.4 / 82.7", "95.0 / 86.1", "95.4 / 88.5", "92.9 / 74.9", "94.4 / 85.5"),
    "loss-random": ("84.8 / 84.6", "95.7 / 90.8", "95.8 / 94.3", "94.0 / 77.7", "93.3 / 79.4"),
    "concate-rejection": ("83.3 / 83.0", "94.9 / 86.3", "95.3 / 91.2", "93.5 / 76.3", "94.4 / 86.1"),
    "loss-rejection": ("86.7 / 87.1", "95.9 / 91.1", "96.2 / 94.9", "94.1 / 77.8", "93.5 / 82.0"),
}
SETTINGS = {"psp-psp": "PSP→PSP, dependent", "dlv3-psp": "DLv3+→PSP", "dlv3-uper": "DLv3+→Uper",
            "dpc-psp": "DPC→PSP", "dpc-uper": "DPC→Uper"}
RANDOM_F = {"dependent": 55.36, "independent": 63.13}
ALL_MEMBER_F = {"dependent": 76.5, "independent": 92.2}
METHODS = {"pixelwise": "learned, 1x1 (Salem)", "threshold-confidence": "confidence threshold (Salem)",
           "threshold-loss": "loss threshold (Sablayrolles)"}
INPUTS = {"concate": "C+GT", "loss": "Loss"}


def title(method: str) -> str:
    """The name of an attack in the paper's table."""
    kind, _, select = method.partition("-")
    return METHODS.get(method) or f"{INPUTS[kind]}, {select}"


def auc(method: str, setting: str = "psp-psp") -> float:
    """AUC in % of table 2; NaN where the attack failed."""
    text = TABLE[method][COLUMNS.index(setting)].rpartition(" ")[2]
    return float("nan") if text == "-" else float(text)


def differences(first: str, second: str) -> str:
    """AUC of the first attack minus that of the second in each column of table 2 that has both, in points."""
    values = [auc(first, setting) - auc(second, setting) for setting in COLUMNS]
    return ", ".join(f"{value:+.1f}" for value in values if value == value)
