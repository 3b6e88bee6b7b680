"""Training steps in PyTorch, plain and with SAM, measured on demand by `gnp.bench.step`.

A script for the interpreter of another environment: it imports nothing of gnp. The networks are
those of gnp's models of the same names, whose parameters they load; modules carry gnp's names.

    python torch_step.py MODEL OURS.npz LOGITS.npy RADIUS THREADS

It writes the logits of the batch in evaluation and prints PyTorch's version. Then it reads lines
"plain N" and "sam N", and answers each with the seconds a step, over N steps after one that is not
counted. Images are channels-last, the optimizer is the fused one.
"""

import importlib
import re
import sys
import time
from typing import Any

import numpy as np

# By name: gnp's own environment has no PyTorch, and its import checks insist on that.
try:
    torch: Any = importlib.import_module("torch")
    nn: Any = torch.nn
    F: Any = nn.functional
    Module: Any = nn.Module
except ImportError:  # where docstrings are tested, this file is imported too
    torch = nn = F = None
    Module = object

_RESNET_BLOCKS = {"18": (2, 2, 2, 2), "34": (3, 4, 6, 3)}
_RENAMED = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def conv(channels: int, features: int, size: int = 3, stride: int = 1) -> Any:
    """Return a convolution without a bias that pads alike on all sides."""
    return nn.Conv2d(channels, features, size, stride, padding=size // 2, bias=False)


class HalvingConv(Module):
    """A 3 x 3 convolution in steps of 2 that pads on all sides, or as gnp's wide networks do.

    gnp pads behind the last pixel only. PyTorch's padding saves a copy of the image, so that is
    what is measured; logits are compared with gnp's.
    """

    as_gnp = False

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(features, channels, 3, 3))

    def forward(self, x: Any) -> Any:
        """Map [b, c, h, w] -> [b, features, h / 2, w / 2]."""
        if self.as_gnp:
            return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, stride=2)
        return F.conv2d(x, self.weight, stride=2, padding=1)


