"""Every config key, once, with its default, what is allowed, its meaning and unit.

A config file is a delta over this one:

    from config import default

    def get_config():
        config = default.get_config()
        config.batch_size = 64
        return config

Any key can be set on the command line too: `--config.gnp.r=0.05`.
"""

import ml_collections

from config.schema import (
    AXIS,
    BOOLEAN,
    KEYWORDS,
    NAME,
    PATH,
    PATTERN,
    TEXT,
    Key,
    choice,
    integer,
    nest,
    number,
    numbers,
    optional,
)

# Kinds of parameters that have settings of their own.
PARAMETER_KINDS = {
    "weight": "weights",
    "bias": "biases",
    "scale": "normalization scales",
    "offset": "normalization offsets",
}

# What gnp.method may be: the penalty, whose weight is gnp.alpha, and its relatives.
PENALTY_METHODS = ("finite_difference", "hvp")
RELATIVES = (
    "sam", "asam", "sam_on", "wsam", "gsam", "stable_sam", "friendly_sam", "vasso",
    "unnormalized_sam", "momentum_sam", "cr_sam", "gam", "random_weight_perturbation",
    "functional_sam",
)  # fmt: skip

KEYS = (
    # Randomness.
    Key("init_seeds", 0, integer(0, below=2**32)).means("seed of the initial parameters"),
    Key("seeds", 0, integer(0, below=2**32)).means(
        "seed of everything else: order and augmentation of the data, dropout, "
        "the steps that hybrid training penalizes, the digits' split"
    ),
    # Length and size.
    Key("batch_size", 128, integer(1)).means("examples a step, over all devices"),
    Key("total_epochs", 200, integer(1, below=2**31)).means("epochs of training"),
    Key("accumulate_steps", 1, integer(1)).means(
        "micro-batches that a step goes through, one after another, of batch_size / "
        "accumulate_steps examples: less memory, the same step. On the CPU compilation grows with "
        "their number"
    ),
    Key("accumulate_penalty", "batch", choice("batch", "micro")).means(
        "what is perturbed where accumulate_steps > 1: the accumulated gradient, as of one large "
        "batch, or each micro-batch by its own"
    ),
    Key("start_from", None, optional(PATH)).means(
        "checkpoint of another run that a new one goes on from with state and step number, "
        "DIR/checkpoints/STEP, or DIR for its newest; read when a run begins; none: init_seeds"
    ),
    # Devices.
    Key("mesh.data", -1, AXIS).means(
        "devices that each hold the whole state, or one part each of it where mesh.fsdp > 1; -1: "
        "all the rest. The batch is split over mesh.data * mesh.fsdp = all devices"
    ),
    Key("mesh.fsdp", 1, AXIS).means(
        "devices over which parameters, optimizer state and average are split: less memory on "
        "each, more traffic; -1: all the rest"
    ),
    # Learning rate.
    Key("base_lr", 0.1, number(0)).means("learning rate after the warmup"),
    Key(
        "lr_schedule_type",
        "cosine",
        choice("constant", "stepped", "cosine", "cosine_restarts", "exponential", "inverse_time"),
    ).means("how the learning rate falls"),
    Key("warmup_epochs", 0.0, number(0)).means("linear warmup from 0, in epochs"),
    Key(
        "lr_schedule_params.boundaries", (60.0, 120.0, 160.0), numbers(number(0), increasing=True)
    ).means(
        "stepped: epochs after which the rate is multiplied by the factor; the next step still has "
        "the old rate"
    ),
    Key("lr_schedule_params.factor", 0.2, number(above=0)).means("stepped: the factor"),
    Key("lr_schedule_params.rate", 0.97, number(above=0)).means("exponential: factor an epoch"),
    Key("lr_schedule_params.decay", 0.0, number(0)).means(
        "inverse_time: base_lr / (1 + decay * step); decay per step"
    ),
    Key("lr_schedule_params.period", 5, integer(1)).means(
        "cosine_restarts: epochs of a cosine; the rate changes between epochs"
    ),
    # The epoch that counts.
    Key("early_stopping.metric", None, optional(TEXT)).means(
        "number of an epoch's row, such as validation_loss, whose smallest value makes an epoch "
        "the best: its checkpoint is kept, and evaluated by default. For validation_... a part of "
        "the training set is held out where the data have none. none: the newest epoch counts"
    ),
    Key("early_stopping.patience", None, optional(integer(1))).means(
        "training ends after so many evaluations without a better one; none: never"
    ),
    # Loss and regularization.
    Key(
        "loss",
        "softmax_cross_entropy",
        choice("softmax_cross_entropy", "sigmoid_cross_entropy", "squared_error"),
    ).means("loss of an example; it decides the metrics too"),
    Key("loss_reduction", "mean", choice("mean", "sum")).means(
        "the gradient is of the mean of a batch's losses, or of their sum, batch_size times as "
        "large, costs included; the losses that are logged are means"
    ),
    Key("label_smoothing", 0.0, number(0, at_most=1)).means("share of the uniform label"),
    Key("l2_regularization", 0.0, number(0)).means("times half the squared norm, in the loss"),
    Key("l2_by_kind.weight", None, optional(number(0))).means(
        "the same for weights alone, also where no_weight_decay_on_bn is True; none: "
        "l2_regularization"
    ),
    Key("l2_by_kind.bias", None, optional(number(0))).means("biases (biasDecay)"),
    Key("l2_by_kind.scale", None, optional(number(0))).means("normalization scales (gammaDecay)"),
    Key("l2_by_kind.offset", None, optional(number(0))).means("normalization offsets (betaDecay)"),
    Key("no_weight_decay_on_bn", False, BOOLEAN).means(
        "decay only parameters of rank > 1 (no biases, no batch-norm scales and offsets)"
    ),
    Key("gradient_clipping", 0.0, number(0)).means("largest global gradient norm; 0: off"),
    Key("on_nonfinite", "stop", choice("stop", "skip")).means(
        "a loss or gradient that is NaN or infinite ends the run, or its update is dropped"
    ),
    Key("ema_decay", None, optional(number(0, below=1))).means(
        "d: after each step average = d * average + (1 - d) * parameters, from the initial ones "
        "on; evaluated and saved beside them; none: no average"
    ),
    # Gradient-norm penalty.
    Key("gnp.r", 0.0, number(0)).means("radius of the perturbation, in parameter space; 0: off"),
    Key("gnp.alpha", 0.0, number(0)).means("weight of the perturbed gradient, lambda / r"),
    Key("gnp.lambda", None, optional(number(0))).means("penalty coefficient, instead of gnp.alpha"),
    *(
        Key(f"gnp.{name}_by_kind.{kind}", None, optional(number(0))).means(
            f"in place of gnp.{name} in {what}, its schedule in proportion; none: gnp.{name}"
        )
        for name in ("r", "alpha")
        for kind, what in PARAMETER_KINDS.items()
    ),
    Key("gnp.norm_perturbations", False, BOOLEAN).means("mix normalized, not raw gradients"),
    Key("gnp.sync_perturbations", True, BOOLEAN).means(
        "one perturbation from the whole batch's gradient; False: one a group (m-sharpness)"
    ),
    Key("gnp.m", None, optional(integer(1))).means(
        "examples of a group where sync_perturbations is False; none: a device's share. On the CPU "
        "compilation grows with the number of groups"
    ),
    Key("gnp.where", "all", choice("all", "normalization", "others")).means(
        "parameters that are perturbed: all, the scales and offsets of normalization layers, "
        "or all but these"
    ),
    Key("gnp.adaptive", False, BOOLEAN).means("scale the perturbation by the parameters (ASAM)"),
    Key("gnp.method", "finite_difference", choice(*PENALTY_METHODS, *RELATIVES)).means(
        "the penalty by a difference of two gradients or by the exact Hessian-vector product, or "
        "one of its relatives (docs/methods.md), whose radius is gnp.r"
    ),
    Key("gnp.method_params", {}, KEYWORDS).means(
        "the relative's further arguments, such as gamma of wsam"
    ),
    Key("gnp.ascent_share", 1.0, number(above=0, at_most=1)).means(
        "share of the examples that the perturbation is from, as 0.5: every second one. Logged "
        "metrics and batch statistics of a penalized step are theirs, too"
    ),
    Key("gnp.every", 1, integer(1)).means("penalize every n-th step"),
    Key("gnp.every_scales_alpha", False, BOOLEAN).means(
        "gnp.alpha times gnp.every, so that the mean over the steps is as if each were penalized"
    ),
    Key("gnp.tail_epochs", None, optional(number(above=0))).means(
        "penalize in so many last epochs alone; none: in all"
    ),
    Key("gnp.unusual_norm", None, optional(numbers(number(-10, at_most=10)))).means(
        "AE-SAM: penalize where the squared gradient norm two steps before is above its running "
        "mean by c deviations; c at the run's begin and end, 1,-1 in the paper; none: off"
    ),
    Key("gnp.reuse", 0.0, number(0)).means(
        "LookSAM: weight of what is kept of the last penalized gradient in the steps between; "
        "0: off"
    ),
    Key("gnp.warmup_epochs", None, optional(number(0))).means(
        "epochs of gr_warmup_strategy; none: warmup_epochs"
    ),
    Key("gr_warmup_strategy", "none", choice("none", "lambda", "r", "zero")).means(
        "what grows from 0 during the warmup; zero: plain steps until its end"
    ),
    Key("use_hybrid_training", False, BOOLEAN).means("penalize a random share of the steps"),
    Key("hybrid_config.p", 0.5, number(0, at_most=1)).means("that share"),
    # Optimizer.
    Key(
        "opt.opt_type", "Momentum", choice("SGD", "Momentum", "Adam", "RMSProp", "SGDG", "AdamG")
    ).means(
        "optimizer; SGDG and AdamG train convolutions on the Grassmann manifold, the rest by "
        "SGD with momentum"
    ),
    Key("opt.opt_params", {}, KEYWORDS).means(
        "its keyword arguments, such as weight_decay; eps_uncorrected=True of Adam: epsilon where "
        "TensorFlow and Keras have it"
    ),
    Key("opt.learning_rate_grassmann", None, optional(number(0))).means(
        "SGDG, AdamG: base_lr of the Grassmann group; none: the published 0.2 and 0.05"
    ),
    Key("opt.omega", 0.1, number(0)).means(
        "SGDG, AdamG: times half the squared distance of V'V from the identity, in the loss"
    ),
    Key("opt.grassmann_where", None, optional(PATTERN)).means(
        "SGDG, AdamG: regular expression that finds the group's parameters by their paths; "
        "none: every convolution with more inputs than outputs"
    ),
    Key("opt.centralize", "none", choice("none", "all", "conv")).means(
        "gradient centralization: of all weights of rank > 1, or of convolutions"
    ),
    Key("opt.centralize_at", "gradient", choice("gradient", "update", "perturbation")).means(
        "centralize what the optimizer is given, or what it makes of it (for Adam; not of the "
        "Grassmann group), or the direction of the perturbation alone"
    ),
    # Model.
    Key("model.model_name", "WideResNet_16_4", TEXT).means("a name that the registry knows"),
    Key("model.model_params", {}, KEYWORDS).means(
        "its keyword arguments, such as dropout_rate, remat"
    ),
    Key("model.pretrained", None, optional(PATH)).means(
        "file of weights to start from, .safetensors or .npz, named as by PyTorch (timm) or, for "
        "ViT, by vision_transformer; read when a run begins, not when it goes on, and evaluated by "
        "--mode=eval where there is no checkpoint; none: start from init_seeds alone"
    ),
    Key("model.pretrained_strict", True, BOOLEAN).means(
        "stop where pretrained weights and model do not match; False: say what is left at its "
        "initial value, and go on"
    ),
    Key("precision", "float32", choice("float32", "bfloat16")).means(
        "of the model's computation; parameters, statistics, softmax and loss are float32. With "
        "JAX_ENABLE_X64=1 in the environment float64 takes its place"
    ),
    Key("train_in_inference_mode", False, BOOLEAN).means(
        "no dropout in training either, and batch norm with its running statistics, which stay as "
        "they begin"
    ),
    # Data.
    Key("dataset.dataset_name", "cifar10", NAME).means(
        "digits, iris, wine, breast_cancer, diabetes (scikit-learn); image_folder; ucr/NAME; csv; "
        "npz; idx (MNIST's own files); forecast (a series, whose future is predicted); or a TFDS "
        "name (tfds/NAME is always TFDS); imagenet: image_folder with random crops"
    ),
    Key("dataset.data_dir", None, optional(PATH)).means(
        "TFDS: folder of the prepared sets; none: TFDS_DATA_DIR, else ~/tensorflow_datasets. "
        "image_folder, ucr, idx: their folder. csv, npz: the file. forecast: the CSV file; none: a "
        "generated series"
    ),
    Key("dataset.train_split", "train", TEXT).means("TFDS: split to train on, as train+extra"),
    Key("dataset.target", None, optional(TEXT)).means(
        "csv: name of the column to predict. forecast: of the one to forecast, from itself; none: "
        "all"
    ),
    Key("dataset.lookback", 512, integer(1)).means("forecast: rows that a forecast is made from"),
    Key("dataset.horizon", 96, integer(1)).means("forecast: rows that are forecast"),
    Key("dataset.allow_gaps", False, BOOLEAN).means(
        "forecast: take rows as evenly spaced, though times between them are missing"
    ),
    Key("dataset.task", None, optional(choice("classification", "regression"))).means(
        "csv, npz: what the target is; none: classification (diabetes is always regression)"
    ),
    Key(
        "dataset.image_level_augmentations",
        "none",
        choice("none", "basic", "autoaugment", "aa-only", "randaugment", "keras", "inception"),
    ).means("per image; inception, for encoded photographs: a random crop at any scale"),
    Key(
        "dataset.batch_level_augmentations",
        "none",
        choice("none", "cutout", "mixup", "mixcut", "cutmix"),
    ).means("per batch; mixcut: mixup, then cutout"),
    Key(
        "dataset.autoaugment_policy",
        None,
        optional(
            choice("cifar", "svhn", "imagenet", "cifar-paper", "svhn-paper", "imagenet-paper")
        ),
    ).means(
        "autoaugment, aa-only: the policy, of the published code or of the paper's tables; none: "
        "the published code's for the data set's name, else its imagenet"
    ),
    Key("dataset.padding", 4, integer(0)).means(
        "basic, autoaugment: pixels of reflection on each side, before the random crop"
    ),
    Key("dataset.randaugment_layers", 2, integer(1)).means("randaugment: operations an image"),
    Key("dataset.randaugment_magnitude", 9.0, number(0, at_most=10)).means(
        "randaugment: their strength, up to 10"
    ),
    Key("dataset.mixup_alpha", 1.0, number(above=0)).means("mixup, mixcut: of Beta(alpha, alpha)"),
    Key("dataset.cutmix_alpha", 1.0, number(above=0)).means("cutmix: of Beta(alpha, alpha)"),
    Key("dataset.cutout_size", 16, integer(1)).means("side of cutout's square, in pixels"),
    Key("dataset.image_size", None, optional(integer(1))).means(
        "encoded photographs (image_folder, imagenet2012): side in pixels they are brought to; "
        "none: 224. Others: expected side; none: any"
    ),
    Key("dataset.num_classes", None, optional(integer(1))).means("expected classes; none: any"),
    Key("dataset.num_channels", None, optional(integer(1))).means("expected channels; none: any"),
    Key("dataset.validation_fraction", 0.1, number(above=0, at_most=0.9)).means(
        "share of the training split that is held out where use_test_set is False"
    ),
    Key("dataset.test_fraction", 0.2, number(above=0, at_most=0.9)).means(
        "share of the examples that is the test set where the data come without one "
        "(scikit-learn's sets, csv, npz)"
    ),
    Key("dataset.split", "stratified", choice("stratified", "shuffled")).means(
        "how both are drawn: the same share of each class; or the end of a shuffle by Python's "
        "random, which is also the training set's order, as keras.utils.split_dataset does it"
    ),
    Key("dataset.shuffle", True, BOOLEAN).means(
        "a new order of the training set in each epoch; False: always its own"
    ),
    Key("dataset.keep_last_batch", False, BOOLEAN).means(
        "train on the examples that an epoch's full batches leave, too, in a smaller batch, which "
        "is compiled on its own; False: they rest for that epoch"
    ),
    Key("dataset.subset", None, optional(number(above=0))).means(
        "training examples to use, the same share of each class: a whole number from 1 up, or a "
        "share below 1; none: all"
    ),
    Key("dataset.label_noise", 0.0, number(0, at_most=1)).means(
        "share of the training labels that are replaced by another class"
    ),
    Key("dataset.labels_file", None, optional(PATH)).means(
        ".npz file with other labels of the training examples, from 0 for the first of the sorted "
        "classes, by the number in an example's id (TFDS) or its place in the data; none: their own"
    ),
    Key("dataset.labels_array", None, optional(TEXT)).means("the array of that file to take"),
    Key("dataset.mean", None, optional(numbers(number(0)))).means(
        "subtracted from each channel of images, where 1 is the largest uint8 value, or of series, "
        "or column of a table, as 0.485,0.456,0.406, or one number for all; none: the data set's "
        "published ones, else the training set's own"
    ),
    Key("dataset.std", None, optional(numbers(number(above=0)))).means(
        "what each channel or column is divided by after that; none: likewise"
    ),
    Key("dataset.workers", None, optional(integer(0))).means(
        "processes that read and augment; 0: threads of this one; none: as fits the machine"
    ),
    Key("use_test_set", True, BOOLEAN).means("evaluate on the test set; False: a held-out part"),
    # What is measured and kept.
    Key("compute_top_5_error_rate", False, BOOLEAN).means("log the top-5 error rate as well"),
    Key("top_k", None, optional(integer(1))).means(
        "log the top-k error rate of this k as well; none: off"
    ),
    Key("eval_batch_size", None, optional(integer(1))).means(
        "examples of an evaluation batch, over all devices; none: batch_size"
    ),
    Key("evaluate_every_n_epochs", 1, integer(1)).means("epochs between evaluations"),
    Key("save_ckpt_every_n_epochs", 1, integer(1)).means("epochs between checkpoints"),
    Key("keep_checkpoints", 3, integer(1)).means("newest checkpoints that are kept"),
    Key("log_every_n_steps", 50, integer(1)).means(
        "steps between points of TensorBoard and trackers"
    ),
    Key("trackers", None, optional(choice("wandb", "mlflow", "wandb,mlflow"))).means(
        "where the numbers go as well, by packages of these names; none: TensorBoard alone"
    ),
    Key("log_costs_per_layer", False, BOOLEAN).means(
        "log the weight cost and the orthogonality penalty of each parameter as well"
    ),
    Key("record.gradients", False, BOOLEAN).means(
        "record what each epoch's gradients add up to, and the metrics of the whole training set "
        "after it; draw them at the end"
    ),
    Key("record.steps", False, BOOLEAN).means(
        "write every step's gradient to working_dir/gradients as well: 4 bytes a parameter and "
        "step; needs record.gradients"
    ),
    Key("record.sharpness_every_n_epochs", None, optional(integer(1))).means(
        "log the largest Hessian eigenvalue, the trace and SAM's sharpness on 500 training "
        "examples every n epochs (some 80 gradients of them); none: never"
    ),
    Key("retrain", False, BOOLEAN).means("start over in a working_dir that holds a run"),
)

