from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from ccaco_cli.core.data import clips
from ccaco_cli.core.data.clips import Clip, check, middle_frame, waveform_picture
from ccaco_cli.core.errors import DataError
from tests.recordings import film, sound, tone


def loudest(samples: Any, rate: int) -> float:
    """Hertz of the strongest frequency."""
    return float(np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples))


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "opus", "adts"])
def test_every_kind_of_sound_file(kind: str) -> None:
    rate = 48_000 if kind == "opus" else 44_100
    data = sound(tone(0.5, rate), rate, kind)
    heard = Clip(data).samples(16_000)
    assert heard.dtype == np.float32 and len(heard) == pytest.approx(8_000, abs=2_000)
    assert loudest(heard, 16_000) == pytest.approx(500, abs=5)
    assert np.abs(heard).max() == pytest.approx(0.5, abs=0.15)
    assert check("audio", data).data is data


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 37_800, 96_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_odd_rates_and_channels(rate: int, channels: int) -> None:
    data = sound(tone(0.5, rate, channels=channels), rate)
    heard = Clip(data).samples(16_000)
    assert len(heard) == pytest.approx(8_000, abs=20) and loudest(heard, 16_000) == pytest.approx(500, abs=3)
    assert check("audio", data).facts == {
        "seconds": pytest.approx(0.5, abs=0.01),
        "rate": rate,
        "channels": channels,
        "silent": False,
    }


def test_two_channels_are_mixed_not_chosen_from() -> None:
    left, right = tone(0.2, 16_000, 500), tone(0.2, 16_000, 1_250)
    spectrum = np.abs(np.fft.rfft(Clip(sound(np.concatenate([left, right]), 16_000)).samples(16_000)))
    strongest = np.sort(spectrum.argsort()[-2:]) * 16_000 / 3_200
    assert strongest == pytest.approx([500, 1_250], abs=5)
    assert check("audio", sound(np.concatenate([left, -left]), 16_000)).facts["silent"]


def test_a_sound_is_cut_but_never_filled_up() -> None:
    data = sound(tone(0.5, 16_000), 16_000)
    assert len(Clip(data).samples(16_000, 0.2)) == 3_200
    assert len(Clip(data).samples(16_000, 10.0)) == 8_000
    assert check("audio", sound(np.zeros((1, 1_600)), 16_000)).facts["silent"]


def test_samples_that_are_no_numbers() -> None:
    values = np.array([0.1, np.nan, np.inf, -0.1] * 400, "<f4").tobytes()
    header = (
        b"RIFF"
        + struct.pack("<I", 36 + len(values))
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 3, 1, 16_000, 64_000, 4, 32)
    )
    data = header + b"data" + struct.pack("<I", len(values)) + values
    assert np.isfinite(Clip(data).samples(16_000)).all()
    with pytest.raises(DataError, match="not finite"):
        check("audio", data)


def greys(data: bytes, rate: float, seconds: float = 100.0) -> list[int]:
    return [round((np.asarray(frame).mean() - 20) / 10) for frame in Clip(data).frames(rate, seconds)]


def test_frames_at_the_requested_rate() -> None:
    data = film(seconds=1.0, fps=8)
    assert greys(data, 8) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert greys(data, 4) == [0, 2, 4, 6]
    assert greys(data, 16) == [k // 2 for k in range(16)]
    assert greys(data, 3) == [0, 2, 5]
    assert greys(data, 8, 0.5) == [0, 1, 2, 3]
    assert greys(data, 0.1) == [0]
    assert next(Clip(data).frames(8)).size == (32, 32)


def lying(data: bytes) -> bytes:
    """The film with a note that says: to be seen a quarter turn clockwise."""
    matrix = data.index(b"tkhd") + 4 + 40
    return data[:matrix] + struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30) + data[matrix + 36 :]


def test_a_film_that_lies_is_turned() -> None:
    data = film(side=32, stripe=True)
    assert np.asarray(next(Clip(data).frames(8)).convert("L"))[16, 4] > 200, "bright on the left"
    turned = np.asarray(next(Clip(lying(data)).frames(8)).convert("L"))
    assert turned[4].min() > 200 and turned[28].max() < 60, "bright at the top"


def test_a_film_made_smaller_shows_the_same_at_the_same_times() -> None:
    data = film(seconds=1.0, fps=8, side=64, samples=tone(1.0, 16_000), rate=16_000)
    checked = check("video", data, 32)
    assert checked.size == (32, 32) and checked.data == check("video", data, 32).data
    assert next(Clip(checked.data).frames(8)).size == (32, 32)
    assert all(greys(checked.data, rate) == greys(data, rate) for rate in (8, 4, 16, 3))
    assert check("video", checked.data).facts == checked.facts == check("video", data).facts
    assert check("video", data, 64).data == data, "never enlarged, nor encoded for nothing"
    turned = check("video", lying(film(side=64, stripe=True)), 32).data
    frame = np.asarray(next(Clip(turned).frames(8)).convert("L"))
    assert frame[4].min() > 180 and frame[28].max() < 70, "bright at the top, once"


def test_a_film_with_sound_gives_its_sound_as_a_file_of_its_own() -> None:
    data = film(samples=tone(1.0, 44_100, channels=2), rate=44_100)
    checked = check("audio", data)
    assert len(checked.data) < len(data) and checked.data == check("audio", data).data
    assert checked.facts["channels"] == 2 and checked.facts["seconds"] == pytest.approx(1, abs=0.06)
    ours, reference = Clip(checked.data).samples(16_000), Clip(data).samples(16_000)
    assert np.abs(ours[:15_000] - reference[:15_000]).max() < 1e-3, "not moved in time"
    with pytest.raises(DataError, match="no picture track"):
        check("video", checked.data)
    sound_and_video = check("video", data)
    assert sound_and_video.data == data and sound_and_video.size == (32, 32)
    assert sound_and_video.facts == {"seconds": 1.0, "fps": 8.0, "frames": 8}


def test_a_film_without_sound() -> None:
    data = film()
    assert check("video", data).facts["frames"] == 8
    with pytest.raises(DataError, match="no sound track"):
        check("audio", data)
    with pytest.raises(DataError, match="no sound track"):
        Clip(data).samples(16_000)


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_what_is_no_recording(modality: str) -> None:
    for data in (
        b"",
        b"GIF89a",
        b"x" * 5_000,
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n",
        b"ffconcat version 1.0\nfile '/etc/hostname'\n",
    ):
        with pytest.raises(DataError, match="not a recording"):
            check(modality, data)
    with pytest.raises(DataError, match=r"not a recording|broken recording|empty"):
        check(modality, film(seconds=2, samples=tone(2, 16_000))[:1_500])


def test_a_recording_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "MAX_SECONDS", 0.4)
    data = film(samples=tone(1.0, 16_000))
    for modality in ("audio", "video"):
        with pytest.raises(DataError, match="too long"):
            check(modality, data)


def test_thumbnails() -> None:
    data = film(samples=tone(1.0, 16_000))
    assert middle_frame(data).size == (32, 32)
    waves = np.asarray(waveform_picture(data, 40).convert("L"))
    assert waves.shape == (20, 40) and waves.min() < 100 < 200 < waves.max()
    assert np.asarray(waveform_picture(sound(np.zeros((1, 1_600)), 16_000), 40)).min() > 200, "silence is a blank"