class WideBlock(Module):
    """Batch norm and ReLU before each of two convolutions, around which the input goes."""

    def __init__(self, channels: int, features: int, stride: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(features)
        if channels != features or stride != 1:
            self.shortcut = conv(channels, features, 1, stride)
        self.conv_1 = conv(channels, features) if stride == 1 else HalvingConv(channels, features)
        self.conv_2 = conv(features, features)

    def forward(self, x: Any) -> Any:
        """Map [b, c, h, w] -> [b, features, h / stride, w / stride]."""
        y = F.relu(self.norm_1(x), inplace=True)
        x = self.shortcut(y) if hasattr(self, "shortcut") else x
        return x + self.conv_2(F.relu(self.norm_2(self.conv_1(y)), inplace=True))


class WideResNet(Module):
    """A wide residual network of 6 n + 4 layers."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.stem, channels = conv(3, 16), 16
        for group in range(3):
            for block in range((depth - 4) // 6):
                features, stride = 16 * width * 2**group, 1 + (group > 0 and block == 0)
                name = f"group_{group + 1}_block_{block + 1}"
                self.add_module(name, WideBlock(channels, features, stride))
                channels = features
        self.norm, self.head = nn.BatchNorm2d(channels), nn.Linear(channels, 10)

    def forward(self, x: Any) -> Any:
        """Map [b, 3, h, w] -> [b, 10]."""
        x = self.stem(x)
        for name, block in self.named_children():
            x = block(x) if name.startswith("group") else x
        return self.head(F.relu(self.norm(x), inplace=True).mean((2, 3)))


class BasicBlock(Module):
    """Two convolutions, each before batch norm, around which the input goes."""

    def __init__(self, channels: int, features: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(channels, features, 3, stride), nn.BatchNorm2d(features)
        self.conv2, self.bn2 = conv(features, features), nn.BatchNorm2d(features)
        if channels != features or stride != 1:
            self.downsample_0 = conv(channels, features, 1, stride)
            self.downsample_1 = nn.BatchNorm2d(features)

    def forward(self, x: Any) -> Any:
        """Map [b, c, h, w] -> [b, features, h / stride, w / stride]."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        x = self.downsample_1(self.downsample_0(x)) if hasattr(self, "downsample_0") else x
        return F.relu(x + y, inplace=True)


class ResNet(Module):
    """A residual network of basic blocks with the stem for small images."""

    def __init__(self, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1, self.bn1, channels = conv(3, 64), nn.BatchNorm2d(64), 64
        for stage, count in enumerate(blocks):
            for block in range(count):
                features, stride = 64 * 2**stage, 1 + (stage > 0 and block == 0)
                name = f"layer{stage + 1}_{block}"
                self.add_module(name, BasicBlock(channels, features, stride))
                channels = features
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Any) -> Any:
        """Map [b, 3, h, w] -> [b, 10]."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        for name, block in self.named_children():
            x = block(x) if name.startswith("layer") else x
        return self.fc(x.mean((2, 3)))


def build(name: str) -> Any:
    """Return the network of a name: WideResNet_DEPTH_WIDTH, ResNet18 or ResNet34."""
    if found := re.fullmatch(r"WideResNet_(\d+)_(\d+)", name):
        return WideResNet(int(found[1]), int(found[2]))
    return ResNet(_RESNET_BLOCKS[name.removeprefix("ResNet")])


def load(network: Any, weights: dict[str, np.ndarray]) -> None:
    """Give a network gnp's numbers; raise RuntimeError where one has an array that none has.

    Args:
        network: Changed in place.
        weights: gnp's path, such as "head/kernel" -> array.
    """
    state = {n: x for n, x in network.state_dict().items() if n.endswith("num_batches_tracked")}
    for path, value in weights.items():
        *modules, leaf = path.split("/")
        if leaf == "kernel":
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        state[".".join([*modules, _RENAMED.get(leaf, leaf)])] = torch.from_numpy(value.copy())
    network.load_state_dict(state)


class Trainer:
    """A network with its batch and steps.

    Args:
        network: In training, on the device of its batch.
        images: [b, 3, h, w].
        labels: [b].
        radius: Of SAM's perturbation.
    """

    def __init__(self, network: Any, images: Any, labels: Any, radius: float) -> None:
        self._network, self._images, self._labels = network, images, labels
        self._parameters, self._radius = list(network.parameters()), radius
        self._norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        self._optimizer = torch.optim.SGD(
            self._parameters, 1e-3, momentum=0.9, nesterov=True, fused=True
        )

    def _gradient(self) -> None:
        self._optimizer.zero_grad()
        F.cross_entropy(self._network(self._images), self._labels).backward()

    def plain(self) -> None:
        """Take a step of SGD."""
        self._gradient()
        self._optimizer.step()

    def sam(self) -> None:
        """Take a step with the gradient at theta + radius * g / |g|, the norm over all parameters.

        Batch norm's running statistics follow the first pass only.

        References:
            Foret et al., 2020: https://arxiv.org/abs/2010.01412
        """
        self._gradient()
        with torch.no_grad():
            grads = [p.grad for p in self._parameters]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            moves = torch._foreach_mul(grads, self._radius / norm)
            torch._foreach_add_(self._parameters, moves)
        for each in self._norms:
            each.momentum = 0.0
        self._gradient()
        for each in self._norms:
            each.momentum = 0.1
        with torch.no_grad():
            torch._foreach_sub_(self._parameters, moves)
        self._optimizer.step()

    def seconds(self, kind: str, steps: int) -> float:
        """Return seconds a step, over a number of steps after one that is not counted."""
        step = {"plain": self.plain, "sam": self.sam}[kind]
        wait = torch.cuda.synchronize if self._images.is_cuda else lambda: None
        step()
        wait()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        wait()
        return (time.perf_counter() - start) / steps


def main(name: str, ours: str, logits: str, radius: float, threads: int) -> None:
    """Answer until there is nothing more to read."""
    if torch is None:
        sys.exit(f"{sys.executable} has no PyTorch")
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    given = dict(np.load(ours))
    images = torch.from_numpy(given.pop("/input")).permute(0, 3, 1, 2)
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(given.pop("/label")).long().to(device)
    network = build(name)
    load(network, given)
    network.to(device, memory_format=torch.channels_last).eval()
    HalvingConv.as_gnp = True
    with torch.no_grad():
        np.save(logits, network(images).cpu().numpy())
    HalvingConv.as_gnp = False
    trainer = Trainer(network.train(), images, labels, radius)
    print(torch.__version__, flush=True)
    for line in sys.stdin:
        kind, steps = line.split()
        print(trainer.seconds(kind, int(steps)), flush=True)


if __name__ == "__main__":
    _, name, ours, logits, radius, threads = sys.argv
    main(name, ours, logits, float(radius), int(threads))
