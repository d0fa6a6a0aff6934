#!/usr/bin/env bash
# Takes a 1,000-word caption and a 4,096 x 4,096 image through train, embed and retrieve, with window and linear attention; prints the peak
# memory of every command.   bash examples/benchmarks/long_inputs.sh [FOLDER] [SIDE] [WORDS] [TILE]
set -euo pipefail
folder=${1:-$(mktemp -d)} side=${2:-4096} words=${3:-1000} tile=${4:-512}
python=${PYTHON:-python}
ccaco() { "$python" -m ccaco_cli "$@"; }
mkdir -p "$folder"

# eight images: noise with one bright square each; the caption says where the square is, at the end of a long text
"$python" - "$folder" "$side" "$words" <<'PYTHON'
import sys
from pathlib import Path
import numpy as np
from PIL import Image

folder, side, words = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
rng, cell = np.random.default_rng(0), side // 4
with (folder / "long.tsv").open("w") as table:
    table.write("filepath\ttitle\tsplit\n")
    for number, split in enumerate(["train"] * 4 + ["val"] * 2 + ["test"] * 2):
        row, column = divmod(number * 5 % 16, 4)
        coarse = rng.integers(0, 120, (side // 16, side // 16, 3), dtype=np.uint8)
        picture = np.asarray(Image.fromarray(coarse).resize((side, side))).copy()
        picture[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = 255
        Image.fromarray(picture).save(folder / f"{number}.jpg", quality=80)
        filler = " ".join(rng.choice(["and", "then", "nothing", "but", "grey", "stones", "for", "miles"], words - 6))
        table.write(f"{number}.jpg\t{filler} square in row {row} column {column}\t{split}\n")
PYTHON

[ -d "$folder/data" ] || ccaco prepare table --source "$folder/long.tsv" --out "$folder/data" --format csv
for attention in window linear; do
  echo "== $attention: $side x $side, $words words, tiles of $tile"
  arguments=(--dataset "$folder/data" --arm unified --image-size "$side" --tile "$tile" --context-length 2048 --attention "$attention")
  arguments+=(--grad-checkpointing --batch-size 2 --epochs 1 --set loss.cross_batch=2 --set loss.cross_start=0 --set model.image.center=off)
  ccaco train "${arguments[@]}" --estimate --format csv
  for command in \
    "train ${arguments[*]} --logs $folder --name $attention --format csv" \
    "embed --run $folder/$attention --dataset $folder/data --out $folder/$attention.emb --index $folder/$attention.idx"; do
    # shellcheck disable=SC2086
    "$python" - $command <<'PYTHON'
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "ccaco_cli", *sys.argv[1:]])
print(f"peak of {sys.argv[1]}: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10:,.0f} MiB")
sys.exit(done.returncode)
PYTHON
  done
  ccaco retrieve "square in row 2 column 1" --index "$folder/$attention.idx" -k 2 --format csv
done
