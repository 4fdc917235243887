"""Which few images of a data set are worth training on, and do they beat synthetic ones?

What other programs use of coreset is named here and imported when it is asked for: most of it needs
no torch. The command line begins with this file, which therefore imports nothing.
"""

TYPE_CHECKING = False  # typing's, without its import
if TYPE_CHECKING:
    from coreset.engine.data.decoders.base import Normalisation
    from coreset.engine.data.geometry import Crops
    from coreset.engine.data.loader import Loader
    from coreset.engine.data.webdataset import as_webdataset

    loader = Loader

__all__ = ["Crops", "Normalisation", "as_webdataset", "loader"]

_PLACES = {
    "Crops": ("coreset.engine.data.geometry", "Crops"),
    "Normalisation": ("coreset.engine.data.decoders.base", "Normalisation"),
    "as_webdataset": ("coreset.engine.data.webdataset", "as_webdataset"),
    "loader": ("coreset.engine.data.loader", "Loader"),
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
