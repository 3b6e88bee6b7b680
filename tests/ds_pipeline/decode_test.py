"""Decoding against Pillow, crops against their definition, and files that are not images."""

import io
import pickle
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_pipeline import DataError
from ds_pipeline.augment import random_bits
from ds_pipeline.decode import (
    DecodedSource,
    Window,
    center_crop,
    center_window,
    decode_image,
    decode_window,
    image_size,
    inception_crop,
    inception_windows,
    resize,
)
from ds_pipeline.source import Batch, EncodedImage, Indices


def picture(height: int, width: int) -> np.ndarray:
    """Soft waves of all scales from 8 pixels up, and an edge."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    waves = [np.sin(x / 9) + np.cos(y / 5), np.sin((x + 2 * y) / 30), np.cos(x * y / 4000)]
    pixels = 120 + 60 * np.stack(waves, axis=-1)
    pixels[height // 3 :, width // 2 :] += 40
    return np.clip(pixels, 0, 255).astype(np.uint8)


def encoded(image: PIL.Image.Image | np.ndarray, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image = PIL.Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(file, kind, **options)
    return file.getvalue()


def decode(data: bytes) -> np.ndarray:
    return decode_image(EncodedImage(data, "here"))


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))


def batch_of(*images: bytes) -> Batch:
    inputs = [EncodedImage(data, f"image {i}") for i, data in enumerate(images)]
    return {"input": inputs, "label": np.arange(len(images), dtype=np.int32)}


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("shape", [(50, 80), (33, 47), (1, 1)])
def test_a_jpeg_is_decoded_as_by_pillow(shape: tuple[int, int], options: dict[str, object]) -> None:
    data = encoded(picture(*shape), **options)
    np.testing.assert_array_equal(decode(data), by_pillow(data))
    assert image_size(EncodedImage(data, "here")) == shape


def test_a_png_keeps_its_pixels() -> None:
    pixels = picture(20, 30)
    np.testing.assert_array_equal(decode(encoded(pixels, "PNG")), pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grayscale_is_repeated(kind: str) -> None:
    data = encoded(PIL.Image.fromarray(picture(20, 30)[:, :, 0]), kind)
    found = decode(data)
    assert found.shape == (20, 30, 3)
    np.testing.assert_array_equal(found, by_pillow(data))
    np.testing.assert_array_equal(found[:, :, 0], found[:, :, 2])


def test_of_16_bits_the_upper_8_are_kept() -> None:
    values = np.array([[0, 255, 256, 0x1234, 0xFFFF]], np.uint16)
    found = decode(encoded(PIL.Image.fromarray(values), "PNG"))
    assert found[0, :, 1].tolist() == [0, 0, 1, 0x12, 0xFF]
    assert decode(png_of_16_bits(np.array([[[0x1234, 0x00FF, 0xFF00]]])))[0, 0].tolist() == [
        0x12,
        0,
        0xFF,
    ]


def png_of_16_bits(pixels: np.ndarray) -> bytes:
    """RGB, which Pillow reads and does not write."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_palette_gives_its_colors_and_alpha_is_left_out() -> None:
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [10, 20, 30]]], np.uint8)
    palette = PIL.Image.fromarray(pixels).quantize(3)
    np.testing.assert_array_equal(decode(encoded(palette, "PNG")), pixels)
    alpha = np.dstack([pixels, np.array([[0, 128, 255]], np.uint8)])
    np.testing.assert_array_equal(decode(encoded(alpha, "PNG")), pixels)
    gray = PIL.Image.fromarray(pixels).convert("LA")
    np.testing.assert_array_equal(decode(encoded(gray, "PNG"))[0, 2], [18, 18, 18])
    black_and_white = PIL.Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert decode(encoded(black_and_white, "PNG"))[0].tolist() == [[0] * 3, [255] * 3]


def test_cmyk_is_converted() -> None:
    ink = np.broadcast_to(np.array([255, 0, 51, 102], np.uint8), (16, 16, 4))
    data = encoded(PIL.Image.fromarray(np.ascontiguousarray(ink), "CMYK"), quality=100)
    # (255 - ink) * (255 - black) / 255
    np.testing.assert_allclose(decode(data)[5, 5], [0, 153, 122], atol=2)
    np.testing.assert_array_equal(decode(data), by_pillow(data))


