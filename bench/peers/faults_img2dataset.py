"""img2dataset packing a list of files; a program of ``coreset.bench.robustness``.

    uv pip install --target FOLDER/img2dataset img2dataset 'opencv-python-headless<5' \
        'albumentations<2' albucore==0.0.23
    python -m coreset.bench.peers.faults_img2dataset PEERS/img2dataset SRC OUT FOUND

The whole package; files are named by ``file://`` and keep their size, so that pixels can be
compared. Its output is read back: what it packed, and what its table says of the rest (to stderr).
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from coreset.bench.peers.found import Found
from coreset.shards.images.flags import MAX_PIXELS


def pack(src: Path, out: Path, found: Found) -> None:
    """Pack the folder; the label travels as the caption."""
    from img2dataset import download  # type: ignore[import-not-found]

    listed = out.with_suffix(".csv")
    with listed.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("url", "label"))
        for label, folder in enumerate(sorted(src.iterdir())):
            writer.writerows((f"file://{path}", label) for path in sorted(folder.iterdir()))
    download(
        url_list=str(listed),
        input_format="csv",
        output_folder=str(out),
        output_format="files",
        resize_mode="no",
        caption_col="label",
        processes_count=1,
        thread_count=2,
        retries=0,
        enable_wandb=False,
    )
    for row in _rows(out):
        if row["status"] == "success":
            pixels = _pixels(next(out.glob(f"*/{row['key']}.jpg")))
            found.add(int(row["caption"]), pixels, key=row["url"])
        else:
            print(f"{row['url']}: {row['error_message']}", file=sys.stderr)


def _rows(out: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(out.glob("*.parquet")):
        yield from pq.read_table(path).to_pylist()


def _pixels(path: Path) -> NDArray[np.uint8]:
    """Return the pixels, or only the shape of an image that is too large to be compared."""
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(path) as image:
        if image.width * image.height > MAX_PIXELS:
            return np.broadcast_to(np.uint8(0), (image.height, image.width, 3))
        return np.asarray(image.convert("RGB"))


if __name__ == "__main__":
    sys.path.append(sys.argv[1])  # last: its dependencies bring copies of ours, some of them old
    pack(Path(sys.argv[2]), Path(sys.argv[3]), Found(Path(sys.argv[4])))
