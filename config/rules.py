"""Every rule on config keys: what each may hold, what goes together, what fits devices and data.

Each rule yields the lines to tell the user: what is wrong, what is allowed, what to do.
"""

from collections.abc import Collection, Iterator, Mapping
from fractions import Fraction
from typing import Any

import ml_collections

from config import default
from config.schema import ConfigError, nearest


def problems(
    config: ml_collections.ConfigDict,
    devices: int | None = None,
    training: bool = True,
    task: str | None = None,
    losses: Collection[str] = (),
    examples: int | None = None,
) -> list[str]:
    """Return a line for everything that is wrong with a config.

    Args:
        config: without references that have no value.
        devices: how many there are; None: the rules on them are left out.
        training: False for evaluation, which fills its batches up.
        task: what is learned of the data; None: the rule on its losses is left out.
        losses: those of the task.
        examples: of the training set; None: the rule on them is left out.

    Example:
        >>> config = default.get_config()
        >>> config.gnp.alpha = 0.8
        >>> problems(config)
        ['gnp.alpha = 0.8 with gnp.r = 0: a penalty needs a radius, such as gnp.r = 0.05']
    """
    lines = value_problems(flatten(config))
    if lines:  # the rules below compute with values that are allowed
        return lines
    for rule in _RULES:
        lines += rule(config)
    if devices is not None:
        lines += mesh_problems(config, devices)
        if training:
            lines += _batch_on_devices(config, devices)
            lines += _last_batch(config, devices, examples or 0)
    if task is not None and config.loss not in losses:
        lines.append(
            f"loss = {config.loss} does not go with {task}, the task of "
            f"'{config.dataset.dataset_name}': set loss to {' or '.join(losses)}"
        )
    return lines


def check(config: ml_collections.ConfigDict, **facts: Any) -> None:
    """Raise ConfigError with a line for everything that is wrong with a config; see `problems`."""
    if lines := problems(config, **facts):
        raise ConfigError("\n".join(lines))


