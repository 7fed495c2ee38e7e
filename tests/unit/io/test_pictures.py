"""Pictures as torchvision and open_clip users expect them, and the ones that are refused."""

import io
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from torch_pruning_mope._io._pictures import open_picture


def opened(picture: Image.Image, form: str = "png", **options: object) -> np.ndarray:
    file = io.BytesIO()
    picture.save(file, form, **options)
    file.seek(0)
    found = open_picture(file)
    assert found.mode == "RGB"
    return np.asarray(found)


@pytest.mark.parametrize("form", ["png", "tiff", "ppm"])
def test_sixteen_bits_are_scaled(form: str) -> None:
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    found = opened(Image.fromarray(values), form)
    assert (found == np.round(values / 257).astype(np.uint8)[..., None]).all()
    assert len(np.unique(found)) == 64


def test_exif_turns_a_picture_upright() -> None:
    shown = np.arange(24, dtype=np.uint8).reshape(2, 3, 4).repeat(3, 0)[:, :, :3] * 10  # [6, 3, 3]
    stored = {  # EXIF 2.32: where row 0 and column 0 of what is stored are shown
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.swapaxes(0, 1),
        6: np.rot90(shown, 1),
        7: shown[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(shown, -1),
    }
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[0x112] = orientation
        for form in ("png", "tiff"):
            assert (opened(Image.fromarray(pixels.copy()), form, exif=exif) == shown).all(), (orientation, form)
    assert (opened(Image.fromarray(shown), exif=b"Exif\0\0broken") == shown).all()


def test_transparency_is_on_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, :3] = 10, 20, 30
    rgba[0, :, 3] = 0, 51, 255
    expected = [[255, 255, 255], [206, 208, 210], [10, 20, 30]]
    assert opened(Image.fromarray(rgba))[0].tolist() == expected
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for transparency in (0, b"\0\xff"):
            assert opened(palette, transparency=transparency)[0].tolist() == [[255, 255, 255], [40, 50, 60]]
    for mode, value, clear in (
        ("L", [7, 9], 7),
        ("RGB", [(7, 8, 9), (9, 9, 9)], (7, 8, 9)),
        ("I;16", [1799, 2313], 1799),
    ):
        keyed = Image.new(mode, (2, 1))
        keyed.putpixel((0, 0), value[0])
        keyed.putpixel((1, 0), value[1])
        assert opened(keyed, transparency=clear)[0].tolist() == [[255] * 3, [9] * 3], mode


def test_other_modes_are_as_pillow_converts_them() -> None:
    random = np.random.default_rng(0)
    for mode, channels, form in (
        ("L", 1, "png"),
        ("CMYK", 4, "tiff"),
        ("YCbCr", 3, "jpeg"),
        ("1", 1, "png"),
        ("P", 3, "gif"),
    ):
        pixels = random.integers(0, 256, (8, 8, channels), np.uint8)
        picture = Image.fromarray(pixels.squeeze(), "CMYK" if channels == 4 else None)
        picture = picture.convert(mode)
        file = io.BytesIO()
        picture.save(file, form)
        assert (opened(picture, form) == np.asarray(Image.open(file).convert("RGB"))).all(), mode


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EndProlog\nshowpage\n%%EOF\n"


def test_eps_reaches_no_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "marker"
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!{sys.executable}\nopen({str(marker)!r}, 'w')\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(ValueError, match="none of AVIF, BMP, GIF"):
        open_picture(io.BytesIO(EPS))
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((1, 6000), "1 x 6000 pixels: one side is more than 100 times"),
        ((10_000, 9000), "10000 x 9000 pixels are more than"),
    ],
)
def test_sizes_that_fill_memory_are_refused_before_they_are_decoded(
    size: tuple[int, int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.BytesIO()
    Image.new("1", size).save(file, "png")
    file.seek(0)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=message):
        open_picture(file)


def test_scales_that_are_not_known_are_refused() -> None:
    for mode in ("I", "F"):
        with pytest.raises(ValueError, match=f"mode {mode}. have no known scale"):
            opened(Image.new(mode, (2, 2)), "tiff")
    file = io.BytesIO()
    Image.effect_noise((32, 32), 90).save(file, "png")
    with pytest.raises(ValueError, match="truncated"):
        open_picture(io.BytesIO(file.getvalue()[:-200]))
