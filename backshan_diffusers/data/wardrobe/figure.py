"""The body in person coordinates: x towards the person's left, y down, the figure's height is 1 (crown to sole)."""

import math
from dataclasses import dataclass, field
from itertools import pairwise

from .outfit import Person

Point = tuple[float, float]

CROWN, NECK, SHOULDER, ARMPIT, WAIST, HIP, CROTCH = 0.03, 0.182, 0.214, 0.285, 0.385, 0.485, 0.525
KNEE, ANKLE, SOLE = 0.735, 0.94, 0.985


@dataclass
class Limb:
    """A centre line and its radii; `part` cuts off a share of it."""

    path: list[Point]
    radii: list[float]
    _parts: dict = field(default_factory=dict, repr=False)  # both views ask for the same ones

    def part(self, begin: float, end: float, ease: float = 0.0) -> "Limb":
        """The limb between two shares (0 to 1) of its length, `ease` wider."""
        key = (begin, end, ease)
        if key not in self._parts:
            self._parts[key] = self._cut(begin, end, ease)
        return self._parts[key]

    def _cut(self, begin: float, end: float, ease: float) -> "Limb":
        lengths = [math.dist(a, b) for a, b in pairwise(self.path)]
        total = sum(lengths)
        marks = [sum(lengths[:i]) / total for i in range(len(self.path))]
        shares = [begin, *(mark for mark in marks if begin + 0.03 < mark < end - 0.03), end]
        placed = [self._at(marks, share) for share in shares]
        return Limb([point for point, _ in placed], [radius + ease for _, radius in placed])

    def _at(self, marks: list[float], share: float) -> tuple[Point, float]:
        for i in range(len(marks) - 1):
            if share <= marks[i + 1] or i == len(marks) - 2:
                t = (share - marks[i]) / (marks[i + 1] - marks[i])
                (x0, y0), (x1, y1) = self.path[i], self.path[i + 1]
                return (x0 + t * (x1 - x0), y0 + t * (y1 - y0)), self.radii[i] + t * (
                    self.radii[i + 1] - self.radii[i]
                )
        raise AssertionError("a limb has at least two points")

    def outline(self, round_start: bool = False) -> list[Point]:
        """The polygon around the limb; its start is flat (doubled corners) or round, its end is flat."""
        left, right = [], []
        directions = []
        for i in range(len(self.path)):
            (x0, y0), (x1, y1) = self.path[max(0, i - 1)], self.path[min(len(self.path) - 1, i + 1)]
            norm = math.hypot(x1 - x0, y1 - y0)
            directions.append(((x1 - x0) / norm, (y1 - y0) / norm))
        for (x, y), (dx, dy), radius in zip(self.path, directions, self.radii, strict=True):
            left.append((x + dy * radius, y - dx * radius))
            right.append((x - dy * radius, y + dx * radius))
        start = [left[0], left[0], right[0], right[0]]
        if round_start:
            start[1:3] = self._beyond_start(directions[0], left[0], right[0])
        return [*start, *right[1:-1], right[-1], right[-1], left[-1], left[-1], *left[-2:0:-1]]

    def _beyond_start(self, direction: Point, *ends: Point) -> list[Point]:
        """The corners at the start, moved out for a cap that the spline rounds."""
        reach = -0.75 * self.radii[0]
        return [(x + direction[0] * reach, y + direction[1] * reach) for x, y in ends]


