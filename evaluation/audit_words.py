"""The sentences of an audit: the answer, what the verdict means, what to do next, and a glossary."""

ENOUGH = 10  # groups of a side, for an interval
MORE = "Give more images, or split files whose third column names their groups."
BOUND = "bound: trained on the lists"

# What each attack does, for a reader who has not read a paper.
ATTACKS = {
    "confidence": "how large the largest probability is",
    "loss": "how well the answer fits the ground truth",
    "learned-crossfit": "a network that was trained on the other images of the two lists, and reads loss maps",
    "calibrated": "the loss, compared with that of models which did not see the image",
    "calibrated-weighted": "the same; how much the comparison counts is chosen on another model",
    "rmia": "the loss, compared with that of models which did not see the image, in another way (RMIA)",
    "lira": "whether the confidence is unusual for models which did not see the image (LiRA)",
    "lira-online": "whether the confidence fits models that saw the image, or models that did not (LiRA)",
    "lira-bayes": "as lira, for few models",
    "lira-bayes-online": "as lira-online, for few models",
    "references-alone": "a control: the loss of the other models alone",
    "statistics": "eleven numbers of the answer, weighed by what another model gives away",
    "statistics-crossfit": "eleven numbers of the answer, weighed by the other images of the two lists",
    "correctness": "the share of positions whose predicted class is right",
    "agreement": "whether the predicted classes stay right when the image is changed a little",
    "augmented": "the loss over several changed versions of the image",
    "repeated": "the mean answer of several queries, against noise of a defense",
    "residual": "the loss, minus what a regression on all images of both lists expects; it does not know which list an "
                "image is on, and reads the losses of other models if there are some",
    "repeated-residual": "the same for the mean answer of several queries, against noise of a defense",
    "gradient": "how strongly the image would still change the weights of the model",
    "membership-error": "the loss, minus what is hard to predict in this image for any model",
    "membership-error-weighted": "the same; how much the difficulty counts is chosen on another model",
}

VERDICTS = {
    "leak": "The model gives away which images it was trained on.",
    "no evidence": "The audit found no evidence that the model gives away its training images.",
    "other difference": "The two lists of images differ, but not more for this model than for a control that must "
                        "find nothing.",
    "undecided": "The audit cannot decide whether the model gives away its training images.",
}

GLOSSARY = {
    "member": "an image that the model was trained on, by the list that the user gave",
    "non-member": "an image that the model was not trained on, by the list that the user gave",
    "AUC": "the probability that the attack gives a random member a higher score than a random non-member: 0.5 is "
           "guessing, 1 is certainty",
    "interval": "a range that contains the true value in 95 of 100 such audits; it accounts for images that belong "
                "together (a group)",
    "output, posterior": "what the model answers at a position: a probability for each class",
    "loss": "minus the logarithm of the probability that the model gives the true class: low where the model fits well",
    "evidence": "what an attack reads at one position of an image; the mean over the image is the score of the image",
    "bound": "an attack that was trained on the lists themselves, which an attacker does not have; with many images no "
             "model of its kind finds more, but another attack can",
    "ROC curve": "the TPR at each FPR, for all thresholds of an attack",
    "p": "the probability that a test finds so much if nothing is there",
    "defense": "a change of the answers: argmax (only the predicted class), gauss (noise), rounding, top-k (only the k "
               "largest probabilities), temperature (flatter probabilities), test-dropout (parts of the model are left "
               "out at random in each query)",
    "false positive rate (FPR)": "the share of non-members that are called members",
    "true positive rate (TPR)": "the share of members that are called members",
    "mIoU": "mean intersection over union: how well the model segments, 100 % is perfect",
    "reference model": "another model for the same task that was not trained on the image; it tells how difficult the "
                       "image is",
    "control": "a test that must find nothing; if it finds something, the lists differ by more than membership",
    "group": "images that belong together, such as frames of one drive",
}

GUIDANCE = {
    "EDPB Opinion 28/2024 (personal data and AI models, December 2024)":
        "A model counts as anonymous only if it is unlikely that personal data of its training can be obtained, from "
        "the model itself or by queries. Tests against attacks are one element of that assessment. This page is a test "
        "against one attack, membership inference: its AUC with the interval, the most exposed images, and what could "
        "have been missed. It does not test whether images can be extracted or reconstructed, and it is no legal "
        "assessment.",
    "NIST AI 100-2 (taxonomy of attacks and mitigations, edition of 2025)":
        "Membership inference is one of its privacy attacks. Data reconstruction, property inference and model "
        "extraction, which it also lists, are not measured here. The table of attacks shows what each attacker has: "
        "queries alone, reference models, or the weights. The table of defenses measures mitigations.",
    "ISO/IEC 27090 (security threats to AI systems)":
        "Guidance on how threats to AI systems are detected and mitigated over their life cycle; membership inference "
        "is one of these threats. The audit detects it before a release (--fail-if) and measures a mitigation (--try, "
        "--compare). This page claims no conformity.",
}


CLAIMS = {
    "leak": "The model treats the claimed images as images that it was trained on.",
    "no evidence": "The audit found no evidence that the model was trained on the claimed images.",
    "other difference": "The claimed images and the null differ, but not more for this model than for a control that "
                        "must find nothing.",
    "undecided": "The audit cannot decide whether the model was trained on the claimed images.",
}


