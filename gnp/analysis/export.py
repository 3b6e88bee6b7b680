"""Write the weights of a run as .safetensors, with the names and the layout of PyTorch.

    python -m gnp.analysis.export RUN [--checkpoint=STEP|best] [--out=FILE.safetensors]

RUN is a run directory. Of its checkpoint, by default the best one where early stopping says which
that is, else the newest, go the parameters (their moving average where the run keeps one) and the
batch statistics into --out, by default RUN/weights.safetensors. `model.pretrained` reads the file
again, to the bit; docs/pretrained.md says what else does. Exit codes: 0 done; 2 the command line
or RUN is wrong; 1 anything that files show; 130 Ctrl-C.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from absl import logging as absl_logging
from safetensors.numpy import save

import model
from gnp.analysis.command_line import (
    Parser,
    UsageError,
    checkpoint_step,
    local_path,
    make_folder,
    run,
)
from gnp.terminal import one_line, prepare_streams, warn
from gnp.training.checkpoint import CheckpointError, read_checkpoint
from gnp.training.early_stopping import BEST
from gnp.training.files import replaced
from gnp.training.run_directory import RunDirectoryError, read_config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, None being the process' own, and return the exit code."""
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    return run(
        lambda: _export(_parse(arguments)),
        (RunDirectoryError, model.ModelError),
        (CheckpointError,),
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m gnp.analysis.export", description=__doc__)
    parser.add_argument("directory", metavar="RUN", type=local_path, help="run directory")
    parser.add_argument("--checkpoint", metavar="STEP", type=checkpoint_step, help="or best")
    parser.add_argument("--out", metavar="FILE", type=local_path, help="ends in .safetensors")
    return parser.parse_args(arguments)


def _export(options: argparse.Namespace) -> None:
    out = options.out or options.directory / "weights.safetensors"
    if out.suffix != ".safetensors":
        raise UsageError(f"--out={out}: a file that ends in .safetensors is needed")
    config = read_config(options.directory)
    has_best = config.get("early_stopping.metric") is not None
    checkpoint = BEST if options.checkpoint is None and has_best else options.checkpoint
    restored = read_checkpoint(options.directory, None, checkpoint)
    for warning in restored.warnings:
        warn(warning)
    state, averaged = restored.state, restored.state.ema is not None
    weights = model.to_pytorch(state.ema if averaged else state.params, state.model_state)
    make_folder(out.parent)
    with replaced(out) as file:
        file.write(save(weights))
    which = f"{'the averaged weights' if averaged else 'the weights'} of step {restored.step}"
    print(f"{which}, {len(weights)} arrays, in {one_line(out)}")


if __name__ == "__main__":
    prepare_streams()
    sys.exit(main())
