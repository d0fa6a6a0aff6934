"""A modality ``signal`` (arrays of 5 steps and 3 channels), declared in one record, for the tests of extension.

As a program, it runs a ``ccaco`` command with the record in the table:

    python -m tests.signal_modality train --dataset FOLDER --signal-tower toy
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.modalities import MODALITIES, Modality

STEPS, CHANNELS, WIDTH = 5, 3, 8


def signal_bytes(seed: int) -> bytes:
    out = io.BytesIO()
    np.save(out, np.random.default_rng(seed).standard_normal((STEPS, CHANNELS)).astype(np.float32))
    return out.getvalue()


def decode(data: bytes) -> np.ndarray[Any, Any]:
    try:
        array: np.ndarray[Any, Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError:
        raise DataError("not a signal") from None
    return array


def check(data: bytes, rules: Any) -> tuple[bytes, dict[str, float], dict[str, Any]]:
    return data, {"steps": float(len(decode(data)))}, {}


def picture(data: bytes, side: int) -> Image.Image:
    return Image.fromarray((decode(data) * 50 + 128).clip(0, 255).astype(np.uint8))


class SignalTower(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(CHANNELS, WIDTH)

    def forward(self, inputs: dict[str, torch.Tensor]) -> Any:
        from ccaco_cli.core.types import Features

        tokens = self.linear(inputs["signal"])
        return Features(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), tokens.mean(1))


def build_tower(spec: Any, config: Any) -> Any:
    from ccaco_cli.core.model.towers.tower import Tower

    return Tower(
        spec,
        "signal",
        SignalTower(),
        torch.from_numpy,
        width=WIDTH,
        tokens=STEPS,
        grid=None,
        pretrained=False,
        fingerprint="toy",
        save_assets=lambda folder: "toy",
    )


SIGNAL = Modality(
    "signal",
    "array",
    check=check,
    decode=decode,
    collate=lambda samples: {"signal": torch.stack(list(samples))},
    picture=picture,
    tower_families={"toy": build_tower},
    specs="toy",
    probe_samples=lambda: [decode(signal_bytes(0)), decode(signal_bytes(1))],
    folder="signal",
)

if __name__ == "__main__":
    MODALITIES["signal"] = SIGNAL  # before the config classes are made, as an entry in the source would be
    from ccaco_cli.__main__ import main

    main()
