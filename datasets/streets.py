"""*streets*: synthetic street scenes that the project draws itself, with the 19 classes of Cityscapes.

A scene is a straight street, seen by a camera at its end: the ground, two rows of facades, and objects that stand or
drive on it, drawn from far to near. It depends only on the domain, the index and the seed.

The label is drawn from the same outlines, with the errors of a human annotator: outlines are wrong by a pixel or two,
some small objects are missing, and a few objects get a similar class. A model cannot predict these errors from the
image; it can only memorise them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from datasets.pairs import Pair
from utils import VOID
from utils.files import atomic_open
from utils.randomness import stream

CLASSES = ("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
           "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
ID = {name: index for index, name in enumerate(CLASSES)}
CONFUSED = {"car": "truck", "truck": "bus", "bus": "truck", "person": "rider", "rider": "person", "wall": "fence",
            "fence": "wall", "motorcycle": "bicycle", "bicycle": "motorcycle", "terrain": "sidewalk",
            "building": "wall", "traffic sign": "traffic light", "train": "bus", "vegetation": "terrain"}
FAR = 90.0  # metres


@dataclass(frozen=True)
class Domain:
    """Camera, light and weather of a family of scenes."""

    sizes: tuple[tuple[int, int], ...] = ((128, 256),)  # image sizes (H, W)
    focal: float = 0.55  # focal length, as a share of the image width
    height: float = 1.5  # of the camera above the ground, in metres
    light: tuple[float, float] = (0.85, 1.1)  # range of the brightness factor
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)  # factors of R, G and B
    noise: float = 4.0  # standard deviation of the sensor noise, in grey levels 0..255
    blur: float = 0.4  # standard deviation of the Gaussian blur, in pixels
    rain: int = 0  # number of rain streaks
    barrel: float = 0.0  # strength of the lens distortion
    careless: float = 1.0  # factor of the errors of the annotator; 0: labels have the exact outlines
    scenes: str | None = None  # the domain whose images these are; only the labels differ


DOMAINS = {
    "clear": Domain(),
    "rain": Domain(light=(0.3, 0.5), tint=(0.85, 0.95, 1.2), noise=7.0, blur=1.0, rain=140),
    "wide": Domain(sizes=((128, 256), (144, 208), (112, 288)), focal=0.4, height=2.1, light=(0.95, 1.25),
                   tint=(1.15, 1.0, 0.8), noise=3.0, blur=0.6, barrel=0.25),
    "exact": Domain(careless=0.0, scenes="clear"),
    "careless": Domain(careless=2.0, scenes="clear"),
}


def draw(index: int, domain: str = "clear", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw scene `index` of `domain`: image uint8 RGB (H, W, 3) and label uint8 (H, W), 255 = void."""
    rng, sizes = stream(seed, "streets", DOMAINS[domain].scenes or domain, index), DOMAINS[domain].sizes
    scene = _Scene(rng, DOMAINS[domain], sizes[rng.integers(len(sizes))])
    _ground(scene)
    for depth, _, paint in sorted(_facades(scene) + _objects(scene), key=lambda item: (-item[0], item[1])):
        paint(scene, depth)
    _bonnet(scene)
    return _photograph(scene)


