"""Random changes to training images, each a pure function of (seed, epoch, index).

An `Augment` takes (batch, seed, epoch, indices) and returns a new batch; example `indices[i]` of
the data set is row i of the batch. Its randomness comes from a counter-based generator with the
index as the counter, so the result does not depend on the order of the examples, on the batch
size, or on which process or thread asks. A `Mix` joins the rows of two batches with one weight
from (seed, step). The loader applies image level, mix and erase in this order.
"""

from ds_pipeline.augment.build import BATCH_LEVEL, IMAGE_LEVEL, get_augment, get_erase, get_mix
from ds_pipeline.augment.crops import basic, shifted_crop
from ds_pipeline.augment.erase import cutout, erased
from ds_pipeline.augment.kinds import Augment, Mix, chain
from ds_pipeline.augment.policies import POLICIES
from ds_pipeline.augment.random import below, random_bits

__all__ = [
    "BATCH_LEVEL",
    "IMAGE_LEVEL",
    "POLICIES",
    "Augment",
    "Mix",
    "basic",
    "below",
    "chain",
    "cutout",
    "erased",
    "get_augment",
    "get_erase",
    "get_mix",
    "random_bits",
    "shifted_crop",
]
