"""Several systems on the same rows: what each made of each item, and how far apart they are on the whole."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict

import numpy as np
from tqdm.auto import tqdm

from .metrics import METRICS, presence, side_correct
from .statistics import mean_intervals, share_interval

System = Callable[[Sequence[dict]], list[np.ndarray]]
"""Rows of `load_pairs` in, one front for each out, `H x W x 3` uint8 of the size of the row's pictures."""


def measure(
    rows: Sequence[dict],
    systems: Mapping[str, System],
    batch_size: int,
    other_sides: Callable[[int], Mapping[str, np.ndarray]] | None = None,
    fronts_without: Callable[[int], Mapping[str, np.ndarray]] | None = None,
) -> Iterator[tuple[dict, dict[str, np.ndarray], dict]]:
    """Run every system over every row.

    Args:
        rows: of `load_pairs`.
        systems: by name.
        batch_size: rows that a system gets at once.
        other_sides: for a row's position, its front with one thing moved to the other side, by the thing's name; see
            [`side_correct`].
        fronts_without: the same with one thing left out that only the front shows; see [`presence`].

    Yields:
        The row, the front that each system made of it, and a record that JSON can hold: `item_id`, `group_id`,
        `attributes`, `systems` (for each system its value of each of `METRICS`), `sides` (for each thing that is
        visibly on one side, and each system, whether it came out on that side), and `presences` (for each thing that
        only the front shows, and each system, how strongly it is there).
    """
    with tqdm(total=len(rows), desc="items", unit="item") as bar:
        for start in range(0, len(rows), batch_size):
            batch = [rows[index] for index in range(start, min(start + batch_size, len(rows)))]
            made = {name: system(batch) for name, system in systems.items()}
            for offset, row in enumerate(batch):
                fronts = {name: pictures[offset] for name, pictures in made.items()}
                moved = other_sides(start + offset) if other_sides else {}
                without = fronts_without(start + offset) if fronts_without else {}
                yield row, fronts, _record(row, fronts, moved, without)
                bar.update()


def _record(
    row: dict,
    fronts: dict[str, np.ndarray],
    moved: Mapping[str, np.ndarray],
    without: Mapping[str, np.ndarray],
) -> dict:
    true_front = np.asarray(row["front"])

    def each_thing(altered: Mapping[str, np.ndarray], judge: Callable) -> dict[str, dict]:
        """What `judge` says of each thing and system, of the things that can be seen."""
        judged = {
            thing: {name: judge(front, true_front, other) for name, front in fronts.items()}
            for thing, other in altered.items()
        }
        return {thing: verdicts for thing, verdicts in judged.items() if None not in verdicts.values()}

    return {
        "item_id": row["item_id"],
        "group_id": row["group_id"],
        "attributes": dict(row["attributes"]),
        "systems": {
            name: {key: metric.of(front, row) for key, metric in METRICS.items()} for name, front in fronts.items()
        },
        "sides": each_thing(moved, side_correct),
        "presences": each_thing(without, presence),
    }


def summarise(records: Sequence[dict], ours: str, seed: int = 0) -> dict:
    """Means and paired differences over records of [`measure`], with 95 % intervals.

    Args:
        records: of at least two groups.
        ours: the system that the others are compared with.
        seed: seeds the bootstrap.

    Returns:
        `systems`: system -> metric -> interval; `differences`: other system -> metric -> the interval of ours minus
        other, and under `win_rate` the interval of the share of items where ours is better (equal ones count half).
        Intervals are dicts of [`Interval`]'s fields.
    """
    groups = [record["group_id"] for record in records]
    names = list(records[0]["systems"])
    values = {
        name: np.array([[record["systems"][name][key] for key in METRICS] for record in records]) for name in names
    }
    signs = np.array([metric.sign for metric in METRICS.values()])
    others = [name for name in names if name != ours]
    differences = {name: values[ours] - values[name] for name in others}
    wins = {name: (np.sign(difference) * signs + 1) / 2 for name, difference in differences.items()}

    blocks = [*values.values(), *differences.values()]
    intervals = iter(mean_intervals(np.concatenate(blocks, axis=1), groups, seed))
    table = [{key: asdict(next(intervals)) for key in METRICS} for _ in blocks]
    of_systems, of_differences = table[: len(names)], table[len(names) :]
    for name, of_difference in zip(others, of_differences):
        for column, key in enumerate(METRICS):
            of_difference[key]["win_rate"] = asdict(share_interval(wins[name][:, column], groups))
    return {"systems": dict(zip(names, of_systems)), "differences": dict(zip(others, of_differences))}


def summarise_sides(records: Sequence[dict], things: Sequence[str]) -> dict | None:
    """For each system, the share of one-sided things that came out on the correct side, as an interval's dict.

    Args:
        records: of [`measure`].
        things: which things are counted, each as often as it occurs.

    Returns:
        System -> interval, or `None` where none of the things occurs.
    """
    seen = _seen(records, "sides", things)
    if not seen:
        return None
    groups = [group for group, _ in seen]
    return {name: asdict(share_interval([verdicts[name] for _, verdicts in seen], groups)) for name in seen[0][1]}


def summarise_presences(records: Sequence[dict], things: Sequence[str], seed: int = 0) -> dict | None:
    """For each system, how strongly things that only the front shows are there, on the mean, as an interval's dict.

    Args:
        records: of [`measure`].
        things: which things are counted, each as often as it occurs.
        seed: seeds the bootstrap.

    Returns:
        System -> interval, or `None` where the things occur in fewer than two groups.
    """
    seen = _seen(records, "presences", things)
    groups = [group for group, _ in seen]
    if len({*groups}) < 2:
        return None
    names = list(seen[0][1])
    values = np.array([[strengths[name] for name in names] for _, strengths in seen])
    return dict(zip(names, map(asdict, mean_intervals(values, groups, seed))))


def _seen(records: Sequence[dict], kind: str, things: Sequence[str]) -> list[tuple[str, dict]]:
    """The group and the systems' values of each of `things`, as often as they occur."""
    return [
        (record["group_id"], record[kind][thing]) for record in records for thing in things if thing in record[kind]
    ]
