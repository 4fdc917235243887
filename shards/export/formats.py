"""Registry of the export formats: a new one is a file here and a row below."""

from coreset.shards.export.image_folder import IMAGE_FOLDER
from coreset.shards.export.lists import IDS, PATHS
from coreset.shards.export.names import ImageFormat, ListFormat
from coreset.shards.export.parquet import PARQUET
from coreset.shards.export.webdataset import WEBDATASET

FORMATS: dict[str, ImageFormat | ListFormat] = {
    "imagefolder": IMAGE_FOLDER,
    "webdataset": WEBDATASET,
    "parquet": PARQUET,
    "paths": PATHS,
    "ids": IDS,
}
