"""Any folder of class folders: ``[SPLIT/][DOMAIN/]CLASS/*.jpg``; the caption is the class name in a template."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ccaco_cli.core.data.sources.lists import SPLIT_NAMES, hash_split
from ccaco_cli.core.data.sources.media_files import count_files, layout_error, media_below
from ccaco_cli.core.data.sources.source import Source, SourceData, SourceOptions
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.types import PairRecord

_EXPECTS = (
    "class folders of pictures: CLASS/*.jpg, or DOMAIN/CLASS/*.jpg, each under train/ val/ test/ if you have splits"
)
_TEMPLATE = "a photo of a {}"


def _read(root: Path | None, options: SourceOptions) -> SourceData:
    if root is None or not root.is_dir():
        raise layout_error("imagefolder", "no folder here", root, _EXPECTS)
    template = options.template or _TEMPLATE
    if "{}" not in template:
        raise DataError("the template has no {} for the class name", where=template, expected=f'"{_TEMPLATE}"')
    if not any(entry.is_dir() for entry in root.iterdir()):
        raise layout_error("imagefolder", "no class folder in this folder", root, _EXPECTS, folder_of_media=True)
    places = [root, *(entry for entry in root.iterdir() if entry.name.lower() in SPLIT_NAMES)]
    for name in options.unpaired:
        if not any(picture for place in places for picture in media_below(place / name, MODALITIES["image"])):
            expected = f"pictures in {root / name}, or in that folder of a split"
            raise DataError("no pictures of this domain", where=f"--unpaired-domains {name}", expected=expected)
    links_to = (options.media_root,) if options.media_root else ()
    samples, passed_over = count_files(root, MODALITIES["image"], links_to)
    if not samples:
        problem = f"no pictures in this folder (it holds {passed_over})"
        raise layout_error("imagefolder", problem, root, _EXPECTS, folder_of_media=True)
    otherwise = "all in test" if options.all_test else "80/10/10 by hash of the path"
    return SourceData(
        records=_records(root, template, options, links_to),
        protocol=f"imagefolder (split folders where there are any; else {otherwise})",
        facts={"template": template, **passed_over.facts()},
    )


def _records(root: Path, template: str, options: SourceOptions, links_to: tuple[Path, ...]) -> Iterator[PairRecord]:
    for file in media_below(root, MODALITIES["image"], links_to=links_to):
        path = file.path
        places = path.relative_to(root).parts[:-1]
        split = SPLIT_NAMES.get(places[0].lower()) if places else None
        if split:
            places = places[1:]
        id = path.relative_to(root).as_posix()
        split = split or ("test" if options.all_test else hash_split(id))
        if "/".join(places) in options.unpaired:
            domain = "/".join(places)
            yield PairRecord(id, id, split, {"image": path}, domain=domain, problem=file.problem)
            continue
        label = places[-1].replace("_", " ") if places else ""
        yield PairRecord(
            id=id,
            group=label,  # two images of a class have the same caption, so they are no negatives of each other
            split=split,
            media={"image": path},
            captions=[template.format(label)] if label else [],
            domain="/".join(places[:-1]),
            label=label,
            problem=file.problem,
        )


SOURCE = Source("imagefolder", ("image", "text"), _EXPECTS, _read)