def sentence(found: dict) -> str:
    """The answer in one sentence, with its interval."""
    one, interval = found["answer"], found["answer"]["interval"]
    shown = f"AUC {one['auc']:.3f}" + (f", 95 % interval {interval[0]:.3f} to {interval[1]:.3f}" if interval else "")
    verdict = (CLAIMS if found["claim"] else VERDICTS)[one["verdict"]]
    return f"{verdict} The attack \"{found['primary']}\" reaches {shown} (0.5 is guessing)."


def about(title: str, usual: str) -> str:
    """What an attack reads, in plain words. `usual`: for an attack that `ATTACKS` does not have."""
    return ATTACKS.get(title.partition(",")[0], usual)


def collection(found: dict) -> str:
    """What the test of the collection says; empty without a claim."""
    one = found["collection"]
    if not found["claim"]:
        return ""
    if one is None:
        return ("The collection could not be tested as a whole: the claim or the null has too few groups of images. "
                f"{MORE}")
    need, verdict = one["needed"], found["answer"]["verdict"]
    if one["p"] > 0.05:
        read = "This is no evidence that it was used."
    elif verdict == "undecided":
        read = "This is weak evidence: there are too few groups for an interval and for a comparison with the controls."
    elif verdict != "leak" and any(row["interval"] and row["interval"][0] > 0.5 for row in found["controls"]):
        read = ("This is no evidence that it was used, because a control that must find nothing tells the claim and "
                "the null apart as well.")
    elif verdict == "no evidence":
        read = ("This is weak evidence: the test asks in one direction only, and the interval of the AUC, which allows "
                "for both, contains 0.5.")
    else:
        read = ("This is evidence, and no proof: it is weaker if the null images differ from the claim in another way, "
                "such as time, place or camera.")
    return (f"If the collection had not been used, scores as high would occur with probability p = {one['p']:.2g} "
            f"(one-sided, {one['groups'][0]} groups of the claim and {one['groups'][1]} of the null). "
            + read + (f" With this AUC, about {need['images']} images in {need['groups']} groups on each side would be "
                      "found with a probability of 80 %." if need else ""))


def meaning(found: dict) -> str:
    """What the verdict does and does not say."""
    one = found["answer"]
    if one["verdict"] == "undecided":
        groups = found["images"]["groups"]
        sides = ("the claim", "the null") if found["claim"] else ("members", "non-members")
        if min(groups.values()) >= ENOUGH:
            return "All images have about the same score, so there is no interval: the attack tells nothing apart."
        return (f"There are {groups['members']} groups of {sides[0]} and {groups['non_members']} of {sides[1]}; an "
                f"interval needs at least {ENOUGH} of each. {MORE}")
    if one["verdict"] == "no evidence":
        power = (f" An AUC of {one['detectable']:.2f} or more would have been found with a probability of 80 %; a "
                 "smaller leak may exist." if one["detectable"] else "")
        safe = "that they were not used" if found["claim"] else "of safety"
        return f"This is no proof {safe}.{power} A stronger attack may find more."
    if one["verdict"] == "other difference":
        remedy = ("Choose a null of the same kind as the claim" if found["claim"] else
                  "Choose members and non-members at random from one collection")
        return ("A control that must find nothing tells the two sides apart as well: see the table of controls. "
                f"{remedy}, and repeat the audit.")
    blind = next((row for row in found["controls"] if row["name"] == "blind"), None)
    if blind is None:
        return "No control without the model was possible, so make sure that both lists are from one collection."
    compared = "The two lists were compared by classifiers that do not see the model"
    if blind["minus_interval"] and blind["minus_interval"][0] > 0:
        return f"{compared}, and the attack finds more than they do."
    return (f"{compared}. They are not above chance, but the attack is not clearly above them; see the table of "
            "controls.")


def advice(found: dict) -> list[str]:
    """What to do next. With a claim the reader owns images, else the model."""
    steps, given, verdict = [], found["settings"].keys(), found["answer"]["verdict"]
    if not {"--references", "--train-references"} & given:
        train = ("Train reference models (--train-references 4 --reference-images LIST), or give some as --references"
                 if {"--members", "--claim"} & given else "Give reference models as --references")
        steps.append(f"{train}: the attacks calibrated, rmia, lira, statistics and residual compare the model with "
                     "them, and usually find more than those without.")
    if verdict == "leak" and len(found["defenses"]) < 2 and not found["claim"]:
        steps.append("Measure what a defense would change: --try argmax gauss:0.1.")
    if verdict in ("no evidence", "undecided"):
        sides = "images of the claim and of the null" if found["claim"] else "members and non-members"
        steps.append(f"Give more {sides}: the interval becomes narrower with more groups of images.")
    if found["claim"]:
        return [*steps, "Take a null of the same place, time and camera as the claim, and ask the owner of the model "
                "what it was trained on."]
    if not any(row["name"] == "model" for row in found["controls"]):
        steps.append("Give a model that saw neither side as --control: the same attack on it must find nothing.")
    steps.append("Repeat the audit after each change of the model or of its training, and compare the two by "
                 "audit.py --compare.")
    return steps