@dataclass
class _Scene:
    """Image, label, camera and random stream of a scene. World axes in metres: x right, y up, z forward."""

    rng: np.random.Generator
    domain: Domain
    size: tuple[int, int]
    image: np.ndarray = field(init=False)
    label: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        height, width = self.size
        rng = self.rng
        self.image = np.zeros((height, width, 3), np.uint8)
        self.label = np.full((height, width), VOID, np.uint8)
        self.focal = self.domain.focal * width
        self.horizon = height * rng.uniform(0.38, 0.48)
        self.vanish = width * rng.uniform(0.35, 0.65)
        self.road = rng.uniform(-6.5, -3.0), rng.uniform(3.0, 6.5)
        self.walk = self.road[0] - rng.uniform(1.5, 3.5), self.road[1] + rng.uniform(1.5, 3.5)
        self.line = self.walk[0] - rng.choice([0, 0, 3]), self.walk[1] + rng.choice([0, 0, 3])

    def project(self, points: np.ndarray) -> np.ndarray:
        """Project world points (N, 3) to image points (N, 2); z below 1 m is set to 1 m."""
        points = np.asarray(points, float)
        scale = self.focal / np.maximum(points[:, 2], 1.0)
        return np.stack([self.vanish + points[:, 0] * scale,
                         self.horizon + (self.domain.height - points[:, 1]) * scale], axis=1)

    def fill(self, outline: np.ndarray, colour: np.ndarray) -> None:
        """Fill the outline, image points (N, 2), in the image only."""
        shade = self.rng.normal(0, 3, 3)
        points = np.round(outline * 16).astype(np.int32)
        cv2.fillPoly(self.image, [points], np.clip(colour + shade, 0, 255).tolist(), cv2.LINE_AA, 4)

    def annotate(self, outlines: list[np.ndarray], name: str, careless: float = 1.0) -> None:
        """Fill outlines in the label with the errors of a human annotator: shifts, uneven edges, misses, wrong classes.

        `careless` scales these errors, as that of the domain does; 0 draws the exact outlines. The random numbers that
        are drawn do not depend on the domain, so that its scenes stay the same.
        """
        rng, factor = self.rng, self.domain.careless
        area = sum(cv2.contourArea(o.astype(np.float32)) for o in outlines)
        miss = careless * (0.5 if area < 12 else 0.08 if area < 60 else 0.01)
        luck, confusion, shift, wobbles = rng.random(), 1.0, 0.0, [0.0] * len(outlines)
        if luck >= miss:
            confusion, shift = rng.random(), rng.normal(0, 0.7, 2)
            wobbles = [rng.normal(0, 0.7, outline.shape) for outline in outlines]
        if luck < factor * miss:
            return
        if confusion < 0.04 * careless * factor:
            name = CONFUSED.get(name, name)
        for outline, wobble in zip(outlines, wobbles, strict=True):
            points = np.round((outline + shift * careless * factor + wobble * careless * factor) * 16).astype(np.int32)
            cv2.fillPoly(self.label, [points], ID[name], cv2.LINE_8, 4)

    def draw_object(self, name: str, parts: list[tuple[np.ndarray, np.ndarray]], marks: tuple = ()) -> None:
        """Draw an object of class `name`: `parts` (outline, colour), then `marks`. The label gets only `parts`."""
        for outline, colour in (*parts, *marks):
            self.fill(outline, colour)
        self.annotate([outline for outline, _ in parts], name)


def _colour(rng: np.random.Generator, *palette: tuple[int, int, int], spread: float = 12) -> np.ndarray:
    return np.clip(np.array(palette[rng.integers(len(palette))]) + rng.normal(0, spread, 3), 5, 250)


def _ground(scene: _Scene) -> None:
    """Draw sky, terrain, pavements, and the road with its markings, from the horizon to the camera."""
    rng, height = scene.rng, scene.size[0]
    top, bottom = np.array([_colour(rng, (90, 140, 210), (150, 165, 185)), _colour(rng, (190, 205, 225))])
    ramp = np.linspace(0, 1, height)[:, None, None]
    scene.image[:] = np.clip(top * (1 - ramp) + bottom * ramp, 0, 255)
    scene.label[: int(scene.horizon) + 2] = ID["sky"]

    def strip(left: float, right: float) -> np.ndarray:
        return scene.project([(left, 0, FAR), (right, 0, FAR), (right, 0, 1), (left, 0, 1)])

    # Each strip covers a part of the previous one: grass, then the pavements, then the road between them.
    bands = (("terrain", -200, 200, _colour(rng, (110, 120, 70), (120, 110, 85))),
             ("sidewalk", *scene.walk, _colour(rng, (150, 140, 140), (130, 130, 125))),
             ("road", *scene.road, _colour(rng, (90, 90, 95), (110, 105, 105))))
    for name, left, right, colour in bands:
        scene.fill(strip(left, right), colour)
        scene.annotate([strip(left, right)], name, careless=0)
    for x in np.linspace(*scene.road, rng.integers(3, 5))[1:-1]:
        for z in np.arange(2, 50, 6) + rng.uniform(0, 4):
            mark = [(x - .08, 0, z + 3), (x + .08, 0, z + 3), (x + .08, 0, z), (x - .08, 0, z)]
            scene.fill(scene.project(mark), np.array([205, 205, 200]))
    for _ in range(rng.integers(0, 5)):  # patches of darker asphalt, which have no class
        x, z = rng.uniform(*scene.road), rng.uniform(3, 25)
        patch = [(x - 1, 0, z + 3), (x + 1, 0, z + 3), (x + 1, 0, z), (x - 1, 0, z)]
        scene.fill(scene.project(patch), bands[2][3] - rng.uniform(5, 25))


