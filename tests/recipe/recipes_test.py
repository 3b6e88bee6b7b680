"""Arguments that the recipes hand on, where Python and command line only say what they got."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recipe.sweep import read_axes

ROOT = Path(__file__).resolve().parents[2]
RECIPES = (
    *("all-smoke.sh", "experiment.sh", "label-noise-cifar10.sh", "mnist-tutorial.sh"),
    *("quickstart.sh", "riemannian-svhn.sh", "samformer-etth1.sh", "sweep.sh", "test.sh"),
    "verdict.sh",
)


class Checkout:
    """A checkout of the recipes alone, called from another folder."""

    def __init__(self, folder: Path):
        self.root = folder / "check out"
        self.caller = folder / "caller"
        self.said = folder / "said"
        (self.root / "recipe").mkdir(parents=True)
        self.caller.mkdir()
        for name in RECIPES:
            shutil.copy(ROOT / "recipe" / name, self.root / "recipe")
        python = folder / "python"
        python.write_text(
            "#!/bin/bash\n"
            f'{{ printf "%s\\x1f" "$PWD" "$@"; printf "\\x1e"; }} >>"{self.said}"\n'
            'printf %s "$JAX_DISABLE_MOST_OPTIMIZATIONS"\n'
            "exit $STATUS\n"
        )
        python.chmod(0o755)
        setup = f'ROOT="{self.root}"\nPYTHON="{python}"\n'
        (self.root / "recipe/setup.sh").write_text(setup)

    def run(self, name: str, *arguments: str, **environment: str):
        """Runs a recipe; returns the process and, for each call of Python, its arguments."""
        done = subprocess.run(
            ["bash", f"../check out/recipe/{name}", *arguments],
            capture_output=True,
            check=False,
            cwd=self.caller,
            env={"PATH": os.environ["PATH"], "STATUS": "0"} | environment,
            text=True,
        )
        calls = self.said.read_text().split("\x1e")[:-1] if self.said.exists() else []
        self.said.unlink(missing_ok=True)
        lines = [call.split("\x1f")[:-1] for call in calls]
        assert all(line[0] == str(self.caller) for line in lines)
        assert list(self.caller.iterdir()) == []
        return done, [line[1:] for line in lines]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A checkout of its own for every test."""
    return Checkout(tmp_path)


def test_quickstart(checkout: Checkout):
    """Plain, penalized, and both side by side."""
    runs, folder = f"{checkout.root}/runs/quickstart", "a b"
    head = ["-P", "-m", "gnp.main.main", f"--config={checkout.root}/config/digits_noise.py"]
    off = ["--config.gnp.r=0", "--config.gnp.alpha=0"]
    for given, directory in (([], runs), ([f"--working_dir={folder}", "--config.seeds=1"], folder)):
        _, calls = checkout.run("quickstart.sh", *given)
        assert calls == [
            [*head, *given, *off, f"--working_dir={directory}/plain"],
            [*head, *given, f"--working_dir={directory}/penalized"],
            [
                *("-P", "-m", "gnp.analysis.compare"),
                *(f"{directory}/plain", f"{directory}/penalized"),
                f"--out={directory}/comparison.png",
            ],
        ]


def test_quickstart_ends_where_a_run_does_not_come_to_its_end(checkout: Checkout):
    done, calls = checkout.run("quickstart.sh", STATUS="130")
    assert (done.returncode, len(calls)) == (130, 1)
    done, calls = checkout.run("quickstart.sh", SEEDS="0 1")
    assert (done.returncode, calls) == (2, [])
    assert "bash recipe/sweep.sh digits-noise 'gnp.r,gnp.alpha=(0,0),(0.1,1)' seeds" in done.stderr
    _, calls = checkout.run("quickstart.sh", "--help")
    assert [call[4:] for call in calls] == [
        ["--help", f"--working_dir={checkout.root}/runs/quickstart"]
    ]


