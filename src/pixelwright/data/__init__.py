"""Images for training: where they come from, how they are read, batches as a function of the step number."""

from pixelwright.data.captioned import CaptionedShapes
from pixelwright.data.config import DataConfig
from pixelwright.data.loader import Batch, Batches
from pixelwright.data.open import open_source
from pixelwright.data.shapes import Shapes
from pixelwright.data.sources import FolderSource, Sample, Source, ZipSource
from pixelwright.data.transforms import UnreadableImage, centre_crop, read_image

__all__ = ["Batch", "Batches", "CaptionedShapes", "DataConfig", "FolderSource", "Sample", "Shapes", "Source"]
__all__ += ["UnreadableImage", "ZipSource", "centre_crop", "open_source", "read_image"]
