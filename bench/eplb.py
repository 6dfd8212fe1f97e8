"""DeepSeek's published Expert Parallelism Load Balancer, in its global form, as the peer to compare with.

Written from its description (github.com/deepseek-ai/EPLB, README): spare slots go one by one to the expert whose copies
bear most load; the copies are then packed heaviest first, each to the least loaded device that has a slot left, every
device having equally many. Several copies of an expert may share a device.

Dimensions: L layers, E experts of a layer, D devices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def eplb(load_LE: Floats, slots: int, devices: int) -> Ints:
    """How many copies of each expert each device has [L, E, D]. Raises ValueError for slots that do not fit evenly."""
    if slots % devices or slots < load_LE.shape[1]:
        raise ValueError(f"{slots} slots are not equally many on {devices} devices, at least one for each expert")
    return np.stack([_pack(load_E, _replicate(load_E, slots), devices) for load_E in load_LE])


def _replicate(load_E: Floats, slots: int) -> Ints:
    copies_E = np.ones(len(load_E), dtype=np.int64)
    for _ in range(slots - len(load_E)):
        copies_E[np.argmax(load_E / copies_E)] += 1
    return copies_E


def _pack(load_E: Floats, copies_E: Ints, devices: int) -> Ints:
    room_D = np.full(devices, copies_E.sum() // devices)
    busy_D = np.zeros(devices)
    placed_ED = np.zeros((len(load_E), devices), dtype=np.int64)
    share_E = load_E / copies_E
    for expert in np.repeat(np.argsort(-share_E, kind="stable"), copies_E[np.argsort(-share_E, kind="stable")]):
        device = np.argmin(np.where(room_D > 0, busy_D, np.inf))
        placed_ED[expert, device] += 1
        busy_D[device] += share_E[expert]
        room_D[device] -= 1
    return placed_ED
