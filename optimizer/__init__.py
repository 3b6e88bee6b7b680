"""Optax transformations that shape the gradient.

Each is one line in a training loop of your own; nothing here needs the rest of gnp. From the
checkout the package is `optimizer`, installed alone it is `gnp_optimizer`.
"""

from ._checks import OptimizerError as OptimizerError
from .build import OPTIMIZERS as OPTIMIZERS
from .build import Schedules as Schedules
from .build import build_optimizer as build_optimizer
from .build import build_schedules as build_schedules
from .build import build_step_rule as build_step_rule
from .build import check_opt_params as check_opt_params
from .build import decay_mask as decay_mask
from .build import opt_param_names as opt_param_names
from .gradient_norm_penalty import METHODS as METHODS
from .gradient_norm_penalty import GradientNormPenaltyState as GradientNormPenaltyState
from .gradient_norm_penalty import gradient_norm_penalty as gradient_norm_penalty
from .schedules import SCHEDULES as SCHEDULES
from .schedules import STRATEGIES as STRATEGIES
from .schedules import gnp_warmup as gnp_warmup
from .schedules import learning_rate_schedule as learning_rate_schedule