Painter = tuple[float, int, Callable[[_Scene, float], None]]


def _facades(scene: _Scene) -> list[Painter]:
    """List the facades on both sides: buildings with windows, walls, fences and hedges, up to `FAR`."""
    rng, items = scene.rng, []
    for side, x in ((-1, scene.line[0]), (1, scene.line[1])):
        near = rng.uniform(1, 4)
        while near < FAR:
            far = near + rng.uniform(5, 16)
            kind = rng.choice(["building", "vegetation", "wall", "fence", "gap"], p=[0.6, 0.16, 0.09, 0.07, 0.08])
            if kind != "gap":
                high = {"building": rng.uniform(5, 17), "vegetation": rng.uniform(2, 7)}.get(kind, rng.uniform(1, 2.4))
                items.append((near, len(items), _row(kind, side, x, min(far, FAR), high)))
            near = far
    return items


def _row(kind: str, side: int, x: float, far: float, high: float) -> Callable[[_Scene, float], None]:
    palette = {"building": ((165, 140, 115), (190, 175, 150), (130, 95, 80), (120, 125, 135), (200, 190, 180)),
               "vegetation": ((60, 95, 45), (85, 115, 55)), "wall": ((140, 130, 120),), "fence": ((95, 90, 85),)}

    def paint(scene: _Scene, near: float) -> None:
        rng = scene.rng
        colour = _colour(rng, *palette[kind])
        side_face = scene.project([(x, 0, near), (x, high, near), (x, high, far), (x, 0, far)])
        back = x + side * 12
        front_face = scene.project([(x, 0, near), (x, high, near), (back, high, near), (back, 0, near)])
        if kind == "vegetation":
            side_face, front_face = _roughen(rng, side_face), _roughen(rng, front_face)
        marks = []
        if kind == "building":
            pitch, storey = rng.uniform(1.8, 3.2), rng.uniform(2.6, 3.4)
            pane = _colour(rng, (60, 70, 85), (90, 100, 115))
            for z in np.arange(near + .6, min(far, 45) - 1.2, pitch):
                for y in np.arange(0.9, high - 1.6, storey):
                    window = [(x, y, z), (x, y + 1.5, z), (x, y + 1.5, z + 1.1), (x, y, z + 1.1)]
                    marks.append((scene.project(window), pane))
        if kind == "fence":
            for z in np.arange(near, min(far, 30), 1.0):
                marks.append((scene.project([(x, 0, z), (x, high, z), (x, high, z + .2), (x, 0, z + .2)]), colour - 35))
        scene.draw_object(kind, [(front_face, colour * 0.8), (side_face, colour)], tuple(marks))

    return paint


def _roughen(rng: np.random.Generator, outline: np.ndarray) -> np.ndarray:
    """Make an outline uneven, in proportion to its height."""
    points = np.concatenate([np.linspace(a, b, 6, endpoint=False)
                             for a, b in zip(outline, np.roll(outline, -1, axis=0), strict=True)])
    return points + rng.normal(0, 0.03 * np.ptp(outline[:, 1]) + 0.3, points.shape)


