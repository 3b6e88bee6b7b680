r"""Evolution of gradients: small networks, every epoch's gradients recorded.

    bash recipe/evolution-mnist.sh --config.dataset.data_dir=DATA_DIR
    python -m gnp.main.main --config=config/evolution.py:mnist --working_dir=runs/evolution-mnist \
        --config.dataset.data_dir=DATA_DIR

    argument   recipe                        to expect on the held-out tenth (three seeds)
    boston     recipe/evolution-boston.sh    mean absolute errors of 4.0 to 4.8, each in seconds
    cifar10    recipe/evolution-cifar10.sh   16.9% errors (one seed), in 39 minutes
    cifar100   recipe/evolution-cifar100.sh  not yet trained here; its hours are not known to us
    forda      recipe/evolution-forda.sh     not yet trained here; its hours are not known to us
    iris       recipe/evolution-iris.sh      0.00, 7.69 and 15.38% errors, each in seconds
    mnist      recipe/evolution-mnist.sh     4.60, 5.45 and 5.00% errors, each in 3 minutes

The minutes are those of one core of an AMD EPYC with AVX-512, 15 epochs of some 155 s for CIFAR-10
(docs/results.md says with which allocator).
The data: mnist, cifar10 and cifar100 as TFDS prepares them (recipe/prepare_data.sh); DATA_DIR of
forda is the folder of the UCR sets, that of boston a table, boston_housing.csv, whose column medv
is the price. Iris comes with scikit-learn.

Networks, optimizers and data are as in the last commit (f5e3123) of the article's code: a tenth of
the training part is held out, by the same shuffle, and nothing trains on the test part; inputs are
as they are, or pixels from 0 to 1; every epoch goes through the same batches, the last of which is
smaller. What differs: the initial weights are other draws; TFDS has the images in another order;
the table's test part is the end of the same shuffle, where Keras' loader has one of its own.
docs/evolution.md says what is recorded.
"""

import ml_collections

from config import default
from config.schema import pick

# Data set, network, batch size, epochs, optimizer, learning rate.
RUNS = {
    "boston": ("csv", "EvolutionBostonMLP", 32, 50, "Adam", 0.05),
    "cifar10": ("cifar10", "EvolutionCifar10CNN", 32, 15, "Adam", 0.001),
    "cifar100": ("cifar100", "EvolutionCifar100CNN", 64, 15, "Adam", 0.001),
    "forda": ("ucr/FordA", "EvolutionFordACNN", 32, 150, "Adam", 0.0004),
    "iris": ("iris", "EvolutionIrisMLP", 15, 100, "SGD", 0.01),
    "mnist": ("mnist", "EvolutionMnistCNN", 256, 10, "SGD", 0.01),
}
CLASSES = {"cifar10": 10, "cifar100": 100, "forda": 2, "iris": 3, "mnist": 10}
# Side and channels of the images; width of the hidden layer.
IMAGES = {"cifar10": (32, 3), "cifar100": (32, 3), "mnist": (28, 1)}
WIDTHS = {"boston": (64,), "iris": (8,)}
# Share of a test part where the data come without one; Keras' loader leaves 404 of 506 houses.
TEST_FRACTIONS = {"boston": 102 / 506, "iris": 0.1}


def get_config(name: str = "") -> ml_collections.ConfigDict:
    """Return the run on one data set."""
    config = default.get_config()
    dataset, network, batch_size, epochs, optimizer, rate = RUNS[pick(name, tuple(RUNS))]
    config.dataset.dataset_name = dataset
    config.dataset.num_classes = CLASSES.get(name)
    config.dataset.image_size, config.dataset.num_channels = IMAGES.get(name, (None, None))
    config.seeds = config.init_seeds = 13
    config.use_test_set = False
    config.dataset.split = "shuffled"
    config.dataset.shuffle = False
    config.dataset.keep_last_batch = True
    config.dataset.mean, config.dataset.std = (0.0,), (1.0,)
    if name in TEST_FRACTIONS:
        config.dataset.test_fraction = TEST_FRACTIONS[name]
    if name == "boston":
        config.dataset.target = "medv"
        config.dataset.task = "regression"
        config.loss = "squared_error"
    config.model.model_name = network
    if name in WIDTHS:
        config.model.model_params.widths = WIDTHS[name]
    config.batch_size = batch_size
    config.total_epochs = epochs
    config.opt.opt_type = optimizer
    if optimizer == "Adam":  # Keras' own
        config.opt.opt_params.eps = 1e-7
        config.opt.opt_params.eps_uncorrected = True
    config.base_lr = rate
    config.lr_schedule_type = "constant"
    config.record.gradients = True
    return config
