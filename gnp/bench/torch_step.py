"""Training steps in PyTorch, plain and with SAM, measured on demand by `gnp.bench.peers`.

A script for the interpreter of another environment: it imports nothing of gnp. The networks are
those of gnp's models of the same names, whose parameters it loads; modules and parameters carry
gnp's names. It prints PyTorch's version and the number of parameters once it is ready. Then it
reads lines:

    outputs FILE        the logits of the batch in evaluation, to a file; answers "done"
    step KIND FILE      one step from the loaded parameters, which come back after it; the
                        parameters of that step to a file; answers "done"
    plain N, sam N      answers the seconds a step over N steps after one that is not counted

    python torch_step.py MODEL WEIGHTS.npz BATCH.npz RADIUS THREADS

Convolutions get images in the channels-last layout. PyTorch's padding of a 3 x 3 convolution in
steps of 2 is a pixel at each edge; gnp's wide residual networks have it behind the last one only.
"outputs" and "step" pad as gnp does, to compare numbers. The measured steps pad as PyTorch does,
which saves them a copy of the image.
"""

import copy
import importlib
import re
import sys
import time
from collections.abc import Callable, Iterator
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

LEARNING_RATE, MOMENTUM = 1e-3, 0.9
_VIT_SIZES = {"TI": (192, 3, 12), "S": (384, 6, 12), "B": (768, 12, 12), "L": (1024, 16, 24)}
_RESNET_BLOCKS = {"18": (2, 2, 2, 2), "34": (3, 4, 6, 3)}
_RENAMED = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def conv(channels: int, features: int, size: int = 3, stride: int = 1) -> Any:
    """Return a convolution without a bias."""
    return nn.Conv2d(channels, features, size, stride, padding=size // 2, bias=False)


class SameConv(Module):
    """A 3 x 3 convolution in steps of 2 that can pad as gnp does.

    Args:
        channels: of the input.
        features: of the output.
    """

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(features, channels, 3, 3))
        self.as_gnp = False

    def forward(self, x: Any) -> Any:
        """Map [b, c, h, w] -> [b, features, h / 2, w / 2]."""
        if self.as_gnp:
            return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, stride=2)
        return F.conv2d(x, self.weight, stride=2, padding=1)


class WideBlock(Module):
    """A pre-activation block of a wide residual network.

    Args:
        channels: of the input.
        features: of the output.
        stride: step of the first convolution.
    """

    def __init__(self, channels: int, features: int, stride: int) -> None:
        super().__init__()
        self.norm_1 = nn.BatchNorm2d(channels)
        if channels != features or stride != 1:
            self.shortcut = conv(channels, features, 1, stride)
        self.conv_1 = conv(channels, features) if stride == 1 else SameConv(channels, features)
        self.norm_2 = nn.BatchNorm2d(features)
        self.conv_2 = conv(features, features)

    def forward(self, x: Any) -> Any:
        """Map [b, c, h, w] -> [b, features, h / stride, w / stride]."""
        y = F.relu(self.norm_1(x), inplace=True)
        x = self.shortcut(y) if hasattr(self, "shortcut") else x
        return x + self.conv_2(F.relu(self.norm_2(self.conv_1(y)), inplace=True))