def _objects(scene: _Scene) -> list[Painter]:
    """List the objects that stand or move in the street, each at a random depth."""
    rng, items = scene.rng, []

    def place(count: int, x: Callable[[], float], paint: Callable, near: float = 4, far: float = 45) -> None:
        for _ in range(count):
            depth = float(np.exp(rng.uniform(np.log(near), np.log(far))))
            items.append((depth, 1000 + len(items), paint(x())))

    def kerb() -> float:
        return float(rng.choice([scene.road[0] - 0.4, scene.road[1] + 0.4]))

    def pavement() -> float:
        side = rng.integers(2)
        return float(rng.uniform(*sorted((scene.road[side], scene.walk[side]))))

    def lane() -> float:
        return float(rng.uniform(scene.road[0] + 1, scene.road[1] - 1))

    def parked() -> float:
        return float(rng.choice([scene.road[0] + 1, scene.road[1] - 1]))

    def verge() -> float:
        return float(rng.choice([scene.walk[0] - 0.5, scene.walk[1] + 0.5]))

    place(rng.poisson(3), kerb, _post)
    place(rng.poisson(2), verge, _tree, near=6)
    place(rng.poisson(3), parked, lambda x: _vehicle(x, "car"))
    place(rng.poisson(1.5), lane, lambda x: _vehicle(x, "car"), near=8)
    place(rng.poisson(0.5), lane, lambda x: _vehicle(x, "truck"), near=9)
    place(rng.poisson(0.4), lane, lambda x: _vehicle(x, "bus"), near=9)
    place(rng.poisson(0.2), lane, lambda x: _vehicle(x, "train"), near=12)
    place(rng.poisson(4), pavement, _person)
    place(rng.poisson(0.6), lane, lambda x: _cycle(x, "bicycle", rider=True))
    place(rng.poisson(0.8), pavement, lambda x: _cycle(x, "bicycle", rider=False))
    place(rng.poisson(0.5), lane, lambda x: _cycle(x, "motorcycle", rider=True))
    place(rng.poisson(0.5), kerb, lambda x: _cycle(x, "motorcycle", rider=False))
    return items


def _upright(scene: _Scene, x: float, depth: float, points: list[tuple[float, float]]) -> np.ndarray:
    """Project an outline in metres, relative to the foot point (x, 0, depth), to image points (N, 2)."""
    return scene.project([(x + dx, y, depth) for dx, y in points])


def _box(left: float, right: float, low: float, high: float) -> list[tuple[float, float]]:
    return [(left, low), (left, high), (right, high), (right, low)]


def _ellipse(x: float, y: float, rx: float, ry: float, corners: int = 10) -> list[tuple[float, float]]:
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return [(x + rx * np.cos(a), y + ry * np.sin(a)) for a in angles]


def _post(x: float) -> Callable[[_Scene, float], None]:
    def paint(scene: _Scene, depth: float) -> None:
        rng, high = scene.rng, scene.rng.uniform(2.6, 6)
        kind = rng.choice(["lamp", "light", "sign", "bare"], p=[0.3, 0.25, 0.35, 0.1])
        pole = [(_upright(scene, x, depth, _box(-.09, .09, 0, high)), _colour(rng, (100, 100, 100), (60, 65, 60)))]
        if kind == "lamp":
            arm = -np.sign(x) * rng.uniform(0.8, 1.6)
            pole.append((_upright(scene, x, depth, _box(min(0, arm), max(0, arm), high - .15, high)), pole[0][1]))
        scene.draw_object("pole", pole)
        if kind == "light":
            body = _upright(scene, x, depth, _box(-.22, .22, high - 1, high))
            lit = rng.integers(3)
            lamp = _upright(scene, x, depth, _ellipse(0, high - .2 - .3 * lit, .12, .12, 6))
            scene.draw_object("traffic light", [(body, np.array([35, 35, 35]))],
                        ((lamp, np.array([(220, 40, 30), (230, 180, 40), (50, 200, 90)][lit])),))
        elif kind == "sign":
            corners = int(rng.choice([3, 4, 8, 12]))
            plate = _upright(scene, x, depth, _ellipse(0, high - .4, .45, .45, corners))
            scene.draw_object("traffic sign", [(plate, _colour(rng, (200, 40, 40), (40, 70, 180), (220, 200, 60)))])

    return paint


def _tree(x: float) -> Callable[[_Scene, float], None]:
    def paint(scene: _Scene, depth: float) -> None:
        rng, high, wide = scene.rng, scene.rng.uniform(3.5, 8), scene.rng.uniform(1.2, 2.6)
        green = _colour(rng, (55, 95, 40), (90, 120, 60), (120, 110, 50))
        trunk = _upright(scene, x, depth, _box(-.15, .15, 0, high - wide))
        crown = _roughen(rng, _upright(scene, x, depth, _ellipse(0, high - wide, wide, wide, 8)))
        spots = tuple((_upright(scene, x + rng.normal(0, wide / 3), depth,
                                _ellipse(0, high - wide + rng.normal(0, wide / 3), .5, .4, 6)), green * 0.75)
                      for _ in range(5))
        scene.draw_object("vegetation", [(trunk, np.array([80, 65, 50])), (crown, green)], spots)

    return paint


