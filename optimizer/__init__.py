"""Optax transformations that shape the gradient.

Each is one line in a training loop of your own; nothing here needs the rest of gnp. From the
checkout the package is `optimizer`, installed alone it is `gnp_optimizer`.
"""

from ._checks import OptimizerError as OptimizerError
from .adamg import ScaleByAdamgState as ScaleByAdamgState
from .adamg import adamg as adamg
from .axes import Axes as Axes
from .axes import axes_of as axes_of
from .axes import flax_axes as flax_axes
from .axes import output_first as output_first
from .axes import unknown_axes as unknown_axes
from .build import CENTRALIZE as CENTRALIZE
from .build import CENTRALIZE_AT as CENTRALIZE_AT
from .build import OPTIMIZERS as OPTIMIZERS
from .build import WHERE as WHERE
from .build import Schedules as Schedules
from .build import build_optimizer as build_optimizer
from .build import build_penalized_gradient as build_penalized_gradient
from .build import build_penalty as build_penalty
from .build import build_schedules as build_schedules
from .build import build_step_rule as build_step_rule
from .build import check_opt_params as check_opt_params
from .build import opt_param_names as opt_param_names
from .build_masks import GRASSMANN_OPTIMIZERS as GRASSMANN_OPTIMIZERS
from .build_masks import build_labels as build_labels
from .build_masks import decay_mask as decay_mask
from .build_masks import l2_coefficients as l2_coefficients
from .centralization import centralize as centralize
from .centralization import is_convolution as is_convolution
from .constraints import ConstraintState as ConstraintState
from .constraints import constrain as constrain
from .gradient_norm_penalty import METHODS as METHODS
from .gradient_norm_penalty import GradientNormPenaltyState as GradientNormPenaltyState
from .gradient_norm_penalty import gradient_norm_penalty as gradient_norm_penalty
from .gradient_norm_penalty import penalized_gradient as penalized_gradient
from .grassmann import grassmann_labels as grassmann_labels
from .grassmann import orthogonality_penalty as orthogonality_penalty
from .grassmann import unit_norm as unit_norm
from .groups import map_groups as map_groups
from .groups import per_group as per_group
from .looksam import LookSAMState as LookSAMState
from .looksam import looksam as looksam
from .parameters import is_normalization as is_normalization
from .parameters import parameter_kinds as parameter_kinds
from .recorder import GradientEvolution as GradientEvolution
from .recorder import GradientEvolutionState as GradientEvolutionState
from .recorder import end_epoch as end_epoch
from .recorder import record_gradient_evolution as record_gradient_evolution
from .schedules import MAX_STEPS as MAX_STEPS
from .schedules import SCHEDULES as SCHEDULES
from .schedules import STRATEGIES as STRATEGIES
from .schedules import gnp_warmup as gnp_warmup
from .schedules import learning_rate_schedule as learning_rate_schedule
from .sgdg import ScaleBySgdgState as ScaleBySgdgState
from .sgdg import sgdg as sgdg
