"""One entry for each modality: how its files are read, checked, batched, encoded and shown.

To add a modality, add one ``Modality`` to ``MODALITIES``; its settings ``model.NAME`` follow from it. Captions are the
samples of the modality ``text``: they are stored as strings, and ``loader.TextColumn`` batches them.

Functions are named by their modules and imported at the first call, so that this module costs nothing to import.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ccaco_cli.core.manifest import Manifest

Function = Callable[..., Any]


def lazy(path: str, **fixed: Any) -> Function:
    """A function that imports ``module:function`` when it is first called, with some arguments ``fixed`` by name."""
    module, _, name = path.partition(":")

    def call(*arguments: Any, **options: Any) -> Any:
        return getattr(import_module(f"ccaco_cli.core.{module}"), name)(*arguments, **fixed, **options)

    return call


def _not_stored(*_: Any) -> Any:
    raise NotImplementedError("captions are no media")


def blank_separated(text: str) -> tuple[str, ...]:
    """The words of a text, between blanks."""
    return tuple(text.split())


def sides_of(model: Manifest) -> tuple[str, ...]:
    """The modalities that a model encodes: its pair, then the further sides of the run that it continued.

    Args:
        model: manifest of a run, of a pretrained model or of an index.
    """
    return (*model.facts["modalities"], *blank_separated(model.config.get("model", {}).get("further_sides", "")))


def keep_bytes(data: bytes, rules: Any) -> tuple[bytes, dict[str, float], dict[str, Any]]:
    """The check of a modality without a decoder: the bytes stay as they are."""
    return data, {}, {}


def no_facts(data: bytes) -> dict[str, Any]:
    """The facts of a modality whose files say nothing of themselves."""
    return {}


def no_settings(data: Any, modality: str) -> dict[str, Any]:
    """The settings of a tower that does not depend on the data set."""
    return {}


@dataclass(frozen=True)
class Modality:
    """Everything that the program knows of one modality.

    Attributes:
        name: key in data sets, model settings and results.
        kind: ``text``: captions. ``still``: one array of fixed shape per sample; small images are cached decoded.
            ``clip``: samples of different length, which is their first axis (time of clips); they are cached decoded.
            ``array``: decoded at each use.
        suffixes: file name endings that the decoder reads, lower case, with the dot.
        unreadable_suffixes: endings of files of this modality that no decoder reads: such a file in a folder of samples
            is a reject, where a file of another ending is only counted.
        check: (bytes, ``checks.Rules``) -> (bytes to store, measures, facts for ``meta``); raises DataError.
        uniform: names of measures that are the same in all samples of a data set; a sample that differs from the first
            is rejected.
        facts: bytes -> width, date, camera, duration ... (``media_facts``); None where a fact is not known.
        decode: bytes -> what ``Tower.preprocess`` takes.
        decode_scaled: (bytes, shortest side in pixels) -> the same at a size that is still large enough; None = cannot.
        collate: list of preprocessed samples -> dict of tensors, what ``Tower.module`` takes.
        picture: (bytes, pixels) -> PIL image that shows the sample to people; None = cannot be shown.
        measure: (``PreparedData``, name) -> settings of the tower that follow from the split ``train``, such as the
            width of its inputs; the user's settings and those of a run that is continued override them.
        from_values: lists of numbers, as a column of a table holds them -> bytes as ``check`` takes them; raises
            DataError; None = samples are no such lists.
        convert: a sample as Python users have it -> what ``encode_samples`` takes; raises DataError.
        sample_axes: the most axes of a NumPy array that is one sample, and no list of samples.
        keyword: argument of ``Model.encode`` and ``Model.search`` that takes such samples.
        tower_families: family -> builder (``TowerSpec``, ``TowerConfig``) -> ``Tower``.
        specs: SPECs of its towers, for the help of ``--NAME-tower``.
        probe_samples: () -> a short and a longer decoded sample, on which every tower is checked when it is built; None
            = towers of this modality are not checked, unless they bring samples (``Tower.probe_samples``).
        folder: start of the names of clip-retrieval's folders and files (``img_emb``).
        query: how ``ccaco retrieve`` takes a query of this modality.
        query_help: help of the option ``--NAME FILE`` of ``ccaco retrieve``; empty = no such option.
        folder_option: option of ``ccaco embed`` that takes a folder of such files, without the dashes; empty = none.
        preprocessed_is_picture: what ``Tower.preprocess`` returns can be drawn under an attention map.
        picture_is_sample: ``picture`` gives what ``decode`` would, so that a stored thumbnail can be encoded again.
    """

    name: str
    kind: Literal["text", "still", "clip", "array"]
    suffixes: tuple[str, ...] = ()
    unreadable_suffixes: tuple[str, ...] = ()
    check: Function = keep_bytes
    uniform: tuple[str, ...] = ()
    facts: Function = no_facts
    decode: Function = _not_stored
    decode_scaled: Function | None = None
    collate: Function = field(default=lazy("data.loader:stack"))
    picture: Function | None = None
    measure: Function = no_settings
    from_values: Function | None = None
    convert: Function = _not_stored
    sample_axes: int = 3
    keyword: str = ""
    tower_families: Mapping[str, Function] = field(default_factory=dict)
    specs: str = "tiny, or family:name[@weights]"
    probe_samples: Function | None = None
    folder: str = ""
    query: str = ""
    query_help: str = ""
    folder_option: str = ""
    preprocessed_is_picture: bool = False
    picture_is_sample: bool = False


def _arrays(name: str, **differing: Any) -> Modality:
    """A modality of arrays of numbers; a pair of arrays needs two of them."""
    return Modality(
        name,
        "clip",
        check=lazy("data.arrays:check", modality=name),
        uniform=(f"{name}_columns",),
        decode=lazy("data.arrays:decode"),
        collate=lazy("data.loader:pad"),
        picture=lazy("data.arrays:picture"),
        measure=lazy("data.arrays:measure"),
        from_values=lazy("data.arrays:from_values"),
        convert=lazy("encoding.conversion:as_array"),
        sample_axes=2,
        tower_families={
            "tiny": lazy("model.towers.array:build", modality=name),
            "array": lazy("model.towers.array:build", modality=name),
        },
        specs="tiny (mlp for vectors, else set), array:mlp, array:set or array:sequence",
        folder=name,
        query=f"--{name} FILE",
        **differing,
    )


MODALITIES: dict[str, Modality] = {
    modality.name: modality
    for modality in (
        Modality(
            "image",
            "still",
            suffixes=blank_separated(
                """
                .jpg .jpeg .jpe .jfif .mpo .png .apng .webp .gif .bmp .tif .tiff .ppm .pgm .pbm .pnm .pfm
                .avif .avifs
                """
            ),
            unreadable_suffixes=blank_separated(
                """
                .heic .heif .jxl .dib .jp2 .j2k .jpx .psd .svg .eps .ico .icns .tga .dds .exr .hdr .pcx .sgi .xbm .xpm
                .qoi .wmf .emf .raw .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf
                """
            ),
            check=lazy("data.checks:check_image"),
            facts=lazy("data.media_facts:image_facts"),
            decode=lazy("data.checks:decode_image"),
            decode_scaled=lazy("data.checks:decode_image"),
            picture=lazy("data.checks:decode_image"),
            convert=lazy("encoding.conversion:as_image"),
            keyword="images",
            tower_families={
                "tiny": lazy("model.towers.tiny:build_image"),
                "open_clip": lazy("model.towers.open_clip:build_image"),
                "torchvision": lazy("model.towers.torchvision_timm:build_torchvision"),
                "timm": lazy("model.towers.torchvision_timm:build_timm"),
                "hf": lazy("model.towers.hf_image:build_image"),
            },
            probe_samples=lazy("model.towers.probing:images"),
            folder="img",
            query="--image FILE",
            query_help="An image file as the query.",
            folder_option="images",
            preprocessed_is_picture=True,
            picture_is_sample=True,
        ),
        Modality(
            "text",
            "text",
            convert=lazy("encoding.conversion:as_text"),
            keyword="texts",
            tower_families={
                "tiny": lazy("model.towers.tiny:build_text"),
                "open_clip": lazy("model.towers.open_clip_text:build_text"),
                "hf": lazy("model.towers.hf:build_text"),
            },
            probe_samples=lazy("model.towers.probing:captions"),
            folder="text",
            query='"a few words"',
        ),
        Modality(
            "audio",
            "clip",
            suffixes=blank_separated(
                """
                .wav .w64 .ogg .oga .opus .spx .mp3 .mp2 .m2a .mpa .flac .m4a .m4b .aac .ac3 .aif .aiff .aifc .afc .au
                .caf .amr .mka .wma
                """
            ),
            unreadable_suffixes=blank_separated(".mid .midi .wv .ape .dsf .ra .mpc .tta .aa .aax .voc .gsm .sph"),
            check=lazy("data.checks:check_audio"),
            facts=lazy("data.media_facts:audio_facts"),
            decode=lazy("data.clips:Clip"),
            collate=lazy("data.loader:pad"),
            picture=lazy("data.clips:waveform_picture"),
            convert=lazy("encoding.conversion:as_audio"),
            keyword="audio",
            tower_families={
                "tiny": lazy("model.towers.audio:build_tiny"),
                "hf": lazy("model.towers.audio:build_hf"),
            },
            specs="tiny, or hf:name[@weights]",
            probe_samples=lazy("model.towers.probing:recordings"),
            folder="audio",
            query="--audio FILE",
            query_help="A sound file as the query (of a video file, its sound track).",
            folder_option="sounds",
            preprocessed_is_picture=True,
        ),
        Modality(
            "video",
            "clip",
            suffixes=blank_separated(
                """
                .mp4 .mkv .mk3d .webm .avi .mov .m4v .3gp .3g2 .mj2 .f4v .flv .wmv .asf .mpg .mpeg .vob .ts .m2t .m2ts
                .mts .ogv .264 .h264 .h26l .avc
                """
            ),
            unreadable_suffixes=blank_separated(".rm .rmvb .swf .mxf .dv .yuv .y4m"),
            check=lazy("data.checks:check_video"),
            facts=lazy("data.media_facts:video_facts"),
            decode=lazy("data.clips:Clip"),
            collate=lazy("data.loader:pad"),
            picture=lazy("data.clips:middle_frame"),
            convert=lazy("encoding.conversion:as_video"),
            keyword="video",
            tower_families={
                "tiny": lazy("model.towers.video:build_tiny"),
                "frames": lazy("model.towers.video:build_frames"),
                "hf": lazy("model.towers.video:build_hf"),
            },
            specs="tiny, hf:name[@weights], or frames:IMAGE-TOWER",
            probe_samples=lazy("model.towers.probing:recordings"),
            folder="video",
            query="--video FILE",
            query_help="A video file as the query.",
            folder_option="videos",
        ),
        _arrays(
            "array",
            suffixes=(".npy", ".npz"),
            keyword="arrays",
            query_help="An array file (.npy, or .npz with one array) as the query.",
            folder_option="arrays",
        ),
        _arrays("array2", keyword="arrays2", query_help="An array file of the second side of a pair of arrays."),
    )
}
"""Name -> modality, in the order of the settings ``model.NAME``."""


def check_of(name: str) -> Function:
    """The check of a modality; of one that has no entry, ``keep_bytes``."""
    return MODALITIES[name].check if name in MODALITIES else keep_bytes


def uniform_of(name: str) -> tuple[str, ...]:
    """The measures that all samples of a modality share; of one that has no entry, none."""
    return MODALITIES[name].uniform if name in MODALITIES else ()


def facts_of(name: str) -> Function:
    """The reader of the facts of a modality; of one that has no entry, ``no_facts``."""
    return MODALITIES[name].facts if name in MODALITIES else no_facts


def picture_of(name: str) -> Any:
    """(bytes, pixels) -> PIL image of a modality, or None: it has no entry, or cannot be shown."""
    return MODALITIES[name].picture if name in MODALITIES else None


def folder_flags() -> str:
    """The options of ``ccaco embed`` that take a folder of media files, with commas between them."""
    return ", ".join(f"--{entry.folder_option}" for entry in MODALITIES.values() if entry.folder_option)
