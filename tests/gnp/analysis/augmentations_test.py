"""The picture of all augmentations."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ds_pipeline.augment import BATCH_LEVEL, IMAGE_LEVEL
from ds_pipeline.augment.operations import OPERATIONS
from gnp.analysis.augmentations import draw_panels, main


def test_every_augmentation_has_a_panel_that_shows_it() -> None:
    panels = draw_panels()
    wanted = {*IMAGE_LEVEL, *BATCH_LEVEL, *OPERATIONS, "Cutout", "original"}
    # aa-only and mixcut are parts of others; inception works on encoded photographs.
    assert {panel.name for panel in panels} == wanted - {"none", "aa-only", "mixcut", "inception"}
    original = panels[0].image
    for panel in panels[1:]:
        assert panel.image.shape == original.shape and panel.image.dtype == np.uint8
        assert (panel.image != original).any() and panel.strength


@pytest.mark.slow
def test_the_picture_is_written(tmp_path: Path) -> None:
    path = tmp_path / "all.png"
    assert main([f"--out={path}"]) == 0
    with Image.open(path) as image:
        assert image.width > 1000
    assert [file.name for file in tmp_path.iterdir()] == ["all.png"]


def test_a_folder_that_is_missing_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"--out={tmp_path}/none/all.png"]) == 1
    error = capsys.readouterr().err
    assert "No such file or directory" in error and error.count("\n") == 1