@dataclass
class Figure:
    """Measures of one person. Sides: +1 is the person's left."""

    person: Person
    shoulder: float = field(init=False)
    chest: float = field(init=False)
    waist: float = field(init=False)
    hip: float = field(init=False)
    neck: float = field(init=False)
    head: tuple[float, float, float, float] = field(init=False)  # centre x, y, half width, half height

    def __post_init__(self) -> None:
        person, wide = self.person, self.person.width
        softer = 0.6 + 0.4 * wide  # shoulders grow less than the waist does
        base = (0.112, 0.092, 0.082, 0.086) if person.masculine else (0.097, 0.08, 0.064, 0.092)
        self.shoulder, self.chest = base[0] * softer, base[1] * wide
        self.waist, self.hip = base[2] * wide, base[3] * wide
        self.neck = (0.031 if person.masculine else 0.025) * softer
        self.head = (person.head_tilt, 0.098, (0.05 if person.masculine else 0.047) * (0.8 + 0.2 * wide), 0.067)
        self._arms = {side: self._shape_arm(side) for side in (-1, 1)}
        self._legs = {side: self._shape_leg(side) for side in (-1, 1)}

    def body_at(self, y: float) -> float:
        """Half width of the trunk at a height."""
        marks = ((ARMPIT, self.chest), (WAIST, self.waist), (HIP, self.hip), (0.6, self.hip * 0.97))
        if y <= ARMPIT:
            return self.chest
        for (y0, w0), (y1, w1) in pairwise(marks):
            if y <= y1:
                return w0 + (w1 - w0) * (y - y0) / (y1 - y0)
        return marks[-1][1]

    def arm(self, side: int) -> Limb:
        """Shoulder to wrist."""
        return self._arms[side]

    def leg(self, side: int) -> Limb:
        """Hip to ankle."""
        return self._legs[side]

    def _shape_arm(self, side: int) -> Limb:
        upper, fore = self.person.arms[(side + 1) // 2]
        start = (side * (self.shoulder - 0.027), SHOULDER + 0.027)
        elbow = (start[0] + side * 0.16 * math.sin(upper), start[1] + 0.16 * math.cos(upper))
        wrist = (elbow[0] + side * 0.145 * math.sin(fore), elbow[1] + 0.145 * math.cos(fore))
        thick = (0.029 if self.person.masculine else 0.0235) * (0.5 + 0.5 * self.person.width)
        middle = tuple((a + b) / 2 for a, b in zip(start, elbow, strict=True))
        forearm = tuple(a * 0.65 + b * 0.35 for a, b in zip(elbow, wrist, strict=True))
        return Limb(
            [start, middle, elbow, forearm, wrist], [thick * 0.92, thick, thick * 0.84, thick * 0.84, thick * 0.6]
        )

    def hand(self, side: int) -> list[Point]:
        """Outline of the hand, thumb towards the body; the fourth point is the finger tip."""
        arm = self.arm(side)
        (x0, y0), (x1, y1) = arm.path[-2], arm.path[-1]
        norm = math.hypot(x1 - x0, y1 - y0)
        dx, dy = (x1 - x0) / norm, (y1 - y0) / norm
        wrist = arm.radii[-1]

        def at(along: float, out: float) -> Point:
            return x1 + dx * along + side * dy * out, y1 + dy * along - side * dx * out

        fingers = [
            at(-0.012, wrist),
            at(0.02, wrist * 1.3),
            at(0.05, wrist),
            at(0.07, wrist * 0.2),
            at(0.06, -wrist * 0.8),
        ]
        thumb = [at(0.03, -wrist * 0.9), at(0.044, -wrist * 1.6), at(0.036, -wrist * 2.0), at(0.014, -wrist * 1.6)]
        return [*fingers, *thumb, at(-0.012, -wrist)]

    def _shape_leg(self, side: int) -> Limb:
        out = self.person.legs[(side + 1) // 2]
        wide = 0.45 + 0.55 * self.person.width
        hip = (side * self.hip * 0.5, HIP)
        ankle = (side * (self.hip * 0.42 + out), ANKLE)
        knee = ((hip[0] + ankle[0]) / 2 + side * 0.004, KNEE)
        thigh = ((hip[0] + knee[0]) / 2 + side * 0.003, 0.6)
        calf = (knee[0] * 0.6 + ankle[0] * 0.4 + side * 0.003, 0.81)
        scale = wide * (1.06 if self.person.masculine else 1.0)
        radii = [self.hip * 0.5, 0.043 * scale, 0.031 * scale, 0.031 * scale, 0.018 * scale]
        return Limb([hip, thigh, knee, calf, ankle], radii)
