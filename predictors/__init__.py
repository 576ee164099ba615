"""Predictors give the output of a model for an image: they query a model, or read stored outputs.

A new kind of predictor is one file with a subclass of `predictors.base.Predictor`, and one line in `PREDICTORS`.
Scripts take `KIND:WHERE`, the path of a checkpoint, or the folder of a run.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import pick, positive, thousands
from utils.tables import Entry, Table

if TYPE_CHECKING:
    from predictors.base import Access, Predictor, PredictorOptions

CHECKPOINT = "last.pth.tar"  # in the folder of a training

PREDICTORS = Table("predictor", {
    "checkpoint": Entry("predictors.checkpoint:open_checkpoint", "a checkpoint of train_victim.py or "
                        "train_translator.py"),
    "stored": Entry("predictors.stored:StoredPredictor", "posteriors on disk, in the layout of the release"),
    "folder": Entry("predictors.answers:FolderPredictor", "posteriors or labels on disk, one file for each image"),
    "onnx": Entry("predictors.onnx:ONNX", "an ONNX file"),
    "torchscript": Entry("predictors.own_process:TorchScript", "a TorchScript file, with --trust-code"),
    "exported": Entry("predictors.own_process:Exported", "a file of torch.export, with --trust-code"),
    "python": Entry("predictors.own_process:PythonFunction", "FILE.py:FUNCTION of an image uint8 (H, W, 3), with "
                    "--trust-code"),
    "http": Entry("predictors.endpoint:HTTP", "a URL that answers PNG images, or a JSON file with its settings; only "
                  "with the permission of its owner"),
    "https": Entry("predictors.endpoint:HTTPS", "the same"),
    "torchvision": Entry("predictors.torchvision:TorchvisionPredictor", "NAME=FILE, a model of torchvision and its "
                         "state_dict"),
    "smp": Entry("predictors.smp:SmpPredictor", "a folder of segmentation-models-pytorch"),
    "hf": Entry("predictors.huggingface:HuggingFacePredictor", "a folder of Hugging Face"),
})
ACCESS = ("--preprocess", "--trust-code", "--query-budget")  # flags of `add_access_flags`


class _Windows(argparse.Action):
    """Stores True, or the height and width that are given."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: list[int],
                 option: str | None = None) -> None:
        if len(values) not in (0, 2):
            raise argparse.ArgumentError(self, f"give a height and a width, or neither, not {len(values)} number(s)")
        setattr(namespace, self.dest, tuple(values) or True)


def add_windows_flag(flags: argparse._ActionsContainer, whose: str) -> None:
    """Add --windows. `whose`: the models that are queried, for the help."""
    flags.add_argument("--windows", action=_Windows, nargs="*", type=thousands, default=False, metavar="PIXELS",
                       help=f"query {whose} about overlapping windows and about their mirror images, as PSPNet was "
                       "tested, instead of the complete image; the posterior is their mean. PIXELS: height and width "
                       "of a window (default: those of the training crops)")


def add_access_flags(flags: argparse._ActionsContainer) -> None:
    """Add the flags `ACCESS` for models of other people."""
    flags.add_argument("--preprocess", metavar="FILE", help="JSON file with the normalisation, the size, the channels "
                       "and the classes of a model of other people; see docs/usage.md")
    flags.add_argument("--trust-code", action="store_true", help="load a model from a file that can run any code on "
                       "this machine, in a process of its own: for torchscript:, exported: and python:")
    flags.add_argument("--query-budget", type=positive, metavar="N", help="stop before request N + 1 to an endpoint, "
                       "repeated ones included; answers are kept, so a later call continues")


def chosen(args: argparse.Namespace) -> "Access":
    """What the flags of `add_access_flags` say. Raises `UserError` if the file of --preprocess is wrong."""
    from predictors.base import Access
    from predictors.preprocess import read_changes

    return pick(args, Access, preprocess=read_changes(args.preprocess) if args.preprocess else {})


def open_predictor(where: str, options: "PredictorOptions | None" = None) -> "Predictor":
    """Open the predictor `KIND:WHERE`, or the checkpoint of a path or of the folder of a run.

    Raises `UserError` if the predictor cannot be used.
    """
    from predictors.base import PredictorOptions

    kind, rest = _split(where)
    if kind == "checkpoint" and Path(rest).is_dir():
        rest = str(Path(rest) / CHECKPOINT)
    return PREDICTORS.load(kind)(rest, options or PredictorOptions())


def file_of(where: str | None) -> Path | None:
    """The file that `where` names: a path, KIND:PATH, KIND:PATH:NAME, KIND:NAME=PATH, or the checkpoint of a run.

    None without a file.
    """
    if not where:
        return None
    place = _split(where)[1]
    candidates = (Path(place), Path(place, CHECKPOINT), Path(place.rpartition(":")[0]),
                  Path(place.partition("=")[2]))
    return next((path for path in candidates if path.is_file()), None)


def files_of(where: str | None) -> list[Path]:
    """The files that `where` names: that of `file_of`, or the weights and descriptions in the folder of a model."""
    if file := file_of(where):
        return [file]
    folder = Path(_split(where or "")[1])
    if not where or not (folder / "config.json").is_file():
        return []
    return sorted(path for end in ("safetensors", "json") for path in folder.glob(f"*.{end}"))


def kind_of(where: str) -> str:
    """The kind of predictor that `where` names."""
    return _split(where)[0]


def _split(where: str) -> tuple[str, str]:
    """Kind and place. If `where` starts with no kind of `PREDICTORS`, it is the place of a checkpoint."""
    kind, colon, rest = str(where).partition(":")
    return (kind, rest) if colon and kind in PREDICTORS else ("checkpoint", str(where))
