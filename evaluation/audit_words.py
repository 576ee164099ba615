"""The sentences of an audit: the answer, what the verdict means, what to do next, and a glossary."""

VERDICTS = {
    "leak": "The model gives away which images it was trained on.",
    "no evidence": "The audit found no evidence that the model gives away its training images.",
    "other difference": "The two lists of images differ, but not more for this model than without any model.",
    "undecided": "The audit cannot decide whether the model gives away its training images.",
}

GLOSSARY = {
    "member": "an image that the model was trained on, by the list that the user gave",
    "non-member": "an image that the model was not trained on, by the list that the user gave",
    "AUC": "the probability that the attack gives a random member a higher score than a random non-member: 0.5 is "
           "guessing, 1 is certainty",
    "interval": "a range that contains the true value in 95 of 100 such audits; it accounts for images that belong "
                "together (a group)",
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


def sentence(found: dict) -> str:
    """The answer in one sentence, with its interval."""
    one, interval = found["answer"], found["answer"]["interval"]
    shown = f"AUC {one['auc']:.3f}" + (f", 95 % interval {interval[0]:.3f} to {interval[1]:.3f}" if interval else "")
    return f"{VERDICTS[one['verdict']]} The attack \"{found['primary']}\" reaches {shown} (0.5 is guessing)."


def collection(found: dict) -> str:
    """What the test of the collection says; empty if there was none."""
    one = found["collection"]
    if one is None:
        return ""
    need = one["needed"]
    return (f"If the collection had not been used, scores as high would occur with probability p = {one['p']:.2g} "
            f"(one-sided, {one['groups'][0]} groups of the claim and {one['groups'][1]} of the null). "
            + ("This is evidence, and no proof: it is weaker if the null images differ from the claim in another way, "
               "such as time, place or camera." if one["p"] <= 0.05 else "This is no evidence that it was used.")
            + (f" With this AUC, about {need['images']} images in {need['groups']} groups on each side would be found "
               "with a probability of 80 %." if need else ""))


def meaning(found: dict) -> str:
    """What the verdict does and does not say."""
    one = found["answer"]
    if one["verdict"] == "undecided":
        groups = found["images"]["groups"]
        return (f"There are {groups['members']} groups of members and {groups['non_members']} of non-members; an "
                "interval needs at least 10 of each. Give more images, or groups in the split files.")
    if one["verdict"] == "no evidence":
        power = (f" An AUC of {one['detectable']:.2f} or more would have been found with a probability of 80 %; a "
                 "smaller leak may exist." if one["detectable"] else "")
        return f"This is no proof of safety.{power} A stronger attack may find more."
    if one["verdict"] == "other difference":
        return ("Classifiers that see only images and labels tell the two sides apart as well. Choose members and "
                "non-members at random from one collection, and repeat the audit.")
    return ("The two lists were compared by classifiers that do not see the model, and the attack finds more than "
            "they do." if any(row["name"] == "blind" for row in found["controls"]) else
            "No control without the model was possible, so make sure that both lists are from one collection.")


def advice(found: dict) -> list[str]:
    """What to do next."""
    steps = []
    if not any(row["references"] for row in found["attacks"]):
        steps.append("Train reference models (--train-references), or give some as --references: attacks that compare "
                     "the model with them find more.")
    if found["answer"]["verdict"] == "leak" and len(found["defenses"]) < 2:
        steps.append("Measure what a defense would change: --try argmax gauss:0.1.")
    if found["answer"]["verdict"] in ("no evidence", "undecided"):
        steps.append("Give more members and non-members: the interval becomes narrower with more groups of images.")
    if not any(row["name"] == "model" for row in found["controls"]):
        steps.append("Give a model that saw neither side as --control: the same attack on it must find nothing.")
    steps.append("Repeat the audit after each change of the model or of its training, and compare the two by "
                 "audit.py --compare.")
    return steps