BY_NAME = {key.name: key for key in KEYS}
KEYWORD_ARGUMENTS = tuple(key.name for key in KEYS if key.kind is KEYWORDS)

# Keys of earlier versions: the value in the stored configs of runs that still go on, and what to do
# instead of setting it.
REMOVED = (
    Key("num_seeds", 1, integer(1)).means(
        'train one run a seed, by SEEDS="0 1 2" bash recipe/NAME.sh or bash recipe/sweep.sh CONFIG '
        "seeds=0,1,2; an old one goes on in its seed-N with --config.seeds=N --config.init_seeds=N"
    ),
)

# The published learning rates of the Grassmann group (arXiv 1709.09603, on CIFAR).
GRASSMANN_RATES = {"SGDG": 0.2, "AdamG": 0.05}

# Keys that change neither the data nor the training: they may differ when a run is resumed.
FREE_KEYS = (
    "retrain",
    "dataset.data_dir",
    "dataset.labels_file",
    "dataset.workers",
    "mesh.data",
    "mesh.fsdp",
    "save_ckpt_every_n_epochs",
    "keep_checkpoints",
    "eval_batch_size",
    "log_every_n_steps",
    "trackers",
    "record.sharpness_every_n_epochs",
)


def get_config() -> ml_collections.ConfigDict:
    """Return every key at its default."""
    return nest({key.name: key.default for key in KEYS})
