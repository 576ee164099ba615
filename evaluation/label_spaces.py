"""Restrict an attack to the classes that all its models have, if their label spaces differ."""

from collections.abc import Sequence
from dataclasses import replace

from attacks.representation import channels
from attacks.sample import Attack
from datasets.classes import check_shared, known_names, lacking, shared_classes
from models import LoadedAttacker
from predictors.base import Predictor
from predictors.classes import ClassView
from predictors.samples import Source, check_class_names
from utils.cli import UserError
from utils.distributed import print_once, warn_once


def share_classes(attack: Attack, source: Source, population: Source | None) -> tuple[Source, Source | None]:
    """Restrict the samples of `source` and `population` to shared classes, if one of the models has other class names.

    An attacker decides: the classes are those that it was trained on. Without one, they are those that the target
    model, its references and the population share. Prints which classes are kept. Models without class names are taken
    to have those of the target model. Raises `UserError` if a model lacks a class of the attacker, if fewer than two
    classes are shared, if classes are in another order, and for attacks that read the weights of the target model.
    """
    attacker, target, space = attack.settings.attacker, source.predictor.where, source.names
    others = {f"the reference {one.predictor.where}": one.predictor.class_names for one in source.references}
    if population:
        others[f"--population {population.predictor.where}"] = population.names
    different = {who: names for who, names in others.items() if differ(names, space)}
    for who, names in others.items():
        if who not in different:
            check_class_names(who, names, target, space)
    names = _classes_of(attacker, target, source)
    if not names and not different:
        return source, population
    if not names:
        check_shared(names := shared_classes(space, *different.values()), target, ", ".join(different))
    for who, other in different.items():
        if missing := lacking(other, names):
            raise UserError(f"{who} lacks the class {missing[0]!r} of {attacker.path}; give models that have the "
                            "classes of the attacker")
    if "weights" in attack.needs:
        raise UserError(f"this attack reads {target} itself, and gets all its classes; give models of the same classes")
    references = tuple(replace(one, view=view_of(one.predictor.class_names, space, names)) for one in source.references)
    source = replace(source.with_classes(space, names), references=references)
    if population:
        population = population.with_classes(view_of(population.names, space, names).space, names)
    print_once(f"classes of {target}: {view_of(space, space, names)}")
    return source, population


def differ(names: object, space: object) -> bool:
    """Whether two label spaces are known, and have other classes. Equal names in another order are no difference."""
    return known_names(names) and known_names(space) and set(names) != set(space)


def view_of(names: object, space: Sequence[str], shared: Sequence[str]) -> ClassView:
    """The view of a model with the class names `names`, or with those of the target model, `space`, if unknown."""
    return ClassView.of(names if known_names(names) else space, shared)


def view_of_control(control: Predictor, source: Source) -> ClassView | None:
    """The view of a control on the classes of a source; None if the classes of the source are not restricted.

    Raises `UserError` if it lacks a class, or has the classes in another order.
    """
    who, names = f"--control {control.where}", control.class_names
    if not source.label_view:
        check_class_names(who, names, source.predictor.where, source.names)
        return None
    space = source.label_view.space
    if not differ(names, space):
        check_class_names(who, names, source.predictor.where, space)
    elif missing := lacking(names, source.names):
        raise UserError(f"{who} lacks the class {missing[0]!r}, which is attacked; give another model")
    return view_of(names, space, source.names)


def _classes_of(attacker: LoadedAttacker | None, target: str, source: Source) -> list[str] | None:
    """The class names of an attacker, if they are others than those of the target model; None if they do not matter.

    Raises `UserError` if the attacker reads another number of classes, and the target model has not all of them.
    """
    names, classes = (attacker.class_names, attacker.classes) if attacker else (None, None)
    if differ(names, source.names) and len(names) == classes:
        if not (missing := lacking(source.names, names)):
            return list(names)
        if classes != len(source.names):
            raise UserError(f"{attacker.path} was trained on the class {missing[0]!r}, which {target} lacks; train it "
                            "again with --shared-with and the data set of the target model")
    own = source.predictor.classes
    if None not in (classes, own) and classes != own:
        raise UserError(f"{target} has {own} classes; the attacker was trained for {classes}")
    if attacker:
        warn_of_classes(attacker, target, source.names)
    return None


def warn_of_classes(attacker: LoadedAttacker, victim: str, names: object) -> None:
    """Print a warning if an attacker that reads the classes was trained on others than those of the target model."""
    reads_classes = channels(attacker.spec.input, 2) != channels(attacker.spec.input, 3)
    if not reads_classes or not all(isinstance(one, (list, tuple)) for one in (attacker.class_names, names)):
        return
    if differ := [(trained, own) for trained, own in zip(attacker.class_names, names, strict=False) if trained != own]:
        warn_once(f"{attacker.path} reads the classes in their order, and it was trained on {differ[0][0]!r} where "
                  f"{victim} has {differ[0][1]!r}")