def _vehicle(x: float, kind: str) -> Callable[[_Scene, float], None]:
    wide, high, long = {"car": (1.8, 1.45, 4.2), "truck": (2.4, 3.2, 7), "bus": (2.5, 3.0, 11),
                        "train": (2.6, 3.4, 18)}[kind]

    def paint(scene: _Scene, depth: float) -> None:
        rng, tall = scene.rng, high * scene.rng.uniform(0.9, 1.1)
        palette = {"car": ((180, 30, 30), (40, 60, 130), (200, 200, 205), (40, 40, 45), (110, 115, 120)),
                   "truck": ((210, 205, 195), (60, 90, 140)), "bus": ((200, 160, 40), (190, 40, 40)),
                   "train": ((190, 190, 60), (60, 130, 110))}[kind]
        colour = _colour(rng, *palette)
        shoulder = tall * (0.58 if kind == "car" else 1.0)
        edge = -np.sign(x) * wide / 2  # the side that the camera sees
        flank = [(x + edge, .25, depth), (x + edge, shoulder, depth), (x + edge, shoulder, depth + long),
                 (x + edge, .25, depth + long)]
        parts = [(scene.project(flank), colour * 0.8),
                 (_upright(scene, x, depth, _box(-wide / 2, wide / 2, .25, shoulder)), colour)]
        dark = np.array([45, 50, 60])
        if kind == "car":
            cabin = [(-.42 * wide, shoulder), (-.34 * wide, tall), (.34 * wide, tall), (.42 * wide, shoulder)]
            parts.append((_upright(scene, x, depth + .8, cabin), colour * 0.9))
        glass = _upright(scene, x, depth, _box(-wide * .32, wide * .32, tall * .64, tall * .9))
        lamps = [_upright(scene, x, depth, _box(s * wide * .38 - .12, s * wide * .38 + .12, .55, .75)) for s in (-1, 1)]
        tyres = [_upright(scene, x, depth, _box(s * wide * .36 - .12, s * wide * .36 + .12, 0, .35)) for s in (-1, 1)]
        parts += [(tyre, np.array([25, 25, 28])) for tyre in tyres]
        scene.draw_object(kind, parts, ((glass, dark), *((lamp, np.array([215, 60, 45])) for lamp in lamps)))

    return paint