@pytest.mark.slow
def test_the_quickstart_itself(tmp_path: Path):
    keys = ["--config.total_epochs=1", "--config.warmup_epochs=0", "--config.dataset.subset=128"]
    done = subprocess.run(
        ["bash", str(ROOT / "recipe/quickstart.sh"), "--working_dir=a b", *keys],
        capture_output=True,
        check=False,
        cwd=tmp_path,
        env=dict(os.environ) | {"VIRTUAL_ENV": sys.prefix},
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "wrong labels learned by heart" in done.stdout
    made = {path.name for path in (tmp_path / "a b").iterdir()}
    assert made == {"plain", "penalized", "comparison.png"}


@pytest.mark.parametrize("flag", [[], ["--working_dir=a b"], ["--working_dir", "a b"]])
def test_mnist_tutorial(checkout: Checkout, flag: list[str]):
    directory = "a b" if flag else f"{checkout.root}/runs/mnist-tutorial"
    head = ["-P", "-m", "gnp.main.main", f"--config={checkout.root}/config/mnist_tutorial.py"]
    _, [call] = checkout.run("mnist-tutorial.sh", *flag, "--mode=eval")
    assert call == [*head, *flag, "--mode=eval", f"--working_dir={directory}"]
    done, calls = checkout.run("mnist-tutorial.sh", *flag, SEEDS="0 12")
    assert done.returncode == 0
    assert calls == [
        [
            *head,
            *flag,
            *(f"--config.init_seeds={seed}", f"--config.seeds={seed}"),
            f"--working_dir={directory}/seed-{seed}",
        ]
        for seed in (0, 12)
    ]


def test_mnist_tutorial_stops_at_a_failed_seed(checkout: Checkout):
    done, calls = checkout.run("mnist-tutorial.sh", SEEDS="0 1", STATUS="3")
    assert (done.returncode, len(calls)) == (3, 1)


def test_mnist_tutorial_refuses_seeds_that_are_not_numbers(checkout: Checkout):
    done, calls = checkout.run("mnist-tutorial.sh", SEEDS="0 1,2")
    assert (done.returncode, calls) == (2, [])
    assert done.stderr == (
        'SEEDS="0 1,2": "1,2" is not a whole number; use for example SEEDS="0 1 2"\n'
    )


@pytest.mark.parametrize("optimizer", ["", "SGD", "SGDG", "AdamG"])
def test_riemannian(checkout: Checkout, optimizer: str):
    chosen = (optimizer or "SGDG").lower()
    _, [call] = checkout.run("riemannian-svhn.sh", "--mode=eval", OPTIMIZER=optimizer)
    assert call == [
        *(
            "-P",
            "-m",
            "gnp.main.main",
            f"--config={checkout.root}/config/riemannian.py:svhn,{chosen}",
        ),
        "--mode=eval",
        f"--working_dir={checkout.root}/runs/riemannian-svhn-{chosen}",
    ]


def test_riemannian_refuses_another_optimizer(checkout: Checkout):
    done, calls = checkout.run("riemannian-svhn.sh", OPTIMIZER="sgdg")
    assert (done.returncode, calls) == (2, [])
    assert done.stderr == 'OPTIMIZER="sgdg": use SGD, SGDG or AdamG\n'


def test_sweep(checkout: Checkout):
    _, [call] = checkout.run("sweep.sh", "digits", "dataset.data_dir='a b',c")
    assert call == ["-P", "-m", "recipe.sweep", "digits", "dataset.data_dir='a b',c"]
    done, calls = checkout.run("sweep.sh", "digits", SEEDS="0 1")
    assert (done.returncode, calls) == (2, [])
    assert done.stderr == 'SEEDS="0 1" is for the recipes; here it is seeds=0,1\n'


def test_verdict(checkout: Checkout):
    _, [call] = checkout.run("verdict.sh", "--quick", "--data_dir=a b")
    assert call == ["-P", "-m", "gnp.bench.verdict", "--quick", "--data_dir=a b"]


def test_samformer_is_a_sweep_of_horizons_methods_and_seeds(checkout: Checkout):
    data = "--config.dataset.data_dir=ETTh1.csv"
    _, [call] = checkout.run("samformer-etth1.sh", data)
    assert call[2:4] == ["recipe.sweep", "samformer"] and call[5:] == ["seeds=0,1,2,3,4", data]
    (axis,) = read_axes([call[4]])
    assert axis.keys == ("dataset.horizon", "gnp.r", "gnp.alpha")
    horizons = (("96", "0.5"), ("192", "0.5"), ("336", "0.5"), ("720", "0.7"))
    assert axis.values == tuple(
        (horizon, *method)
        for horizon, r in horizons
        for method in ((r, "1"), (r, "0.8"), ("0", "0"))
    )


def test_label_noise_is_a_sweep_of_methods(checkout: Checkout):
    """All of a seed before the next one."""
    data = "--config.dataset.data_dir=DIR"
    methods = {("0", "0", "False"), ("0.1", "1", "False"), ("0.1", "0.8", "False")}
    for size, levels in (("full", ("0.2", "0.4", "0.6", "0.8")), ("small", ("0.4",))):
        _, [call] = checkout.run("label-noise-cifar10.sh", data, SIZE=size)
        assert call[2:4] == ["recipe.sweep", f"label_noise:{size}"] and call[-1] == data
        seeds, noise, method = read_axes(call[4:-1])
        assert [value[0] for value in seeds.values] == ["0", "1", "2"]
        assert [value[0] for value in noise.values] == list(levels)
        assert method.keys == ("gnp.r", "gnp.alpha", "gnp.adaptive", "opt.centralize")
        assert len(method.values) == 6
        assert {value[:3] for value in method.values} == {*methods, ("0.5", "1", "True")}
        assert {value[:2] for value in method.values if value[3] == "all"} == {
            ("0", "0"),
            ("0.1", "0.8"),
        }
    done, calls = checkout.run("label-noise-cifar10.sh", data, SIZE="tiny")
    assert (done.returncode, calls) == (2, [])
    assert done.stderr == 'SIZE="tiny": use full or small\n'


def test_all_smoke(checkout: Checkout):
    def tests_of(recipe: str) -> str:
        return " or ".join(f"[{recipe}{end}]" for end in ("", "-SGD", "-SGDG", "-AdamG"))

    tests = f"{checkout.root}/recipe/../tests/recipe/all_smoke_test.py"
    (checkout.root / "tests/recipe").mkdir(parents=True)
    Path(tests).touch()
    _, [call] = checkout.run("all-smoke.sh", "mnist-tutorial", "riemannian-svhn")
    assert call[call.index("-m", 3) :] == [
        *("-m", "", tests, "-v", "--durations=0"),
        *("-k", f"two_steps and ({tests_of('mnist-tutorial')} or {tests_of('riemannian-svhn')})"),
    ]
    done, calls = checkout.run("all-smoke.sh", "quickstart")
    assert (done.returncode, calls) == (2, [])
    assert done.stderr.startswith("quickstart is no recipe of an experiment")


def test_test(checkout: Checkout):
    _, [call] = checkout.run("test.sh", "-k", "a or b")
    root = str(checkout.root)
    head = ["-P", "-m", "pytest", "-c", f"{root}/pyproject.toml", f"--rootdir={root}"]
    head += ["-n", "2", "--dist", "worksteal"]
    folders = ["tests", "config", "ds_pipeline", "gnp", "model", "optimizer"]
    assert call == [*head, *(f"{root}/{folder}" for folder in folders), "-k", "a or b"]
    assert (checkout.root / ".cache/jax").is_dir()
    a_path = "../check out/recipe/test.sh::test_test"
    _, [call] = checkout.run("test.sh", "--slow", a_path)
    assert call == [*head, "-m", "", a_path]


@pytest.mark.parametrize(
    ("arguments", "given", "optimizations_off"),
    [
        ([], {}, "1"),
        ([], {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}, "0"),
        (["--slow"], {}, "1"),
        (["--slow"], {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}, "0"),
    ],
)
def test_what_the_tests_are_compiled_with(checkout: Checkout, arguments, given, optimizations_off):
    done, _ = checkout.run("test.sh", *arguments, **given)
    assert done.stdout == optimizations_off


def test_a_folder_of_the_caller_does_not_hide_ours(tmp_path: Path):
    checkout, caller = tmp_path / "checkout", tmp_path / "caller"
    for place, line in ((checkout, "import sys; print(sys.argv[-1])"), (caller, "1 / 0")):
        for module in ("gnp/main/main.py", "gnp/analysis/compare.py"):
            (place / module).parent.mkdir(parents=True)
            (place / module).write_text(line)
    (checkout / "recipe").mkdir()
    for name in ("quickstart.sh", "experiment.sh", "setup.sh"):
        shutil.copy(ROOT / "recipe" / name, checkout / "recipe")
    (checkout / "requirements.txt").write_text("packaging\n")
    folders = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "../checkout/recipe/quickstart.sh"],
        capture_output=True,
        check=False,
        cwd=caller,
        env={"PATH": folders, "VIRTUAL_ENV": sys.prefix},
        text=True,
    )
    runs = f"{checkout}/runs/quickstart"
    assert done.stdout.splitlines() == [
        *(f"--working_dir={runs}/plain", f"--working_dir={runs}/penalized"),
        f"--out={runs}/comparison.png",
    ], done.stderr


@pytest.mark.parametrize(
    "script", sorted((ROOT / "recipe").glob("*.sh")), ids=lambda path: path.name
)
def test_every_recipe_stops_at_errors(script: Path):
    text = script.read_text(encoding="utf-8")
    assert "\nset -euo pipefail\n" in text or "\nexperiment " in text  # experiment.sh sets it
    subprocess.run(["bash", "-n", str(script)], check=True)