def test_exif_orientation_is_ignored() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    plain, turned = encoded(picture(20, 30)), encoded(picture(20, 30), exif=exif)
    assert plain != turned
    np.testing.assert_array_equal(decode(turned), decode(plain))


def with_chunk(name: bytes, content: bytes, damaged: bool = False) -> bytes:
    """Return a PNG with one more chunk before its pixels."""
    data = encoded(picture(20, 30), "PNG")
    place = data.index(b"IDAT") - 4
    check = zlib.crc32(name + content) ^ damaged
    chunk = struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)
    return data[:place] + chunk + data[place:]


_LARGE = zlib.compress(bytes(5_000_000))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (b"iCCP", b"profile\0\0" + _LARGE),
        (b"iCCP", b"profile\0\0no zlib"),
        (b"iCCP", b""),
        (b"zTXt", b"comment\0\0" + _LARGE),
        (b"iTXt", b"comment\0\1\0\0\0" + _LARGE),
        (b"tEXt", b"comment\0" + bytes(2_000_000)),
        (b"eXIf", b"rubbish"),
        (b"acTL", bytes(8)),
        (b"gAMA", b""),
        (b"priV", b"rubbish"),
    ],
    ids=lambda value: ascii(value[:8]),
)
@pytest.mark.parametrize("damaged", [False, True])
def test_what_a_png_holds_besides_pixels_is_ignored(
    name: bytes, content: bytes, damaged: bool
) -> None:
    found = decode(with_chunk(name, content, damaged))
    np.testing.assert_array_equal(found, picture(20, 30))


@pytest.mark.slow
def test_pillow_prints_nothing(tmp_path: Path) -> None:
    """Neither what it warns of in harmless images, nor of damaged and very large ones."""
    palette = PIL.Image.fromarray(picture(20, 30)).quantize(16)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x1a\0\5\0\0\0\x01\0\0\xff\0"
    huge = encoded(PIL.Image.new("1", (10, 10)), "PNG")
    images = {
        "alpha.png": encoded(palette, "PNG", transparency=bytes(range(16))),
        "exif.jpg": encoded(picture(20, 30), exif=exif),
        "mpo.jpg": encoded(picture(20, 30), "MPO")[:-30],
        "large.png": encoded(PIL.Image.new("1", (10_000, 10_000)), "PNG"),
        "huge.png": huge.replace(struct.pack(">II", 10, 10), struct.pack(">II", 2**31 - 1, 2**30)),
        "cmyk.jpg": encoded(PIL.Image.new("CMYK", (8, 8)), exif=exif),
    }
    for name, data in images.items():
        (tmp_path / name).write_bytes(data)
    program = (
        "import sys, pathlib\n"
        "from ds_pipeline import DataError\n"
        "from ds_pipeline.decode import EncodedImage, decode_window, image_size, Window\n"
        "for file in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    try:\n"
        "        image = EncodedImage(file.read_bytes(), file.name)\n"
        "        image_size(image), decode_window(image, Window(0, 0, 4, 4), 4)\n"
        "    except DataError as error:\n"
        "        print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "always", "-c", program, str(tmp_path)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["huge.png", "mpo.jpg"]


def test_harmless_damage_is_tolerated() -> None:
    data = encoded(picture(64, 64))
    pixels = decode(data)
    np.testing.assert_array_equal(decode(data + b"rubbish"), pixels)
    # Libjpeg warns of stray bytes before a marker.
    stray = data[:-2] + b"\x01\x02\x03" + data[-2:]
    np.testing.assert_array_equal(decode(stray), pixels)
    middle = bytearray(encoded(picture(64, 64), quality=95))
    middle[1500:1520] = bytes(range(20))
    assert decode(bytes(middle)).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty, 0 bytes"),
        (b"hello, world", "12 bytes that are no whole JPEG or PNG"),
        (bytes(1000), "no whole JPEG or PNG"),
        (encoded(picture(64, 64))[:700], "truncated"),
        (encoded(picture(64, 64))[:-10], "truncated"),
        (encoded(picture(64, 64))[:30], "cannot be decoded"),
        (encoded(picture(64, 64), "PNG")[:500], "truncated"),
        (encoded(picture(64, 64), "PNG")[:20], "cannot be decoded"),
        (encoded(picture(8, 8), "BMP"), "no whole JPEG or PNG"),
        (encoded(picture(64, 64), "PNG").replace(b"IDAT", b"IDAX"), "cannot be decoded"),
    ],
    ids=str,
)
def test_what_is_no_whole_image_is_a_line(data: bytes, reason: str) -> None:
    where = "train/cat/3.JPEG"
    for call in (
        decode_image,
        lambda image: decode_window(image, Window(0, 0, 64, 64), 4),
        lambda image: inception_crop(4)({"input": [image]}, 0, 0, np.arange(1)),
        lambda image: center_crop(4)({"input": [image]}),
    ):
        with pytest.raises(DataError, match="^train/cat/3.JPEG: ") as raised:
            call(EncodedImage(data, where))
        assert reason in str(raised.value) and "\n" not in str(raised.value)


