"""A synthetic torso CT with known organs, for tests, demos and screenshots that need no patient.

Anatomy is a table of implicit shapes in millimetres, painted one over the other. Sizes, places and
densities follow what anatomy books and public abdominal CTs show; no image of a patient goes in.
Coordinates are those of a supine patient, +x left, +y posterior, +z superior (LPS), with the origin
in the middle of the body on the level of the kidneys.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from XAICLIPLib.errors import InputError

Array: TypeAlias = NDArray[np.float32]

_ORGANS = """spleen, right kidney, left kidney, gallbladder, esophagus, liver, stomach, aorta,
inferior vena cava, portal and splenic veins, pancreas, right adrenal gland, left adrenal gland"""
NAMES: dict[int, str] = dict(enumerate(" ".join(_ORGANS.split()).split(", "), start=1))
"""Organ of each label value, numbered as in the BTCV abdominal CTs."""

FAT, MUSCLE, CORTEX, MARROW, LUNG, AIR = -104.0, 56.0, 600.0, 160.0, -840.0, -1000.0
WARP_MM = 7.0  # the warp moves no point further than this along any axis


@dataclass(frozen=True)
class Phantom:
    """A synthetic CT and its labelled organs.

    Attributes
    ----------
    image : SimpleITK.Image
        int16, Hounsfield units, identity direction (LPS).
    labels : SimpleITK.Image
        uint8, 0 elsewhere, same geometry.
    names : dict of int to str
        Organ of each label value.
    """

    image: sitk.Image
    labels: sitk.Image
    names: dict[int, str]


@dataclass(frozen=True)
class Tube:
    """A chain of round cones through ``points`` (n, 3), thick ``radii`` (n,), both in mm."""

    points: Array
    radii: Array

    def bounds(self) -> Array:
        """Low and high corner of the box around the tube."""
        pad = self.radii[:, None]
        return np.stack([(self.points - pad).min(axis=0), (self.points + pad).max(axis=0)])

    def moved(self, pivot: Array, shift: Array, size: float) -> Tube:
        """The tube scaled about a pivot and shifted."""
        return Tube(pivot + (self.points - pivot) * size + shift, self.radii * size)

    def distance(self, at: Array) -> Array:
        """Approximate signed distance in mm of the places ``at`` (3, ...), negative inside."""
        nearest = np.full(at.shape[1:], np.inf, np.float32)
        for a, b, r, s in zip(self.points, self.points[1:], self.radii, self.radii[1:], strict=False):
            axis, (x, y, z) = b - a, (at[i] - a[i] for i in range(3))
            u, v, w = axis / max(float(axis @ axis), 1e-6)
            t = (x * u + y * v + z * w).clip(0, 1)
            away = np.sqrt((x - t * axis[0]) ** 2 + (y - t * axis[1]) ** 2 + (z - t * axis[2]) ** 2)
            np.minimum(nearest, away - (r + t * (s - r)), out=nearest)
        return nearest


@dataclass(frozen=True)
class Blob:
    """An ellipsoid: centre and half axes in mm, turned by ``turn`` degrees about x, y and z."""

    centre: Array
    radii: Array
    turn: tuple[float, float, float]

    def bounds(self) -> Array:
        """Low and high corner of a box around the ellipsoid however it is turned."""
        reach = self.radii.max() if any(self.turn) else self.radii
        return np.stack([self.centre - reach, self.centre + reach])

    def moved(self, pivot: Array, shift: Array, size: float) -> Blob:
        """The ellipsoid scaled about a pivot and shifted."""
        centre = pivot + (self.centre - pivot) * size + shift
        return Blob(centre, self.radii * size, self.turn)

    def distance(self, at: Array) -> Array:
        """Approximate signed distance in mm of the places ``at`` (3, ...), negative inside."""
        local = [at[i] - self.centre[i] for i in range(3)]
        for axis, degrees in enumerate(self.turn):
            i, j = (axis + 1) % 3, (axis + 2) % 3
            c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
            local[i], local[j] = c * local[i] + s * local[j], c * local[j] - s * local[i]
        k = np.sqrt(sum((local[i] / self.radii[i]) ** 2 for i in range(3)))
        slope = np.sqrt(sum((local[i] / self.radii[i] ** 2) ** 2 for i in range(3)))
        return np.asarray(k * (k - 1) / np.maximum(slope, 1e-4), np.float32)


Shape: TypeAlias = Tube | Blob


@dataclass(frozen=True)
class Organ:
    """One row of the anatomy: what to paint, how bright, and which label it gets.

    Attributes
    ----------
    hu : float
        Density in Hounsfield units.
    parts, minus : tuple of shapes
        What belongs to it, and what is cut out of that.
    label : int or None
        Label it gets; 0 clears the label, None keeps what is there (a vessel in the liver).
    rim : (float, float), optional
        HU and thickness in mm of the outer layer: renal cortex, gut wall, cortical bone.
    gas : float, optional
        The content is air in front of this y, in mm from the middle of the shape.
    within : str
        Compartment that bounds it.
    blend, wobble : float
        How far, in mm, the parts melt into one another and the surface is uneven.
    group, vary, swell
        Rows of a group move together, by about ``vary`` mm, and swell by a factor of
        about ``exp(± swell)``.
    """

    hu: float
    parts: tuple[Shape, ...]
    label: int | None = 0
    rim: tuple[float, float] | None = None
    minus: tuple[Shape, ...] = ()
    within: Literal["", "abdomen", "thorax"] = ""
    gas: float | None = None
    blend: float = 0.0
    wobble: float = 0.0
    group: str = ""
    vary: float = 6.0
    swell: float = 0.07


def tube(*stops: ArrayLike, thick: float = 1.0) -> Tube:
    """A tube through stops (x, y, z, radius)."""
    line = np.asarray(stops, np.float32)
    return Tube(line[:, :3], line[:, 3] * np.float32(thick))


def blob(centre: ArrayLike, radii: ArrayLike, *turn: float) -> Blob:
    """An ellipsoid, turned or not."""
    x, y, z = turn or (0.0, 0.0, 0.0)
    return Blob(np.asarray(centre, np.float32), np.asarray(radii, np.float32), (x, y, z))


def pair(*tubes: Tube) -> tuple[Shape, ...]:
    """The tubes and their mirror images."""
    flip = np.array((-1, 1, 1), np.float32)
    return *tubes, *(Tube(t.points * flip, t.radii) for t in tubes)


# fmt: off
_LEVELS = (-300, -250, -210, -160, -110, -60, 0, 60, 110, 150, 210)
# Half width, half depth and middle in mm, at each level, of the muscular wall and of the cavity.
_OUTLINES = {
    "wall": ((150, 158, 158, 150, 140, 136, 138, 142, 143, 140, 130),
             (90, 98, 100, 98, 96, 95, 98, 101, 104, 106, 105),
             (8, 5, 3, 1, 0, 0, 0, 0, 0, 0, 0)),
    "cavity": ((45, 50, 56, 80, 112, 123, 127, 131, 132, 129, 118),
               (55, 62, 68, 74, 77, 81, 86, 91, 94, 96, 94),
               (5, 2, -2, -8, -11, -8, -5, -2, -1, 0, 0)),
}
# fmt: on


def _outline(at: Array, layer: str, grow: tuple[float | Array, float | Array] = (0, 0)) -> Array:
    """Signed distance in mm to the outline of a layer of the torso, grown by ``grow`` mm."""
    a, b, middle = (np.interp(at[2], _LEVELS, k).astype(np.float32) for k in _OUTLINES[layer])
    a, b, n = a + grow[0], b + grow[1], 2.3
    u, v = np.abs(at[0]) + 0.01, np.abs(at[1] - middle) + 0.01
    r = ((u / a) ** n + (v / b) ** n) ** (1 / n)
    slope = r ** (1 - n) * np.hypot(u ** (n - 1) / a**n, v ** (n - 1) / b**n)
    return np.asarray((r - 1) / slope, np.float32)


def _diaphragm(at: Array) -> Array:
    """Signed distance in mm to the two domes of the diaphragm, negative below."""
    x, y, z = at
    back = ((y + 12) / np.where(y < -12, 135, 90)) ** 2
    right = 134 - 100 * (((x + 62) / np.where(x < -62, 70, 125)) ** 2 + back) ** 2
    left = 122 - 100 * (((x - 68) / np.where(x > 68, 66, 125)) ** 2 + back) ** 2
    return np.asarray((z - 8 * np.logaddexp(right / 8, left / 8)) * 0.6, np.float32)


# fmt: off
def _skeleton() -> list[Organ]:
    """Spine, ribs, sternum, pelvis and thigh bones."""
    rim, thin = (CORTEX, 2.5), (CORTEX, 2)
    rows = [Organ(85, (tube((0, 50, 260, 18), (0, 49, 120, 18), (0, 39, -30, 19),
                            (0, 37, -70, 20), (0, 52, -125, 20)),))]
    for z in range(-118, 270, 32):
        y = float(np.interp(z, (-125, -70, -30, 120), (49, 37, 39, 49)))
        w = float(np.interp(z, (-60, 200), (25, 18)))
        arch = tube((14, y + 10, z, 5), (13, y + 25, z, 5), (0, y + 35, z - 4, 4))
        wing = tube((14, y + 21, z, 5), (36, y + 27, z + 3, 3.5))
        spine = tube((0, y + 34, z - 4, 4), (0, y + 47, z - 14, 4))
        plates = (blob((0, y, z + 9), (w, 18, 5)), blob((0, y, z - 9), (w, 18, 5)))
        rows += [Organ(MARROW, (blob((0, y, z), (w, 18, 16)), *plates), rim=rim, blend=4),
                 Organ(MARROW + 120, (*pair(arch, wing), spine), rim=thin)]
    for i in range(-3, 9):
        reach = np.interp(i, (0, 3, 5, 6, 8), (152, 140, 122, 105, 66))
        turn = np.deg2rad(np.linspace(15, reach, 14))
        height = 250 - 26 * i - 0.7 * np.rad2deg(turn)
        a, b = (np.interp(height, _LEVELS, _OUTLINES["wall"][k]) - 7 for k in (0, 1))
        rib = np.stack([a * np.sin(turn) ** 0.85, b * np.cos(turn), height, np.full(14, 5.2)], 1)
        rows.append(Organ(MARROW + 60, pair(tube(*rib)), rim=rim))
        if i < 6:  # costal cartilage
            front = max(height[-1] + 8 * i, 105)
            rows.append(Organ(110, pair(tube(rib[-1], (12, -94, front, 5)))))
    crest = ((40, 64, -112, 6), (66, 52, -80, 5), (98, 22, -66, 5), (120, -14, -78, 5),
             (124, -38, -104, 5))
    base = ((48, 60, -165, 8), (64, 44, -178, 8), (84, 22, -190, 9), (94, 0, -192, 9),
            (100, -22, -182, 7))
    at = np.linspace(0, 4, 19)
    top, foot = (np.stack([np.interp(at, range(5), k) for k in np.transpose(c)], 1)
                 for c in (crest, base))
    return [
        *rows,
        Organ(MARROW, pair(tube((7, -98, 100, 4), (8, -97, 240, 8))), rim=(400, 2),
              blend=8),
        Organ(MARROW, (tube((0, 52, -118, 20), (0, 72, -155, 15), (0, 86, -190, 9),
                             (0, 84, -215, 4)),
                       *pair(tube((26, 60, -120, 18), (20, 74, -165, 11)))), rim=rim, blend=5),
        Organ(MARROW + 40, pair(*map(tube, top, foot)), rim=rim, blend=4),
        Organ(MARROW + 40, pair(tube((84, 20, -192, 11), (84, 24, -212, 13), (70, 42, -245, 11),
                                     (62, 34, -275, 9)),
                                tube((94, -14, -195, 10), (66, -44, -222, 8), (14, -60, -240, 9),
                                     (40, -25, -272, 7))), rim=(CORTEX, 3), blend=6),
        Organ(FAT, pair(tube((92, 4, -215, 25), (94, 5, -219, 25)))),
        Organ(MARROW + 90, pair(tube((92, 4, -215, 23), (94, 5, -219, 23)),
                                tube((96, 6, -222, 17), (128, 14, -250, 20), (130, 14, -320, 15))),
              rim=(CORTEX, 3), blend=4),
        Organ(30, (tube((0, 72, 260, 8), (0, 71, 120, 8), (0, 61, -30, 8), (0, 58, -70, 8),
                        (0, 72, -130, 7)),)),
    ]


def _muscles() -> list[Organ]:
    """Muscles inside the muscular wall: psoas, quadratus lumborum, back, crura; mediastinal fat."""
    return [
        Organ(MUSCLE, pair(tube((31, 40, 30, 8), (42, 36, -50, 17), (58, 20, -130, 22),
                                (86, -24, -205, 16), (104, -10, -270, 14)))),
        Organ(MUSCLE, pair(tube((60, 62, 28, 10), (76, 54, -80, 15)))),
        Organ(MUSCLE, pair(tube((22, 81, 260, 19), (26, 82, 90, 20), (32, 80, 0, 21),
                                (30, 82, -90, 18), (16, 92, -150, 8)),
                           tube((0, 82, 260, 13), (0, 78, -20, 13)),
                           tube((48, 88, 100, 11), (54, 80, 0, 15), (48, 80, -80, 10)))),
        Organ(MUSCLE, pair(tube((8, 18, 105, 6), (14, 30, 60, 6), (18, 30, -10, 4)))),
        Organ(FAT, (tube((3, 22, 112, 26), (4, 10, 240, 40)),), within="thorax"),
    ]


def _bowel(rng: np.random.Generator) -> list[Organ]:
    """Mesentery, small bowel and colon, different in every patient."""
    rows: list[Organ] = []
    for _ in range(40):
        root = rng.normal((0, -12, -40), (8, 4, 35))
        tip = rng.uniform((-85, -65, -165), (85, -10, 20))
        bend = (root + tip) / 2 + rng.normal(0, 8, 3)
        rows.append(Organ(115, (tube((*root, 2.8), (*bend, 2.2), (*tip, 1.5)),)))
    thick = float(rng.uniform(0.85, 1.2))
    for _ in range(64):
        middle = rng.uniform((-80, -62, -200), (82, -8, -5))
        line = middle + np.cumsum(rng.normal(0, 1, (5, 3)) * (15, 11, 15), axis=0)
        line = np.clip(line, (-95, -72, -210), (98, 5, 5))
        rows.append(Organ(
            float(rng.choice([30, 45, 70, 200], p=[0.35, 0.3, 0.25, 0.1])),
            (tube(*np.c_[line, rng.uniform(8, 13, 5)], thick=thick),), rim=(95, 3), wobble=1.5,
            within="abdomen", gas=-6.0 if rng.random() < 0.15 else None))
    stops = np.array((
        (-88, 0, -165, 25), (-106, 12, -115, 25), (-110, 18, -60, 24), (-104, 8, -15, 23),
        (-80, -38, -8, 21), (-45, -70, -28, 21), (10, -76, -38, 20), (60, -66, -10, 20),
        (94, -32, 30, 20), (108, 18, 44, 18), (112, 34, -10, 16), (108, 32, -70, 16),
        (100, 14, -120, 16), (70, 0, -150, 16), (30, 0, -168, 16), (0, 30, -175, 17),
        (0, 56, -200, 19), (0, 52, -260, 15)), float)
    t = np.linspace(0, 17, 120)
    line = np.stack([np.interp(t, range(18), k) for k in stops.T], axis=1)
    line[:, :3] += rng.normal(0, 9, 3) * np.sin(t / 17 * np.pi)[:, None]
    line[:, 3] *= rng.uniform(0.8, 1.25) * (1 + 0.15 * np.sin(t * 11))  # haustra
    rows += [Organ(float(rng.uniform(-20, 60)), (tube(*line[k : k + 13]),), rim=(75, 2.5), wobble=2,
                   within="abdomen", gas=float(rng.uniform(-22, 10))) for k in range(0, 119, 12)]
    return rows


def _organs(rng: np.random.Generator) -> list[Organ]:
    """The labelled organs and what belongs to them, from the deepest layer to the topmost."""
    late = float(rng.beta(4, 1.4))  # contrast phase: 0 late arterial, 1 late portal-venous

    def hu(early: float, end: float, spread: float = 7.0) -> float:
        return early + (end - early) * late + float(rng.normal(0, spread))

    liver, aorta, cava = hu(70, 108, 9), hu(260, 140, 14), hu(65, 125, 12)
    portal, cortex, medulla = hu(115, 160, 9), hu(205, 170, 10), hu(95, 150, 10)
    spleen, pancreas, blood = liver + hu(25, 12), hu(100, 85), (aorta + cava) / 2
    meal = float(rng.choice([15, 40, 70, 240], p=[0.3, 0.3, 0.2, 0.2]))
    bag, bore, gland = (float(rng.lognormal(0, s)) for s in (0.15, 0.12, 0.1))
    renal: list[Organ] = []
    for side, label in ((-1, 2), (1, 3)):
        at, tilt, group = (side * 70, 38, 2 + 4 * side), (-12, -9 * side, -28 * side), f"{label}"
        sinus = blob((side * 55, 28, 2 + 4 * side), (16, 10, 22), *tilt)
        renal += [
            Organ(FAT, (blob(at, (36, 37, 60), *tilt),), within="abdomen", group=group),
            Organ(medulla, (blob(at, (26, 29, 51.5), *tilt),), label, (cortex, 7), (sinus,),
                  within="abdomen", wobble=1.2, group=group),
            Organ(FAT + 30, (sinus,), group=group),
            Organ(portal, (tube((side * 58, 29, 2, 4), (side * 12, 8, 8, 4)),)),
        ]
    lungs = [rng.uniform((60, -65, 60), (118, 80, 215), (22, 3)) * (side, 1, 1) for side in (-1, 1)]
    return [
        Organ(FAT, (blob((22, -32, 150), (68, 58, 46)),), within="thorax", group="heart"),
        Organ(blood, (blob((40, -32, 152), (46, 40, 42), 0, 20, -30),), rim=(115, 10),
              within="thorax", group="heart"),
        Organ(blood, (blob((-4, -34, 158), (34, 42, 46)),), rim=(100, 3), within="thorax",
              group="heart"),
        *(Organ(25, (tube((side * 36, 8, 185, 4), (x / 2 + side * 18, y / 2 + 4, z / 2 + 92, 2.6),
                          (x, y, z, 1.2)),), within="thorax")
          for side, tips in zip((-1, 1), lungs, strict=True) for x, y, z in tips),
        *_bowel(rng),
        Organ(8, (blob((0, -26, -208), (40, 34, 30)),), rim=(50, 4), group="bladder", swell=0.2),
        Organ(60, (blob((0, 10, -226), (25, 17, 22)),), wobble=2, group="bladder"),
        Organ(liver, (blob((-86, 2, 48), (58, 90, 104), 0, 8, 0), blob((-66, 2, 92), (80, 94, 58)),
                      blob((2, -48, 86), (90, 43, 40), 0, 12, 0)), 6,
              minus=(blob((-16, 10, -4), (60, 66, 48), 0, 32, 0),
                     tube((-62, 66, -50, 40), (-54, 66, 40, 30), (-40, 62, 82, 16))),
              within="abdomen", blend=18, wobble=2, group="liver", swell=0.08),
        *(Organ(portal - 10, (tube((-22, -2, 114, 5), (x, y, z, 3.5),
                                   (1.5 * x + 5, 1.7 * y, z - 14, 1.5)),), None)
          for x, y, z in ((-70, 20, 100), (-50, -28, 98), (0, -35, 96))),
        Organ(spleen, (blob((96, 48, 68), (44, 62, 68), 25, -12, 25),), 1,
              minus=(blob((56, 8, 66), (32, 40, 58)),), within="abdomen", wobble=2,
              group="spleen", swell=0.17),
        *renal,
        Organ(45, (tube((8, 24, 260, 9), (6, 20, 165, 9), (12, 12, 125, 9), (26, 4, 104, 8)),), 5,
              (55, 3)),
        Organ(meal, (tube((54, 10, 100, 34), (60, -10, 86, 38), (64, -34, 58, 34),
                          (44, -52, 32, 28), (14, -56, 26, 19), (-14, -46, 26, 11), thick=bag),
                     tube((26, 4, 104, 9), (50, 8, 100, 14))), 7, (80, 4), within="abdomen",
              gas=float(rng.uniform(-50, -24)), blend=8, wobble=2, group="stomach", vary=8,
              swell=0.05),
        Organ(40, (tube((-14, -46, 26, 11), (-36, -36, 30, 12), (-46, -18, 10, 12),
                        (-42, -10, -22, 12), (-10, -8, -34, 11), (20, -14, -26, 10)),),
              rim=(95, 3), gas=-16.0, wobble=1),
        Organ(pancreas, (tube((-30, -14, -4, 12), (-26, -20, 14, 15), (-6, -34, 28, 11),
                              (20, -30, 38, 11), (48, -10, 46, 12), (76, 14, 58, 9), thick=gland),),
              11, wobble=3.5, group="pancreas"),
        Organ(aorta, (tube((20, 28, 260, 12), (19, 27, 130, 12), (11, 13, 60, 11.5), (6, 6, 0, 10),
                           (3, 5, -62, 9), thick=bore),), 8),
        Organ(aorta, pair(tube((3, 6, -64, 7), (30, 22, -120, 6), (62, -10, -170, 6),
                               (80, -58, -250, 5)))),
        Organ(aorta, (tube((9, 4, 42, 4), (9, -16, 30, 4), (4, -20, -60, 3)),
                      tube((10, 4, 50, 4), (10, -14, 54, 3), (-30, -20, 60, 3)))),
        *(Organ(cava, (tube((-14, 14, -68, 8), (x, y, -120, 7), (u, -2, -175, 7),
                            (v, -50, -250, 6)),))
          for x, y, u, v in ((-34, 30, -66, -76), (34, 32, 66, 76))),
        Organ(cava, (tube((-16, 14, -66, 10), (-20, 8, 0, 11), (-22, 0, 60, 12),
                          (-22, -2, 110, 12.5), (-16, -8, 140, 12), thick=1.5 - bore / 2),), 9),
        Organ(portal, (tube((-4, -26, 0, 6), (-4, -26, 34, 7.5), (-28, -20, 58, 8),
                            (-52, -16, 72, 7), (-82, -8, 74, 5)),
                       tube((-46, -16, 72, 6), (-38, -38, 84, 4)),
                       tube((-4, -26, 36, 7), (22, -16, 48, 6.5), (52, 6, 56, 6), (78, 28, 66, 5))),
              10),
        Organ(portal, (tube((-4, -26, 0, 6), (-2, -26, -60, 4)),)),
        Organ(10, (blob((-66, -42, 24), (15, 26, 18), 25, 0, -20),), 4, (45, 2),
              group="gallbladder", vary=8, swell=0.16),
        Organ(72, (tube((-26, 14, 70, 4), (-31, 27, 64, 4.2), (-37, 40, 57, 3.6)),
                   tube((-30, 24, 66, 4.2), (-28, 34, 50, 3.6)),
                   tube((-26, 16, 80, 3.6), (-31, 27, 64, 4.2))), 12, group="right adrenal"),
        Organ(72, (tube((36, 3, 50, 4), (38, 18, 56, 4.4), (46, 32, 50, 3.6)),
                   tube((37, 16, 56, 4.2), (31, 31, 50, 3.6)),
                   tube((35, 10, 34, 3.6), (38, 18, 56, 4.4), (36, 18, 70, 3.6))), 13,
              group="left adrenal"),
    ]
# fmt: on


def _vary(rows: list[Organ], rng: np.random.Generator) -> list[Organ]:
    """Move and swell each group of rows by its own random amount."""
    moves: dict[str, tuple[Array, Array, float]] = {}
    varied = []
    for row in rows:
        if row.group and row.group not in moves:
            pivot = np.mean([part.bounds().mean(axis=0) for part in row.parts], axis=0)
            shift = rng.normal(0, row.vary, 3).astype(np.float32)
            moves[row.group] = pivot, shift, float(rng.lognormal(0, row.swell))
        if row.group:
            parts, minus = (
                tuple(shape.moved(*moves[row.group]) for shape in shapes) for shapes in (row.parts, row.minus)
            )
            row = replace(row, parts=parts, minus=minus)
        varied.append(row)
    return varied


class _Canvas:
    """The volume while it is painted, arrays z, y, x, and the places of its voxels in the body."""

    def __init__(self, axes: list[Array], scale: Array, pixel: float, rng: np.random.Generator):
        self.axes, self.scale, self.pixel, self._rng = axes, scale, np.float32(pixel), rng
        x, y, z = axes
        self._grid: tuple[Array, ...] = (x[None, None, :], y[None, :, None], z[:, None, None])
        shape = (z.size, y.size, x.size)
        self.hu = np.full(shape, AIR, np.float32)
        self.labels = np.zeros(shape, np.uint8)
        self.regions: dict[str, Array] = {}
        warp = [WARP_MM * self.waves(110, 260, 4) for _ in axes]
        self.places = np.stack([v / s + w for v, s, w in zip(self._grid, scale, warp, strict=True)]).astype(np.float32)
        self.uneven = 2 * self.waves(22, 45, 6)

    def waves(self, shortest: float, longest: float, count: int) -> Array:
        """A smooth random field between -1 and 1 that depends on the place in mm only."""
        total = np.zeros(self.hu.shape, np.float32)
        for _ in range(count):
            k = self._rng.normal(0, 1, 3)
            k *= 2 * np.pi / (np.linalg.norm(k) * self._rng.uniform(shortest, longest))
            phase = np.exp(1j * self._rng.uniform(0, 2 * np.pi))
            a, b, c = (np.exp(1j * k[i] * v).astype(np.complex64) for i, v in enumerate(self._grid))
            total += (a * (b * (c * phase.astype(np.complex64)))).real
        return total / np.float32(count)

    def fill(
        self,
        distance: Array,
        hu: float | Array,
        label: int | None = None,
        box: tuple[slice, ...] = (slice(None),),
    ) -> None:
        """Paint where ``distance`` is negative, with the partial volume effect at the edge."""
        cover = (0.5 - distance / self.pixel).clip(0, 1)
        self.hu[box] += cover * (hu - self.hu[box])
        if label is not None:
            self.labels[box][cover > 0.5] = label

    def paint(self, organ: Organ) -> None:
        """Paint one row of the anatomy inside the box that holds it."""
        corners = np.stack([part.bounds() for part in organ.parts])
        pad = WARP_MM + organ.blend + organ.wobble + 2 * self.pixel
        low = (corners[:, 0].min(axis=0) - pad) * self.scale
        high = (corners[:, 1].max(axis=0) + pad) * self.scale
        box = tuple(slice(*np.searchsorted(self.axes[i], (low[i], high[i]))) for i in (2, 1, 0))
        at = self.places[(slice(None), *box)]
        if at.size == 0:
            return
        solid = organ.parts[0].distance(at)
        for part in organ.parts[1:]:
            other = part.distance(at)
            melt = (organ.blend - np.abs(solid - other)).clip(0) ** 2
            solid = np.minimum(solid, other) - melt / (4 * organ.blend + 1e-6)
        solid += organ.wobble * self.uneven[box]
        for part in organ.minus:
            solid = np.maximum(solid, -part.distance(at))
        if organ.within:
            solid = np.maximum(solid, self.regions[organ.within][box] + 1.5)
        rim_hu, rim_mm = organ.rim or (organ.hu, 0.0)
        self.fill(solid, rim_hu, organ.label, box)
        self.fill(solid + rim_mm, organ.hu, None, box)
        if organ.gas is not None:
            front = at[1] - (corners[..., 1].mean() + organ.gas)
            self.fill(np.maximum(solid + rim_mm, front), -960, None, box)


def torso_phantom(
    seed: int = 0,
    spacing_mm: float | tuple[float, float, float] = 3.0,
    size: tuple[int, int, int] | None = None,
    noise_hu: float = 12.0,
) -> Phantom:
    """Make a contrast-enhanced CT of a torso that belongs to nobody, with its organs labelled.

    Parameters
    ----------
    seed : int
        Decides the patient: physique, organ sizes and places, contrast phase, field of view.
    spacing_mm : float or (float, float, float)
        Voxel spacing along x, y and z in mm. The same seed is the same patient at any spacing.
    size : (int, int, int), optional
        Voxels along x, y and z, around the middle of the torso; by default the torso fits in.
    noise_hu : float
        Standard deviation of the image noise in HU.

    Returns
    -------
    Phantom
        Image, labels and organ names.

    Raises
    ------
    InputError
        If seed, spacing, size or noise is out of range.
    """
    spacing = np.asarray(spacing_mm, float)
    if spacing.shape not in ((), (3,)) or not np.all(np.isfinite(spacing) & (spacing > 0)):
        raise InputError(f"spacing_mm is {spacing_mm}; give one or three positive numbers of mm.")
    spacing = np.broadcast_to(spacing, 3)
    if seed < 0:
        raise InputError(f"seed is {seed}; give a whole number of 0 or more.")
    if size is not None and (len(size) != 3 or min(size) < 1):
        raise InputError(f"size is {size}; give three positive numbers of voxels.")
    if not (np.isfinite(noise_hu) and noise_hu >= 0):
        raise InputError(f"noise_hu is {noise_hu}; give a standard deviation of 0 HU or more.")
    rng, grain = (np.random.default_rng((seed, stream)) for stream in (0, 1))

    habit = float(rng.uniform())  # from lean to obese
    scale = rng.normal((0.98, 0.96, 1), (0.05, 0.055, 0.065)) + habit * np.array((0.07, 0.14, 0))
    fat = (5 + 26 * habit**1.4, 5 + 20 * habit**1.4)
    bottom, top = rng.uniform(-285, -225), rng.uniform(155, 195)
    back = (108 + fat[1]) * scale[1]
    wide = max(2 * (160 + fat[0]) * scale[0] + 16, 2 * back + 60)
    extent = np.array((wide, wide, top - bottom))
    count = np.array(size) if size else np.maximum(np.rint(extent / spacing), 1).astype(int)
    origin = np.array((0, 0, (top + bottom) / 2)) - spacing * (count - 1) / 2
    axes = [np.asarray(o + d * np.arange(n), np.float32) for o, d, n in zip(origin, spacing, count, strict=True)]
    canvas = _Canvas(axes, scale.astype(np.float32), float(np.cbrt(spacing.prod())), rng)

    at = canvas.places
    hips = np.interp(at[2], (-250, -120, 60, 200), (1.3, 1.2, 0.9, 0.7)).astype(np.float32)
    skin, wall = _outline(at, "wall", (fat[0] * hips, fat[1] * hips)), _outline(at, "wall")
    cavity, dome = _outline(at, "cavity"), _diaphragm(at)
    canvas.regions = {"abdomen": np.maximum(cavity, dome), "thorax": np.maximum(cavity, -dome)}
    couch = axes[1][:, None] + (axes[0] / 45) ** 2 - back - 14
    septa = (1 - np.abs(canvas.waves(50, 110, 8)) / 0.08).clip(0, 1) * (wall < -4)
    canvas.fill(np.broadcast_to(np.abs(couch) - 3, skin.shape), 60)
    canvas.fill(skin, 10)
    canvas.fill(skin + 2.5, FAT)
    canvas.fill(wall, np.asarray(MUSCLE + (FAT - MUSCLE) * 0.7 * septa, np.float32))
    canvas.fill(canvas.regions["abdomen"] + 2, FAT + 4)
    canvas.fill(canvas.regions["thorax"] + 2, LUNG)
    for organ in _vary(_muscles() + _organs(rng) + _skeleton(), rng):
        canvas.paint(organ)

    def speckle(sigma: ArrayLike, std: float) -> Array:
        field = ndimage.gaussian_filter(grain.standard_normal(skin.shape, np.float32), sigma)
        return np.asarray(field * (std / max(float(field.std()), 1e-6)), np.float32)

    tissue = np.where(skin < 0, speckle(3 / spacing[::-1], 4), 0)
    image = ndimage.gaussian_filter(canvas.hu + tissue, 1.3 / spacing[::-1])
    image += speckle((0.5, 0.7, 0.7), noise_hu)
    volume = sitk.GetImageFromArray(np.rint(image).clip(-1024, 3071).astype(np.int16))
    labels = sitk.GetImageFromArray(canvas.labels)
    for result in (volume, labels):
        result.SetSpacing([float(d) for d in spacing])
        result.SetOrigin([float(o) for o in origin])
    return Phantom(volume, labels, dict(NAMES))


def write_phantom(folder: str | Path, seed: int = 0) -> tuple[Path, Path]:
    """Write ``phantom.nii.gz`` and ``phantom_labels.nii.gz`` into a folder, made if absent.

    Returns
    -------
    image, labels : Path
        The two files.
    """
    phantom, folder = torso_phantom(seed), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    image, labels = folder / "phantom.nii.gz", folder / "phantom_labels.nii.gz"
    sitk.WriteImage(phantom.image, str(image), useCompression=True)
    sitk.WriteImage(phantom.labels, str(labels), useCompression=True)
    return image, labels
