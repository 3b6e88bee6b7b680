"""SAMformer: a forecast by attention over the channels, which the penalty makes learn."""

import ml_collections

from config import default


def get_config() -> ml_collections.ConfigDict:
    """Return SAMformer's run."""
    config = default.get_config()
    config.dataset.dataset_name = "forecast"
    config.loss = "squared_error"
    config.model.model_name = "SAMformer"
    config.batch_size = 32
    config.eval_batch_size = 512
    config.total_epochs = 100
    config.early_stopping.metric = "validation_loss"
    config.early_stopping.patience = 5
    config.opt.opt_type = "Adam"
    config.opt.opt_params.eps = 1e-7
    config.opt.opt_params.eps_uncorrected = True
    config.base_lr = 1e-3
    config.lr_schedule_type = "cosine_restarts"
    config.lr_schedule_params.period = 5
    config.save_ckpt_every_n_epochs = 100
    config.gnp.r = 0.5
    config.gnp.alpha = 1.0
    return config
