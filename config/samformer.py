"""SAMformer, a forecast by attention between channels, on a series such as ETTh1.

    python -m gnp.main.main --config=config/samformer.py --working_dir=runs/samformer \
        --config.dataset.data_dir=ETTh1.csv --config.dataset.horizon=96
    bash recipe/samformer-etth1.sh --config.dataset.data_dir=ETTh1.csv    # the published table

Any CSV file with a time column and numbers will do; without data_dir a series is generated. As
published (Ilbert et al., ICML 2024, https://arxiv.org/abs/2402.10198): look-back 512, batches of
32, Adam at 1e-3 with Keras' epsilon, a cosine over epochs that restarts every 5, at most 100
epochs, early stopping with patience 5 on the validation loss; the best checkpoint is the result.
SAM is the penalty with gnp.alpha=1; plain training: --config.gnp.r=0 --config.gnp.alpha=0. An
epoch leaves out the windows that fill no batch, at most 31.

On ETTh1 at horizon 96, test_loss, the mean squared error, is 0.37 (published: 0.381), after one to
two minutes on two cores; docs/results.md has the table.
"""

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
