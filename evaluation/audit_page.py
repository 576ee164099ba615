"""Write the result of an audit as a page of HTML without any outside file, and as Markdown for a model card."""

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from evaluation import audit_words as words
from evaluation.audit_plots import frontier_plot, intervals_plot, roc_plot
from evaluation.controls import DEALS
from utils.files import atomic_open

CONTROLS = {"blind": "classifiers that do not see the model", "model": "the same attack on --control",
            "references-alone": "the loss of the references alone",
            "permuted": f"the attack, if whole groups are dealt to the two sides at random: the mean of {DEALS} deals, "
                        "and the range of 95 % of them",
            "statistics-crossfit, permuted": "statistics-crossfit, trained and measured on such random sides",
            "learned-crossfit, permuted": "learned-crossfit, trained and measured on such random sides"}
DRAWN = 4  # ROC curves, those of the highest AUC


def write_page(found: dict, folder: Path) -> tuple[Path, Path]:
    """Write report.html and report.md from the content of audit.json, and return their paths.

    Names of images, classes and files are escaped, so that nothing in them acts as HTML.
    """
    shown = {"found": found, "sentence": words.sentence(found), "meaning": words.meaning(found),
             "advice": words.advice(found), "collection": words.collection(found), "glossary": words.GLOSSARY,
             "guidance": words.GUIDANCE,
             "controls": CONTROLS, "bound": words.BOUND, "plots": plots(found),
             "number": number, "interval": interval, "percent": percent, "rate": rate}
    paths = folder / "report.html", folder / "report.md"
    for path, name in zip(paths, ("audit.html", "audit.md"), strict=True):
        environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"),
                                  autoescape=name.endswith("html"), undefined=StrictUndefined)
        environment.filters |= {"md": markdown_safe, "flags": flags_as_code}
        with atomic_open(path, "w") as file:
            file.write(environment.get_template(name).render(shown))
    return paths


def plots(found: dict) -> dict[str, list[tuple[Markup, str]]]:
    """The plots of each section, with their captions."""
    rows = found["attacks"]
    best = sorted(rows, key=lambda row: (row["name"] != found["primary"], -row["auc"]))[:DRAWN]
    curves = {row["name"]: row["roc"] for row in best}
    drawn = {"attacks": [
        (intervals_plot(rows, "AUC of all attacks"), "AUC of each attack, with its 95 % interval."),
        (roc_plot(curves, False, "ROC curves"), "How many members are found, and how many non-members are called "
         "members, at each threshold."),
        (roc_plot(curves, True, "ROC curves at low false positive rates"), "The same with logarithmic axes: few false "
         "positives.")], "defenses": [], "regions": []}
    measured = [row for row in found["regions"] if row["auc"] is not None]
    if shown := [row | {"name": f"{row['kind']}: {row['region']}"} for row in measured]:
        drawn["regions"] = [(intervals_plot(shown, "AUC by region"), "AUC of the same attack on the positions of one "
                             "region only.")]
    if len(found["defenses"]) > 1 and all(row["miou"]["out"] is not None for row in found["defenses"]):
        drawn["defenses"] = [(frontier_plot(found["defenses"], "Leak against utility"), "A good defense is far to the "
                              "right and low. Points are drawn a little apart, so that none hides another.")]
    return {part: [(Markup(plot), caption) for plot, caption in pairs] for part, pairs in drawn.items()}


def number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


def interval(ends: list[float] | None, form: str = ".3f") -> str:
    return "-" if ends is None else f"{ends[0]:{form}} to {ends[1]:{form}}"


def percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f}"


def rate(share: float | None) -> str:
    """A TPR in percent; the words "too few" if there are too few non-members for its FPR."""
    return "too few" if share is None else f"{100 * share:.1f} %"


def flags_as_code(text: str) -> Markup:
    """A sentence as HTML, whose flags of the command line are not broken into two lines."""
    return Markup(re.sub(r"--[\w-]+", r"<code>\g<0></code>", str(escape(text))))


def markdown_safe(text: object) -> str:
    """Text without characters that Markdown or HTML would read."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", str(text)).replace("\\<", "&lt;").replace("\\>", "&gt;")