def chunk(name: bytes, data: bytes) -> bytes:
    """A PNG's chunk, with the checksum that belongs to it."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def chunks(png: bytes) -> list[bytes]:
    found, place = [], 8
    while place < len(png):
        end = place + 12 + int.from_bytes(png[place : place + 4], "big")
        found.append(png[place:end])
        place = end
    return found


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Damage of the kinds that bring out the most kinds of errors in Pillow."""
    if data.startswith(b"\xff") or rng.random() < 0.3:
        if rng.random() < 0.3:
            return data[: rng.randrange(len(data))]
        changed = bytearray(data)
        for _ in range(rng.randint(1, 5)):
            changed[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(changed)
    pieces = chunks(data)
    i = rng.randrange(len(pieces))
    own, content = pieces[i][4:8], pieces[i][8:-4]
    name = rng.choice([b"PLTE", b"iCCP", b"acTL", b"tRNS", b"IDAT", b"fcTL", b"zzzz"])
    match rng.randrange(4):
        case 0:
            del pieces[i]
        case 1:
            pieces[i] = chunk(name, content)
        case 2:
            pieces[i] = chunk(own, content[: rng.randint(0, len(content))])
        case _:
            pieces.insert(i, chunk(name, rng.randbytes(rng.randrange(30))))
    return data[:8] + b"".join(pieces)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damage_of_any_kind_is_a_line() -> None:
    palette = PIL.Image.fromarray(picture(20, 30)).quantize(16)
    whole = [
        encoded(picture(20, 30)),
        encoded(picture(20, 30), progressive=True),
        encoded(palette, "PNG"),
        encoded(picture(20, 30), "PNG", icc_profile=b"x" * 50),
    ]
    rng = random.Random(0)
    causes = set()
    for _ in range(3000):
        image = EncodedImage(damaged(rng.choice(whole), rng), "here")
        try:
            decode_image(image)
        except DataError as error:
            assert "\n" not in str(error)
            assert error.__cause__ is not None
            causes.add(type(error.__cause__.__cause__))
    assert causes >= {OSError, ValueError}, causes


def test_a_palette_that_is_missing_is_named() -> None:
    data = encoded(PIL.Image.fromarray(picture(8, 8)).quantize(4), "PNG")
    without = data[:8] + b"".join(c for c in chunks(data) if c[4:8] != b"PLTE")
    with pytest.raises(DataError, match=r"^here: .* \(its palette is missing\); replace or remove"):
        decode(without)


def test_a_bug_in_decoding_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def misspelled(image: PIL.Image.Image) -> np.ndarray:
        pixels: np.ndarray = image.pixles  # type: ignore[attr-defined]
        return pixels

    monkeypatch.setattr("ds_pipeline.decode._as_rgb", misspelled)
    with pytest.raises(AttributeError, match="pixles"):
        decode(encoded(picture(8, 8), "PNG"))


def test_an_image_of_far_too_many_pixels_is_not_decoded() -> None:
    data = bytearray(encoded(picture(8, 8)))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", 65000, 65000)
    with pytest.raises(DataError, match="here: 65000 x 65000 pixels are too many"):
        decode(bytes(data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("window", "size", "tolerance"),
    [
        (Window(0, 0, 64, 64), 64, 0.0),
        (Window(10, 20, 30, 40), 64, 1.5),  # enlarged
        (Window(10, 20, 80, 100), 64, 1.0),  # shrunk by less than 2
        (Window(0, 0, 300, 400), 64, 1.5),  # by 4, in part while decoding
        (Window(16, 32, 200, 240), 24, 2.0),  # by 8
        (Window(0, 100, 300, 101), 64, 1.5),  # one side much more than the other
    ],
)
def test_a_window_is_close_to_pillows_antialiased_bicubic(
    kind: str, window: Window, size: int, tolerance: float
) -> None:
    """Mean difference in levels of 255; half a pixel's shift would be about 3."""
    data = encoded(picture(300, 400), kind, **({"quality": 95} if kind == "JPEG" else {}))
    top, left, height, width = window
    expected = PIL.Image.fromarray(by_pillow(data)).resize(
        (size, size), PIL.Image.Resampling.BICUBIC, (left, top, left + width, top + height)
    )
    found = decode_window(EncodedImage(data, "here"), window, size)
    assert found.dtype == np.uint8
    difference = np.abs(found.astype(float) - np.asarray(expected, float)).mean()
    assert difference <= tolerance


@pytest.mark.parametrize("factor", [1.4, 1.9, 3.0, 5.5])
def test_shrinking_does_not_alias(factor: float) -> None:
    side = 64
    count = round(side * factor)
    # Stripes one pixel wide become gray; what is left of them would be a false, coarse pattern.
    stripes = np.repeat(np.arange(count)[None, :, None] % 2 * 255, count, axis=0)
    image = np.repeat(stripes, 3, axis=2).astype(np.uint8)
    # Of three stripes, the mean over an area keeps a third.
    bounds = {1.4: 60, 1.9: 20, 3.0: 43, 5.5: 10}
    found = resize(image, side)[4:-4, 4:-4].astype(float)
    assert found.std() < bounds[factor]
    assert abs(found.mean() - 127.5) < 3


def test_a_reduced_scale_is_decoded_where_the_window_allows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ds_pipeline import decode as module

    heights = []
    whole = module.simplejpeg.decode_jpeg

    def spy(data: bytes, **options: int) -> np.ndarray:
        pixels: np.ndarray = whole(data, **options)
        heights.append(len(pixels))
        return pixels

    monkeypatch.setattr(module.simplejpeg, "decode_jpeg", spy)
    image = EncodedImage(encoded(picture(401, 500)), "here")
    for side in (127, 128, 255, 256, 400):
        decode_window(image, Window(0, 0, side, side + 3), 64)
    decode_window(image, Window(0, 0, 400, 400), 50)
    assert heights == [401, 201, 201, 101, 101, 51]


@settings(max_examples=50, deadline=None)
@given(height=st.integers(1, 500), width=st.integers(1, 500), seed=st.integers(0, 1000))
def test_windows_are_inside_and_as_drawn(height: int, width: int, seed: int) -> None:
    bits = random_bits(1, seed, 0, np.arange(20), draws=22)
    heights, widths = np.full(20, height), np.full(20, width)
    for window in inception_windows(heights, widths, bits):
        assert 0 <= window.top <= height - window.height
        assert 0 <= window.left <= width - window.width
        if min(window[2:]) > 20:
            assert 0.07 < window.height * window.width / (height * width) <= 1.0
            assert 0.7 < window.width / window.height < 1.4


def test_the_windows_fill_their_ranges() -> None:
    count = 20_000
    sizes = np.full(count, 1000)
    windows = np.array(inception_windows(sizes, sizes, random_bits(2, 0, 0, np.arange(count), 22)))
    top, left, height, width = windows.T
    area, aspect = height * width / 1e6, width / height
    assert area.min() < 0.085 and area.max() > 0.95
    # Uniform, but for the largest, which fit less often.
    shares = np.histogram(area, [0.08, 0.2, 0.32, 0.44, 0.56])[0] / count
    np.testing.assert_allclose(shares, shares.mean(), atol=0.01)
    assert aspect.min() < 0.76 and aspect.max() > 1.32
    assert abs(np.log(aspect).mean()) < 0.01
    assert abs((top / np.maximum(1000 - height, 1)).mean() - 0.5) < 0.01
    assert abs((left / np.maximum(1000 - width, 1)).mean() - 0.5) < 0.01
    for first, size in ((top, height), (left, width)):  # as far as it goes
        moved = size < 1000
        assert first.min() == 0 and (first[moved] == 1000 - size[moved]).any()


def test_where_no_attempt_fits_the_center_is_taken() -> None:
    strip = encoded(picture(20, 400), "PNG")
    windows = inception_windows(
        np.full(500, 20), np.full(500, 4000), random_bits(1, 0, 0, np.arange(500), 22)
    )
    assert all(window.height == 0 for window in windows)
    batch = batch_of(*[encoded(picture(20, 4000), "PNG")] * 4)
    found = inception_crop(32)(batch, 0, 0, np.arange(4))["input"]
    center = center_crop(32)(batch)["input"]
    for image, expected in zip(found, center, strict=True):
        assert (image == expected).all() or (image == expected[:, ::-1]).all()
    assert decode(strip).shape == (20, 400, 3)


@pytest.mark.parametrize(
    ("height", "width", "fraction", "expected"),
    [
        (256, 300, 0.875, Window(16, 38, 224, 224)),
        (300, 256, 1.0, Window(22, 0, 256, 256)),
        (1, 1, 0.3, Window(0, 0, 1, 1)),
    ],
)
def test_center_window(height: int, width: int, fraction: float, expected: Window) -> None:
    assert center_window(height, width, fraction) == expected


def test_center_crop_takes_224_of_256_pixels() -> None:
    pixels = picture(256, 320)
    found = center_crop(224)(batch_of(encoded(pixels, "PNG")))
    np.testing.assert_array_equal(found["input"][0], pixels[16:240, 48:272])
    assert found["label"].tolist() == [0]
    whole = center_crop(256, 1.0)(batch_of(encoded(pixels, "PNG")))["input"]
    np.testing.assert_array_equal(whole[0], pixels[:, 32:288])


def test_a_crop_depends_on_seed_epoch_and_index_only() -> None:
    images = [encoded(picture(60 + i, 80)) for i in range(6)]
    augment = pickle.loads(pickle.dumps(inception_crop(32)))
    places = np.array([7, 1, 10**6, 3, 4, 5])
    together = augment(batch_of(*images), 2, 3, places)
    assert together["input"].shape == (6, 32, 32, 3) and together["input"].dtype == np.uint8
    back = augment(batch_of(*images[::-1]), 2, 3, places[::-1])
    np.testing.assert_array_equal(back["input"][::-1], together["input"])
    alone = augment(batch_of(images[2]), 2, 3, places[2:3])
    np.testing.assert_array_equal(alone["input"][0], together["input"][2])
    for other in (
        augment(batch_of(*images), 2, 4, places),
        augment(batch_of(*images), 1, 3, places),
    ):
        assert all((a != b).any() for a, b in zip(other["input"], together["input"], strict=True))


def test_half_of_the_crops_are_mirrored() -> None:
    count = 400
    # Rising from left to right; a mirrored crop falls.
    ramp = np.repeat(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], 50, axis=0)
    batch = batch_of(*[encoded(np.repeat(ramp, 3, axis=2), "PNG")] * count)
    found = inception_crop(16)(batch, 0, 0, np.arange(count))["input"].astype(int)
    falls = found[:, 8, 15, 0] < found[:, 8, 0, 0]
    assert 160 < falls.sum() < 240


def test_a_decoded_source_gives_pixels() -> None:
    class Encoded:
        def __len__(self) -> int:
            return 3

        def batch(self, indices: Indices) -> Batch:
            images = [EncodedImage(encoded(picture(40 + int(i), 50)), str(i)) for i in indices]
            return {"input": images, "label": indices.astype(np.int32)}

        def labels(self) -> np.ndarray:
            return np.arange(3, dtype=np.int32)

    source = DecodedSource(Encoded(), center_crop(16))
    batch = source.batch(np.array([2, 0]))
    assert (len(source), source.labels().tolist()) == (3, [0, 1, 2])
    assert batch["input"].shape == (2, 16, 16, 3) and batch["label"].tolist() == [2, 0]