class WideResNet(Module):
    """A wide residual network.

    Args:
        depth: 6 n + 4.
        width: factor of the channels.
    """

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.stem, channels = conv(3, 16), 16
        for group in range(3):
            for block in range((depth - 4) // 6):
                features = 16 * width * 2**group
                stride = 2 if group > 0 and block == 0 else 1
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
    """A block of two convolutions of a residual network.

    Args:
        channels: of the input.
        features: of the output.
        stride: step of the first convolution.
    """

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
    """A residual network of basic blocks with the stem for small images.

    Args:
        blocks: of each stage.
    """

    def __init__(self, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1, self.bn1, channels = conv(3, 64), nn.BatchNorm2d(64), 64
        for stage, count in enumerate(blocks):
            for block in range(count):
                features, stride = 64 * 2**stage, 2 if stage > 0 and block == 0 else 1
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


class Attention(Module):
    """Self-attention with PyTorch's own kernel.

    Args:
        channels: of a token.
        heads: number of heads.
        rate: of both dropouts.
    """

    def __init__(self, channels: int, heads: int, rate: float) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.heads, self.rate = heads, rate

    def forward(self, x: Any) -> Any:
        """Map [b, n, c] -> [b, n, c]."""
        b, n, c = x.shape
        query, key, value = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        rate = self.rate if self.training else 0.0
        y = F.scaled_dot_product_attention(query, key, value, dropout_p=rate)
        y = self.proj(y.transpose(1, 2).reshape(b, n, c))
        return F.dropout(y, self.rate, self.training)


class Mlp(Module):
    """Two products with GELU between them.

    Args:
        channels: of a token.
        rate: of both dropouts.
    """

    def __init__(self, channels: int, rate: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.rate = rate

    def forward(self, x: Any) -> Any:
        """Map [b, n, c] -> [b, n, c]."""
        y = F.dropout(F.gelu(self.fc1(x)), self.rate, self.training)
        return F.dropout(self.fc2(y), self.rate, self.training)


class ViTBlock(Module):
    """A block of a vision transformer.

    Args:
        channels: of a token.
        heads: number of heads.
        rate: of all dropouts.
    """

    def __init__(self, channels: int, heads: int, rate: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(channels, eps=1e-6) for _ in range(2))
        self.attn, self.mlp = Attention(channels, heads, rate), Mlp(channels, rate)

    def forward(self, x: Any) -> Any:
        """Map [b, n, c] -> [b, n, c]."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(Module):
    """Patches as tokens.

    Args:
        channels: of a token.
        patch: its side in pixels.
    """

    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, patch, patch)

    def forward(self, x: Any) -> Any:
        """Map [b, 3, h, w] -> [b, n, c]."""
        return self.proj(x).flatten(2).transpose(1, 2)


class ViT(Module):
    """A vision transformer with a class token.

    Args:
        patch: side of a patch in pixels.
        tokens: patches of an image, and the class token.
        channels: of a token.
        heads: number of heads.
        depth: number of blocks.
        rate: of all dropouts.
    """

    def __init__(
        self, patch: int, tokens: int, channels: int, heads: int, depth: int, rate: float = 0.1
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(channels, patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, channels))
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, channels))
        for index in range(depth):
            self.add_module(f"blocks_{index}", ViTBlock(channels, heads, rate))
        self.norm, self.head = nn.LayerNorm(channels, eps=1e-6), nn.Linear(channels, 10)
        self.rate = rate

    def forward(self, x: Any) -> Any:
        """Map [b, 3, h, w] -> [b, 10]."""
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        x = F.dropout(x, self.rate, self.training)
        for name, block in self.named_children():
            x = block(x) if name.startswith("blocks") else x
        return self.head(self.norm(x[:, 0]))


def build(name: str, pixels: int) -> Any:
    """Build the network of a name.

    Args:
        name: of one of gnp's models.
        pixels: side of an image.

    Raises:
        SystemExit: there is none here.
    """
    if found := re.fullmatch(r"WideResNet_(\d+)_(\d+)", name):
        return WideResNet(int(found[1]), int(found[2]))
    if (found := re.fullmatch(r"ResNet(\d+)", name)) and found[1] in _RESNET_BLOCKS:
        return ResNet(_RESNET_BLOCKS[found[1]])
    if found := re.fullmatch(r"ViT_(TI|S|B|L)(\d+)", name):
        patch = int(found[2])
        return ViT(patch, 1 + (pixels // patch) ** 2, *_VIT_SIZES[found[1]])
    sys.exit(f"{name} is not written in PyTorch: there are WideResNet_*, ResNet18, 34 and ViT_*")


class SAM:
    """Sharpness-aware minimization around an optimizer: one step is two gradients.

    The second gradient, which the optimizer gets, is that at theta + radius * g / |g|, with the
    norm over all parameters. Batch norm's running statistics follow the first pass only.

    Args:
        network: in training.
        optimizer: of its parameters.
        radius: length of the perturbation.

    References:
        Foret et al., 2020: https://arxiv.org/abs/2010.01412
    """

    def __init__(self, network: Any, optimizer: Any, radius: float) -> None:
        self._parameters = list(network.parameters())
        self._norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        self._optimizer, self._radius = optimizer, radius

    def step(self, gradient: Callable[[], Any]) -> Any:
        """Take a step; return the loss.

        Args:
            gradient: computes the parameters' gradients where they are; returns the loss.
        """
        loss = gradient()
        with torch.no_grad():
            grads = [p.grad for p in self._parameters]
            factor = self._radius / torch.linalg.vector_norm(
                torch.stack(torch._foreach_norm(grads))
            )
            moves = torch._foreach_mul(grads, factor)
            torch._foreach_add_(self._parameters, moves)
        for norm in self._norms:
            norm.momentum, norm.kept = 0.0, norm.momentum
        gradient()
        for norm in self._norms:
            norm.momentum = norm.kept
        with torch.no_grad():
            torch._foreach_sub_(self._parameters, moves)
        self._optimizer.step()
        return loss


class Trainer:
    """A network with its batch and steps.

    Args:
        network: with its parameters loaded.
        images: [b, h, w, c].
        labels: [b].
        radius: of SAM.
        device: "cpu" or "cuda".
    """

    def __init__(
        self, network: Any, images: np.ndarray, labels: np.ndarray, radius: float, device: str
    ) -> None:
        self.network = network.to(device, memory_format=torch.channels_last).train()
        x = torch.from_numpy(images).permute(0, 3, 1, 2)
        self._images = x.to(device).contiguous(memory_format=torch.channels_last)
        self._labels = torch.from_numpy(labels).long().to(device)
        self._radius, self._device = radius, device
        self.reset(self.network)

    def reset(self, network: Any) -> None:
        """Go on with a network, and with an optimizer without momentum yet."""
        self.network = network
        self._optimizer = torch.optim.SGD(
            network.parameters(), LEARNING_RATE, MOMENTUM, nesterov=True, fused=True
        )
        self._sam = SAM(network, self._optimizer, self._radius)

    def gradient(self) -> Any:
        """Return the loss; its gradients are where PyTorch keeps them."""
        self._optimizer.zero_grad()
        loss = F.cross_entropy(self.network(self._images), self._labels)
        loss.backward()
        return loss

    def step(self, kind: str) -> Any:
        """Take one step, "plain" or "sam"; return the loss."""
        if kind == "sam":
            return self._sam.step(self.gradient)
        loss = self.gradient()
        self._optimizer.step()
        return loss

    def outputs(self) -> Any:
        """Return the logits of the batch in evaluation."""
        self.network.eval()
        with torch.no_grad():
            logits = self.network(self._images)
        self.network.train()
        return logits.cpu().numpy()

    def seconds(self, kind: str, steps: int) -> float:
        """Return seconds a step, over a number of steps after one that is not counted."""
        self.step(kind)
        self._wait()
        start = time.perf_counter()
        for _ in range(steps):
            self.step(kind)
        self._wait()
        return (time.perf_counter() - start) / steps

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


def to_torch(name: str, value: np.ndarray) -> tuple[str, Any]:
    """Return name and layout of one of gnp's arrays in PyTorch.

    Args:
        name: path in gnp's tree, such as "head/kernel".
        value: its numbers.
    """
    *modules, leaf = name.split("/")
    if leaf == "kernel":
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    return ".".join([*modules, _RENAMED.get(leaf, leaf)]), torch.from_numpy(value.copy())


def to_gnp(network: Any, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield gnp's name of each parameter and its numbers in gnp's layout.

    Args:
        network: in PyTorch.
        names: gnp's.
    """
    state = network.state_dict()
    for name in names:
        *modules, leaf = name.split("/")
        value = state[".".join([*modules, _RENAMED.get(leaf, leaf)])].cpu().numpy()
        if leaf == "kernel":
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        yield name, np.ascontiguousarray(value)


def load(network: Any, weights: dict[str, np.ndarray]) -> None:
    """Give a network gnp's numbers.

    Raises:
        SystemExit: an array has no place, or a place no array.
    """
    state = dict(to_torch(name, value) for name, value in weights.items())
    counters = {name for name in network.state_dict() if name.endswith("num_batches_tracked")}
    try:
        left = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        sys.exit(" ".join(str(error).split()))
    wrong = [*(set(left.missing_keys) - counters), *left.unexpected_keys]
    if wrong:
        sys.exit(f"these arrays are in one of the two networks only: {', '.join(sorted(wrong))}")


def _pad_as_gnp(network: Any, as_gnp: bool) -> None:
    for module in network.modules():
        if isinstance(module, SameConv):
            module.as_gnp = as_gnp


def _compare(trainer: Trainer, question: list[str], names: list[str]) -> None:
    """Answer "outputs" and "step", padding as gnp does."""
    original = trainer.network
    copied = copy.deepcopy(original)
    _pad_as_gnp(copied, True)
    trainer.reset(copied)
    if question[0] == "outputs":
        np.save(question[1], trainer.outputs())
    else:
        trainer.step(question[1])
        np.savez(question[2], **dict(to_gnp(copied, names)))  # type: ignore[arg-type]
    trainer.reset(original)


def main(name: str, weights: str, batch: str, radius: float, threads: int) -> None:
    """Answer until there is nothing more to read."""
    if torch is None:
        sys.exit("no module named torch")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    loaded, examples = dict(np.load(weights)), np.load(batch)
    images = examples["input"]
    network = build(name, images.shape[1])
    load(network, loaded)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trainer = Trainer(network, images, examples["label"], radius, device)
    print(torch.__version__, sum(p.numel() for p in network.parameters()), flush=True)
    for line in sys.stdin:
        question = line.split()
        if question[0] in ("outputs", "step"):
            _compare(trainer, question, list(loaded))
            print("done", flush=True)
        else:
            print(trainer.seconds(question[0], int(question[1])), flush=True)


if __name__ == "__main__":
    _, model, weights, batch, radius, threads = sys.argv
    main(model, weights, batch, float(radius), int(threads))