def _body(scene: _Scene, x: float, depth: float, foot: float, tall: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return legs, trunk and head of a person of height `tall`; the feet are `foot` metres above the ground."""
    rng = scene.rng
    stride, hip, neck = rng.uniform(.05, .3), foot + tall * .48, foot + tall * .85
    legs = [(-stride, foot), (-.16, hip), (.16, hip), (stride, foot), (0, hip - .15)]
    trunk = [(-.2, hip), (-.26, neck - .1), (-.08, neck), (.08, neck), (.26, neck - .1), (.2, hip)]
    cloth = _colour(rng, (60, 60, 75), (150, 60, 60), (70, 100, 140), (190, 180, 160), spread=25)
    return [(_upright(scene, x, depth, legs), _colour(rng, (45, 45, 60), (90, 80, 70))),
            (_upright(scene, x, depth, trunk), cloth),
            (_upright(scene, x, depth, _ellipse(0, foot + tall * .92, .13, .15, 8)), _colour(rng, (190, 150, 125)))]


def _person(x: float) -> Callable[[_Scene, float], None]:
    def paint(scene: _Scene, depth: float) -> None:
        scene.draw_object("person", _body(scene, x, depth, 0, scene.rng.uniform(1.5, 1.9)))

    return paint


def _cycle(x: float, kind: str, rider: bool) -> Callable[[_Scene, float], None]:
    def paint(scene: _Scene, depth: float) -> None:
        rng = scene.rng
        wheel, gap = (.33, .55) if kind == "bicycle" else (.31, .65)
        gap *= rng.uniform(.5, 1)
        dark = _colour(rng, (40, 40, 45), (90, 40, 40))
        frame = _box(-gap, gap, .35, .6 if kind == "bicycle" else .9)
        parts = [(_upright(scene, x, depth, _ellipse(s * gap, wheel, wheel * .8, wheel, 8)), np.array([30, 30, 32]))
                 for s in (-1, 1)] + [(_upright(scene, x, depth, frame), dark)]
        if rider:
            scene.draw_object("rider", _body(scene, x, depth, .35, scene.rng.uniform(1.4, 1.6)))
        scene.draw_object(kind, parts)

    return paint


def _bonnet(scene: _Scene) -> None:
    """Draw the bonnet of the camera's car at the lower edge of the image; its label is void."""
    (height, width), rise = scene.size, scene.rng.uniform(0.02, 0.07)
    outline = np.array([(0.1, 1.01), (0.25, 1 - rise), (0.75, 1 - rise), (0.9, 1.01)]) * (width, height)
    scene.fill(outline, _colour(scene.rng, (50, 50, 55), (100, 100, 110)))
    cv2.fillPoly(scene.label, [np.round(outline).astype(np.int32)], VOID)


def _photograph(scene: _Scene) -> tuple[np.ndarray, np.ndarray]:
    """Apply light, weather, lens and sensor noise to the image. The lens distortion also applies to the label."""
    rng, domain, (height, width) = scene.rng, scene.domain, scene.size
    image, label = scene.image.astype(np.float32), scene.label
    coarse = rng.normal(1, 0.08, (4, 8)).astype(np.float32)
    image *= cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
    fine = rng.normal(0, 6, (height // 2, width // 2)).astype(np.float32)
    image += cv2.resize(fine, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    image *= np.float32(rng.uniform(*domain.light)) * np.array(domain.tint, np.float32)
    for _ in range(domain.rain):
        x, y, length = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(4, 12)
        cv2.line(image, (int(x), int(y)), (int(x - length / 4), int(y + length)), (120, 125, 135), 1, cv2.LINE_AA)
    image = cv2.GaussianBlur(image, (0, 0), domain.blur)
    if domain.barrel:
        image, label = _barrel(image, label, domain.barrel)
    image += rng.normal(0, domain.noise, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), label


def _barrel(image: np.ndarray, label: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    height, width = label.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    u, v = (x - width / 2) / (width / 2), (y - height / 2) / (width / 2)
    factor = (1 + strength * (u * u + v * v)) / (1 + strength)
    x, y = u * factor * width / 2 + width / 2, v * factor * width / 2 + height / 2
    moved = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return moved, cv2.remap(label, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=VOID)


def decode(raw: np.ndarray, path: Path) -> np.ndarray:
    """Return the label unchanged: labels are written as train ids."""
    return raw


# Domain, first index and number of images of each part. The indices are consecutive: no image was selected.
PARTS = {"victim_in": ("clear", 0, 160), "victim_out": ("clear", 1000, 120), "shadow": ("clear", 2000, 320),
         "rain_in": ("rain", 0, 160), "rain_out": ("rain", 1000, 160),
         "wide_in": ("wide", 0, 160), "wide_out": ("wide", 1000, 160),
         "exact_in": ("exact", 0, 160), "exact_out": ("exact", 1000, 120),
         "careless_in": ("careless", 0, 160), "careless_out": ("careless", 1000, 120)}


def splits(root: Path, seed: int = 0) -> dict[str, list[Pair]]:
    """Return the parts of `PARTS`. Images that do not exist below `root` are drawn and written there."""
    parts = {}
    for part, (domain, first, count) in PARTS.items():
        parts[part] = [_write_pair(root, domain, index, seed) for index in range(first, first + count)]
    return parts


def _write_pair(root: Path, domain: str, index: int, seed: int) -> Pair:
    folder = domain if seed == 0 else f"{domain}-{seed}"
    image, label = f"{folder}/img/{index:05d}.png", f"{folder}/label/{index:05d}.png"
    if not (root / label).exists():
        for path, array in zip((image, label), draw(index, domain, seed), strict=True):
            with atomic_open(root / path) as file:
                Image.fromarray(array).save(file, "PNG")
    return Pair(image, label, image, root)
