"""What is explained: a class of the network, and the voxels over which it is scored."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import SimpleITK as sitk
import torch
from torch import Tensor

from XAICLIPLib import anatomy
from XAICLIPLib.errors import OTHER_TARGET, SAY_TARGET, InputError
from XAICLIPLib.imaging.masks import MaskSource, is_mask
from XAICLIPLib.imaging.nearness import within
from XAICLIPLib.segmentation.prediction import Prediction
from XAICLIPLib.segmentation.segmenter import Segmenter

RIM_MM = 6.0
"""Around the predicted structure: there, too, the target is scored, so that a prediction that spills over loses."""


@dataclass(frozen=True)
class Target:
    """What is explained.

    Attributes
    ----------
    name
        The structure's name.
    label
        Output channel of the network; several where the target is a group of structures, such as both kidneys.
    reference
        (X, Y, Z) bool: the structure as unperturbed, what the perturbed prediction is compared with.
    voxels
        (X, Y, Z) bool: where the comparison is made; usually the reference with a rim around it, so that a prediction
        that spills over loses score as well. What of the reference lies outside does not count.
    """

    name: str
    label: int | tuple[int, ...]
    reference: Tensor
    voxels: Tensor

    @classmethod
    def around(
        cls,
        name: str,
        label: int | tuple[int, ...],
        reference: Tensor,
        spacing_mm: Sequence[float],
        rim_mm: float = RIM_MM,
    ) -> Target:
        """A structure with a rim around it, in which a prediction that spills over loses score.

        Parameters
        ----------
        name, label, reference
            As the attributes.
        spacing_mm
            Voxel size along X, Y and Z.
        rim_mm
            Width of the rim.
        """
        near = within(reference.cpu().numpy(), rim_mm, spacing_mm)
        return cls(name, label, reference, torch.from_numpy(near))


def class_of(prompt: str, target: str | MaskSource | None, segmenter: Segmenter) -> tuple[str, tuple[int, ...]]:
    """Name and labels of the class that is explained."""
    return class_among(prompt, target, classes_of(segmenter), segmenter.name)


def class_among(
    prompt: str, target: str | MaskSource | None, classes: Mapping[int, str], network: str
) -> tuple[str, tuple[int, ...]]:
    """As `class_of`, of a network by the names of its classes."""
    by_name = isinstance(target, str) and not is_mask(target)
    words = target if isinstance(target, str) and by_name else prompt
    exact = class_called(words, classes)
    if exact is not None:
        return classes[exact], (exact,)
    known = ", ".join(classes.values())
    # A mask says where, and leaves it to the prompt to say which class.
    way = "choose a prompt that names" if target is not None and not by_name else SAY_TARGET
    structure = anatomy.resolve(words)
    several = anatomy.prompts_in(words)
    if len(several) > 1 and all(map(anatomy.resolve, several)):
        raise InputError(
            f'"{words}" names {len(several)} structures ({", ".join(several)}), and one is explained here: name one, '
            "or explain each of them (`xaiclip explain` without --target, XAICLIPLib.explain_each)."
        )
    if structure is None:
        like = anatomy.closest_structure(words)
        meant = f" (did you mean {like}?)" if like else ""
        if by_name:
            raise InputError(
                f'The target "{words}" is neither a file nor a known structure{meant}; the network has: {known}.'
            )
        raise InputError(
            f'"{prompt}" names no structure that is known here{meant}, so {way} the class of the network to explain: '
            f"{known}.",
            SAY_TARGET,
        )
    labels = anatomy.match_label(structure, classes)
    if not labels and len(joint := anatomy.joint_labels(structure, classes)) == 1:
        ((label, together),) = joint.items()  # `reporting.measurements.cautions` tells that it is more than was asked
        return together.name, (label,)
    if not labels:
        raise InputError(
            f"The network {network} does not segment the {structure.name}; {way} the class to explain: {known}.",
            SAY_TARGET,
        )
    return structure.name, tuple(labels)


def classes_of(segmenter: Segmenter) -> dict[int, str]:
    """Names of the structures that a network draws, by label: without the background."""
    background = {0} if segmenter.activation == "softmax" else set()
    return {label: str(name) for label, name in segmenter.labels.items() if label not in background}


def class_called(words: str, classes: Mapping[int, str]) -> int | None:
    """The label of the class whose name these words are, but for case, underscores and hyphens; None for none."""
    return next((label for label, name in classes.items() if _plain(name) == _plain(words)), None)


def what_is_drawn(
    name: str, labels: tuple[int, ...], prediction: Prediction
) -> tuple[str, tuple[int, ...], Sequence[str]]:
    """Of a group of structures that the network draws in part: what it draws, its labels, and what it does not draw.

    The name is that of the structures which are drawn, so that nothing is recorded as explained that is not there. A
    single class, and a group that is all there, stay as they are, and so does a group of which nothing is there.
    """
    group = anatomy.resolve(name)
    classes = classes_of(prediction.segmenter)
    if group is None or not group.members or name in (classes.get(label) for label in labels):
        return name, labels, ()
    present = tuple(label for label in labels if bool(prediction.drawn((label,)).any()))
    absent = anatomy.members_without(group, {label: classes[label] for label in present})
    if not present or not absent:
        return name, present or labels, ()
    of_labels = dict.fromkeys(getattr(anatomy.resolve(classes[label]), "name", classes[label]) for label in present)
    return (" and ".join(of_labels) if len(of_labels) <= NAMED_TOGETHER else name), present, absent


NAMED_TOGETHER = 3
"""So many structures of a group that is drawn in part are named one by one; more keep the name of the group."""


def _plain(name: str) -> str:
    """A class name without what spells it: case, underscores, hyphens."""
    return re.sub(r"[\s_-]+", " ", name).strip().lower()


def make_target(
    name: str,
    labels: tuple[int, ...],
    mask: sitk.Image | None,
    prediction: Prediction,
    box: bool = False,
    unsuited: str = "",
) -> Target:
    """The target on the network's grid: the predicted structure with a rim, the user's mask, or what lies in a box.

    A mask is taken for the reference as it is: how much of it does the network still call so? Of a box the reference
    is what the network draws in it, and the rest of it counts as the rim does. ``unsuited`` is said where nothing is
    found: that the network is for other scans.
    """
    if mask is not None:
        target_voxels = prediction.prepared.mask_from(mask)
        if not bool(target_voxels.any()):
            raise InputError(
                "Nothing of the target lies in the part of the volume that the network sees: give another mask."
            )
        decision = prediction.drawn(labels)
        if not bool((decision & target_voxels).any()):
            raise InputError(
                f"The network calls nothing {name} in the {'box' if box else 'mask'} of the target{unsuited}: "
                "give another one, or another prompt."
            )
        return Target(name, labels, decision & target_voxels if box else target_voxels, target_voxels)
    reference = prediction.drawn(labels)
    if not bool(reference.any()):
        raise InputError(
            f"The network finds no {name} in this volume, so there is nothing to explain{unsuited}: {OTHER_TARGET}.",
            OTHER_TARGET,
        )
    return Target.around(name, labels, reference, prediction.prepared.spacing_mm)
