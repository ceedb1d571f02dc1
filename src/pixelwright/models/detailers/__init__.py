"""Local stage: from the noisy pixels of a patch and the patch's token to that patch's prediction.

Every file of this folder is imported, and registers its detailer.
"""

from importlib import import_module
from pkgutil import iter_modules

from pixelwright.models.detailers.base import DETAILERS, register_detailer

__all__ = ["DETAILERS", "register_detailer"]

for _file in iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")