def flatten(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Return dotted name -> value; the dicts of free keyword arguments stay whole."""
    flat: dict[str, Any] = {}

    def visit(node: Mapping[str, Any], prefix: str = "") -> None:
        for name, value in node.items():
            name = f"{prefix}{name}"
            if isinstance(value, Mapping) and name not in default.KEYWORD_ARGUMENTS:
                visit(value, f"{name}.")
            else:
                flat[name] = value

    visit(config.to_dict())
    return flat


def value_problems(flat: Mapping[str, Any]) -> list[str]:
    """Return a line for every unknown or missing key and every value that its kind does not allow.

    Args:
        flat: dotted name -> value.
    """
    return [
        *(unknown_key(name) for name in flat if name not in default.BY_NAME),
        *(f"config key {name} is missing" for name in default.BY_NAME if name not in flat),
        *(
            not_allowed(name, flat[name])
            for name, key in default.BY_NAME.items()
            if name in flat and not key.kind.check(flat[name])
        ),
    ]


def unknown_key(name: str) -> str:
    """Return what to say of a key that is not there, or no longer.

    Example:
        >>> unknown_key("base_ir")
        'unknown config key base_ir (did you mean base_lr?); config/default.py lists all keys'
    """
    for removed in default.REMOVED:
        if name == removed.name:
            return f"config key {name} was removed: {removed.meaning}"
    near = nearest(name, list(default.BY_NAME))
    return f"unknown config key {name}{near}; config/default.py lists all keys"


def not_allowed(name: str, value: Any) -> str:
    """Return what to say of a value that the kind of its key does not allow."""
    kind, shown = default.BY_NAME[name].kind, repr(value)
    if len(shown) > 300:
        shown = f"{shown[:300]}..."
    return f"{name} = {shown}: allowed is {kind.allowed}{nearest(str(value), kind.names)}"


def _coefficient(config: ml_collections.ConfigDict) -> Iterator[str]:
    r, alpha, coefficient = config.gnp.r, config.gnp.alpha, config.gnp["lambda"]
    needs = "gnp.r = 0: a penalty needs a radius, such as gnp.r = 0.05"
    if coefficient is None:
        if alpha > 0 and r == 0:
            yield f"gnp.alpha = {alpha} with {needs}"
    elif coefficient > 0 and r == 0:
        yield f"gnp.lambda = {coefficient} with {needs}"
    elif alpha != 0 and abs(alpha * r - coefficient) > 1e-9:
        yield (
            f"gnp.lambda = {coefficient} and gnp.alpha = {alpha} disagree, as lambda is "
            f"alpha * r = {alpha * r:g}: give one of them"
        )


def _penalty(config: ml_collections.ConfigDict) -> Iterator[str]:
    gnp = config.gnp
    for name, off in {"m": None, "where": "all", "reuse": 0}.items():
        if gnp.r == 0 and gnp[name] != off:
            yield f"gnp.{name} = {gnp[name]!r} with gnp.r = 0: there is no penalty to work in"
    is_off = {"r": gnp.r == 0, "alpha": gnp.alpha == 0 and not gnp["lambda"]}
    is_off["alpha"] &= gnp.method in default.PENALTY_METHODS  # the relatives have none at all
    for name in is_off:
        for kind, value in gnp[f"{name}_by_kind"].items():
            if value is not None and is_off[name]:
                yield (
                    f"gnp.{name}_by_kind.{kind} = {value:g} with gnp.{name} = 0: it takes the "
                    f"place of gnp.{name} in some parameters, so set that too"
                )
    if gnp.m is not None and gnp.sync_perturbations:
        yield (
            f"gnp.m = {gnp.m} with gnp.sync_perturbations = True: groups with a perturbation of "
            "their own need False"
        )
    elif gnp.m is not None and config.batch_size % gnp.m:
        yield f"gnp.m = {gnp.m} does not divide batch_size = {config.batch_size} into whole groups"
    share = config.hybrid_config.p if config.use_hybrid_training else 1
    if gnp.reuse > 0 and (share == 0 or (share == 1 and gnp.every == 1)):
        yield (
            f"gnp.reuse = {gnp.reuse} needs penalized steps and others between them: set gnp.every "
            "(LookSAM's is 5), or use_hybrid_training with hybrid_config.p above 0 and below 1"
        )


def _method(config: ml_collections.ConfigDict) -> Iterator[str]:
    """A relative of the penalty has a radius, and none of the penalty's weight."""
    gnp = config.gnp
    if gnp.method == "hvp" and config.model.model_params.get("backward_noise"):
        yield (
            "gnp.method = 'hvp' with model.model_params.backward_noise = True: what has noise in "
            "its gradient has no Hessian; leave the method at 'finite_difference'"
        )
    if gnp.method in default.PENALTY_METHODS:
        return
    if gnp.r == 0:
        yield f"gnp.method = {gnp.method!r} needs a radius, such as gnp.r = 0.05"
    off = {"alpha": 0, "lambda": None, "norm_perturbations": False, "every_scales_alpha": False}
    given = {f"gnp.{name}": gnp[name] for name in off if gnp[name] != off[name]}
    own = gnp.alpha_by_kind.items()
    given |= {f"gnp.alpha_by_kind.{kind}": value for kind, value in own if value is not None}
    if config.gr_warmup_strategy == "lambda":
        given["gr_warmup_strategy"] = "lambda"
    for name, value in given.items():
        yield (
            f"{name} = {value!r} is of the penalty, whose weight is gnp.alpha, not of gnp.method = "
            f"{gnp.method!r}: its arguments are gnp.method_params"
        )


def _moment(config: ml_collections.ConfigDict) -> Iterator[str]:
    gnp, thresholds = config.gnp, config.gnp.unusual_norm
    for name in ("tail_epochs", "unusual_norm"):
        if gnp.r == 0 and gnp[name] is not None:
            yield f"gnp.{name} = {gnp[name]!r} with gnp.r = 0: there is no penalty to work in"
    if gnp.every_scales_alpha and gnp.every == 1:
        yield "gnp.every_scales_alpha = True with gnp.every = 1: each step is penalized already"
    if gnp.tail_epochs is not None and gnp.tail_epochs > config.total_epochs:
        yield (
            f"gnp.tail_epochs = {gnp.tail_epochs:g} is longer than "
            f"total_epochs = {config.total_epochs}"
        )
    if thresholds is not None and len(thresholds) != 2:
        yield (
            f"gnp.unusual_norm = {tuple(thresholds)} must be two numbers, at the run's begin and "
            "end, such as 1,-1"
        )


def _ascent(config: ml_collections.ConfigDict) -> Iterator[str]:
    gnp = config.gnp
    given = f"gnp.ascent_share = {gnp.ascent_share:g}"
    if gnp.ascent_share < 1 and gnp.r == 0:
        yield f"{given} with gnp.r = 0: there is no penalty to work in"
    if ascent_rows(gnp.ascent_share)[0] == 0:
        yield f"{given} must be at least 0.01"
    if gnp.ascent_share == 1:
        given = f"gnp.method = {gnp.method!r}"
    has_parts = gnp.r > 0 and not gnp.sync_perturbations or config.accumulate_penalty == "micro"
    if has_parts and (gnp.ascent_share < 1 or gnp.method == "functional_sam"):
        yield (
            f"{given} does not go with a perturbation for each group or micro-batch: set "
            "gnp.sync_perturbations to True and accumulate_penalty to batch"
        )


def ascent_rows(share: float) -> tuple[int, int]:
    """Return how many rows of how many consecutive ones an ascent share takes.

    Example:
        >>> ascent_rows(0.75), ascent_rows(0.3333)
        ((3, 4), (1, 3))
    """
    return Fraction(share).limit_denominator(100).as_integer_ratio()


def _accumulation(config: ml_collections.ConfigDict) -> Iterator[str]:
    count, gnp = config.accumulate_steps, config.gnp
    if config.batch_size % count:
        yield (
            f"accumulate_steps = {count} does not divide batch_size = {config.batch_size} into "
            "equal micro-batches"
        )
    micro = "accumulate_penalty = 'micro'"
    if config.accumulate_penalty == "micro" and count == 1:
        yield f"{micro} with accumulate_steps = 1: there is one micro-batch, the batch"
    if config.accumulate_penalty == "micro" and gnp.r == 0:
        yield f"{micro} with gnp.r = 0: there is no penalty to work in"
    if count > 1 and gnp.r > 0 and not gnp.sync_perturbations:
        yield (
            f"accumulate_steps = {count} with gnp.sync_perturbations = False: groups are computed "
            "one after another already; leave one of them out, or set accumulate_penalty to micro "
            "and gnp.sync_perturbations to True for a perturbation a micro-batch"
        )
    in_parts = not gnp.sync_perturbations or config.accumulate_penalty == "micro"
    if config.loss_reduction == "sum" and gnp.norm_perturbations and gnp.r > 0 and in_parts:
        yield (
            "loss_reduction = 'sum' with gnp.norm_perturbations = True and a perturbation of each "
            "group or micro-batch: the sum of normalized gradients has no length of 1; set one of "
            "the first two to its default, 'mean' or False"
        )


def _optimizer(config: ml_collections.ConfigDict) -> Iterator[str]:
    opt = config.opt
    only_grassmann = {"learning_rate_grassmann": None, "grassmann_where": None, "omega": 0.1}
    for name, off in only_grassmann.items():
        if opt.opt_type not in default.GRASSMANN_RATES and opt[name] != off:
            yield (
                f"opt.{name} = {opt[name]!r} needs opt.opt_type = SGDG or AdamG, not {opt.opt_type}"
            )
    if opt.centralize_at == "perturbation" and config.gnp.r == 0:
        yield "opt.centralize_at = 'perturbation' with gnp.r = 0: there is no perturbation"
    if opt.centralize_at != "gradient" and opt.centralize == "none":
        yield (
            f"opt.centralize_at = {opt.centralize_at!r} with opt.centralize = 'none': "
            "set opt.centralize to all or conv"
        )


def _others(config: ml_collections.ConfigDict) -> Iterator[str]:
    stopping = config.early_stopping
    if stopping.metric is None and stopping.patience is not None:
        yield (
            f"early_stopping.patience = {stopping.patience} needs early_stopping.metric, such as "
            "validation_loss"
        )
    if config.warmup_epochs > config.total_epochs:
        yield (
            f"warmup_epochs = {config.warmup_epochs:g} is longer than "
            f"total_epochs = {config.total_epochs}"
        )
    for name in ("compute_top_5_error_rate", "top_k"):
        if config[name] and config.loss != "softmax_cross_entropy":
            yield f"{name} needs loss = softmax_cross_entropy, not {config.loss}"
    if config.label_smoothing > 0 and config.loss == "squared_error":
        yield f"label_smoothing = {config.label_smoothing} does not go with squared_error"
    if config.record.steps and not config.record.gradients:
        yield "record.steps = True with record.gradients = False: set record.gradients to True too"
    for name, given in (
        ("model.pretrained", config.model.pretrained is not None),
        ("record.gradients", config.record.gradients),
    ):
        if config.start_from is not None and given:
            yield (
                f"start_from = {config.start_from!r} does not go with {name}: leave one of them out"
            )
    subset = config.dataset.subset
    if subset is not None and subset > 1 and subset != int(subset):
        yield (
            f"dataset.subset = {subset:g} is neither a share below 1 nor a whole number of examples"
        )
    file, noise = config.dataset.labels_file, config.dataset.label_noise
    if file is not None and noise > 0:
        yield (
            f"dataset.labels_file = {file!r} does not go with dataset.label_noise = {noise:g}: the "
            "file's labels are the noise; set the share to 0, or the file to None"
        )


_RULES = (
    _coefficient, _penalty, _method, _moment, _ascent, _accumulation, _optimizer, _others,
)  # fmt: skip


def mesh_problems(config: ml_collections.ConfigDict, devices: int) -> list[str]:
    """Return what is wrong with the axes of the mesh on so many devices: one line, or none."""
    data, fsdp = config.mesh.data, config.mesh.fsdp
    product, given = data * fsdp, f"mesh.data = {data} and mesh.fsdp = {fsdp}"
    if data == fsdp == -1:
        return [f"{given}: only one of them can be -1, all the rest"]
    if product > 0 and product != devices:
        return [
            f"{given} are for {product} devices, and there are {devices}: their product must "
            "be that number; -1 in one of them is all the rest"
        ]
    if product < 0 and devices % -product:
        return [
            f"{given}: {-product} does not divide the number of devices, {devices}: allowed is "
            f"{_divisors(devices)}"
        ]
    return []


def group_size(config: ml_collections.ConfigDict, devices: int) -> int:
    """Return how many examples share a perturbation and batch statistics."""
    if config.gnp.r == 0 or config.gnp.sync_perturbations:
        return int(config.batch_size)
    return config.gnp.m or max(1, config.batch_size // devices)


def _batch_on_devices(config: ml_collections.ConfigDict, devices: int) -> Iterator[str]:
    batch, count = config.batch_size, config.accumulate_steps
    if batch % devices:
        yield (
            f"batch_size = {batch} cannot be split over {devices} devices: "
            f"choose a multiple of {devices}"
        )
        return  # the rest is about a device's whole share
    share, group = batch // devices, group_size(config, devices)
    if group < batch and share % group:
        yield (
            f"gnp.m = {group} does not divide a device's share of the batch, {share} of "
            f"{batch} examples on {devices} devices: allowed is {_divisors(share)}, {batch}"
        )
    if batch // count % devices:
        yield (
            f"accumulate_steps = {count} leaves micro-batches of {batch // count} "
            f"examples, which cannot be split over {devices} devices: batch_size must be a "
            f"multiple of {count * devices}"
        )
    at_once, name = batch, "batch_size"
    if count > 1:
        at_once, name = batch // count, "batch_size / accumulate_steps"
    elif group < batch:
        at_once, name = group, "gnp.m"
    taken, of = ascent_rows(config.gnp.ascent_share)
    if at_once // devices % of:
        yield (
            f"gnp.ascent_share = {config.gnp.ascent_share:g} takes {taken} of every {of} examples, "
            f"and {of} does not divide a device's share of {name}, {at_once // devices}"
        )
        return
    if of > 1:  # what divides the share and the whole
        at_once, name = at_once // of, f"{name} / {of}"
    statistics = config.model.model_params.get("batch_norm_group")
    if statistics is not None and at_once % statistics:
        yield (
            f"model_params.batch_norm_group = {statistics} does not divide {name} = {at_once}, the "
            f"examples that the model is given at once: allowed is {_divisors(at_once)}"
        )


def _last_batch(config: ml_collections.ConfigDict, devices: int, examples: int) -> Iterator[str]:
    """The smaller batch at an epoch's end has to fit what every batch has to."""
    left = examples % config.batch_size
    if not config.dataset.keep_last_batch or not left:
        return
    last = config.copy_and_resolve_references()
    last.batch_size = left
    if config.gnp.m == config.batch_size:  # the group is the batch
        last.gnp.m = left
    for line in (*_penalty(last), *_accumulation(last), *_batch_on_devices(last, devices)):
        yield (
            f"dataset.keep_last_batch = True leaves a batch of {left} of {examples} examples, for "
            f"which {line}; or set it to False"
        )


def _divisors(count: int) -> str:
    return ", ".join(str(size) for size in range(1, count + 1) if count % size == 0)
