"""Data sources, augmentation and the loader: from a config to batches of numpy arrays."""

from ds_pipeline.augment import Augment, Mix
from ds_pipeline.batches import count_steps, evaluation_batches, train_batches
from ds_pipeline.build import build_dataset, dataset_names
from ds_pipeline.dataset import Dataset
from ds_pipeline.errors import DataError
from ds_pipeline.files import OWN_FILES
from ds_pipeline.identity import identity, identity_problems
from ds_pipeline.loader import StalledError
from ds_pipeline.source import Batch, EncodedImage, InMemorySource, Source, SubsetSource

__all__ = [
    "OWN_FILES",
    "Augment",
    "Batch",
    "DataError",
    "Dataset",
    "EncodedImage",
    "InMemorySource",
    "Mix",
    "Source",
    "StalledError",
    "SubsetSource",
    "build_dataset",
    "count_steps",
    "dataset_names",
    "evaluation_batches",
    "identity",
    "identity_problems",
    "train_batches",
]
