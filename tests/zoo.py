"""Every bad or odd picture file that people have sent, made on demand, with what must come of it.

Each picture that can be read shows the same: four quarters, red and green above blue and yellow.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, features

HEIGHT, WIDTH = 32, 48
SIZE = (HEIGHT, WIDTH)
RED, GREEN, BLUE, YELLOW = (220, 30, 30), (30, 180, 40), (30, 40, 200), (230, 210, 40)
COLOURS = (RED, GREEN, BLUE, YELLOW)
WHITE = (255, 255, 255)
HUGE = 50_000
GREYS = tuple((grey, grey, grey) for grey in (20, 90, 160, 230))


@dataclass(frozen=True, kw_only=True)
class Animal:
    """A file: what it is called, its bytes, and either why it is refused or what it shows.

    ``quarters`` are the colours of the four quarters, none where they do not matter.
    """

    name: str
    data: bytes
    reason: str = ""
    size: tuple[int, int] = SIZE
    quarters: tuple[tuple[int, int, int], ...] = COLOURS
    misnamed: bool = False


def picture(
    colours: tuple[tuple[int, int, int], ...] = COLOURS, size: tuple[int, int] = SIZE
) -> Image.Image:
    """The four quarters."""
    pixels = np.zeros((*size, 3), dtype=np.uint8)
    top, left = size[0] // 2, size[1] // 2
    pixels[:top, :left], pixels[:top, left:] = colours[0], colours[1]
    pixels[top:, :left], pixels[top:, left:] = colours[2], colours[3]
    return Image.fromarray(pixels)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of a file of Pillow's format ``kind``."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(header: bytes, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG from its header and its unpacked rows; ``extra`` chunks go before the pixels."""
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, body) for name, body in chunks)


def chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG with its check sum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def with_chunk(data: bytes, name: bytes, body: bytes) -> bytes:
    """A PNG with one more chunk after its header."""
    return data[:33] + chunk(name, body) + data[33:]


@cache
def animals() -> list[Animal]:
    """All files that bytes alone make."""
    return [
        *_plain(),
        *_rotated(),
        *_odd_colours(),
        *_several_frames(),
        *_huge(),
        *_cut_short(),
        *_not_pictures(),
        *_odd(),
    ]


def fill(folder: Path) -> dict[str, Animal]:
    """Write all animals into a folder; gives them by name."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {animal.name: animal for animal in animals()}
    for name, animal in written.items():
        (folder / name).write_bytes(animal.data)
    return written


def odd_names(folder: Path) -> dict[str, str]:
    """What only a file system can do; gives the reason to expect, "" for a picture, by name."""
    data = saved(picture(), "PNG")
    (folder / "folder.png").mkdir(parents=True)
    (folder / "real.png").write_bytes(data)
    (folder / "link.png").symlink_to("real.png")
    (folder / "dangling.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "denied.png").write_bytes(data)
    (folder / "denied.png").chmod(0)
    found = {
        "folder.png": "unreadable",
        "real.png": "",
        "link.png": "",
        "dangling.png": "unreadable",
        "pipe.png": "unreadable",
        "gone.png": "unreadable",  # listed, and removed before it is read
        "../outside.png": "unreadable",
    }
    if not os.access(folder / "denied.png", os.R_OK):  # root may read it
        found["denied.png"] = "unreadable"
    return found


def _plain() -> Iterator[Animal]:
    image = picture()
    yield Animal(name="plain-JPEG.jpg", data=saved(image, "JPEG", quality=95, subsampling=0))
    yield Animal(name="progressive.jpg", data=saved(image, "JPEG", quality=95, progressive=True))
    for kind in ("PNG", "BMP", "TIFF", "GIF"):
        yield Animal(name=f"plain-{kind}.{kind.lower()}", data=saved(image, kind))
    yield Animal(name="lossy.webp", data=saved(image, "WEBP", quality=95))
    yield Animal(name="lossless.webp", data=saved(image, "WEBP", lossless=True))
    yield Animal(name="packed.tif", data=saved(image, "TIFF", compression="tiff_lzw"))
    if features.check("avif"):
        yield Animal(name="plain-AVIF.avif", data=saved(image, "AVIF", quality=95))


def _rotated() -> Iterator[Animal]:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    for turn in range(1, 9):
        stored = picture().transpose(undo[turn]) if turn in undo else picture()
        exif = Image.Exif()
        exif[0x0112] = turn
        for kind, options in (
            ("JPEG", {"quality": 95}),
            ("PNG", {}),
            ("WEBP", {"lossless": True}),
            ("TIFF", {}),
        ):
            name = f"rotated-{turn}-{kind}.{kind.lower()}"
            yield Animal(name=name, data=saved(stored, kind, exif=exif, **options))


def _odd_colours() -> Iterator[Animal]:
    image = picture()
    yield Animal(name="cmyk.jpg", data=saved(image.convert("CMYK"), "JPEG", quality=95))
    wide = np.asarray(image).astype(np.uint16) * 257
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    yield Animal(name="16-bit.png", data=png(header, rows))
    greys = picture(GREYS).convert("L")
    yield Animal(name="grey.jpg", data=saved(greys, "JPEG", quality=95), quarters=GREYS)
    wide_grey = Image.fromarray(np.asarray(greys).astype(np.uint16) * 257)
    yield Animal(name="16-bit-grey.png", data=saved(wide_grey, "PNG"), quarters=GREYS)
    yield Animal(name="16-bit-grey-TIFF.tif", data=saved(wide_grey, "TIFF"), quarters=GREYS)
    share = Image.fromarray(np.asarray(greys).astype(np.float32) / 255)
    yield Animal(name="float.tif", data=saved(share, "TIFF"), quarters=GREYS)
    loud = Image.fromarray(np.asarray(greys).astype(np.float32))
    yield Animal(name="float-255.tif", data=saved(loud, "TIFF"), reason="unsupported format")
    holes = np.asarray(share).copy()
    holes[3, 3] = np.nan
    data = saved(Image.fromarray(holes), "TIFF")
    yield Animal(name="not-a-number.tif", data=data, reason="damaged")
    yield Animal(
        name="lab.tif", data=saved(image.convert("LAB"), "TIFF"), reason="unsupported format"
    )
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    yield Animal(name="palette.png", data=saved(palette, "PNG"))
    clear = palette.getpixel((1, 1))
    over_white = (WHITE, *COLOURS[1:])
    yield Animal(
        name="palette-clear.png",
        data=saved(palette, "PNG", transparency=clear),
        quarters=over_white,
    )
    yield Animal(
        name="clear.gif", data=saved(palette, "GIF", transparency=clear), quarters=over_white
    )
    alpha = np.full(SIZE, 255, dtype=np.uint8)
    alpha[: HEIGHT // 2, : WIDTH // 2] = 0
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        see_through = image.copy()
        see_through.putalpha(Image.fromarray(alpha))
        yield Animal(
            name=f"alpha-{kind}.{kind.lower()}",
            data=saved(see_through, kind, **options),
            quarters=over_white,
        )
    grey_alpha = greys.copy()
    grey_alpha.putalpha(Image.fromarray(alpha))
    yield Animal(name="grey-alpha.png", data=saved(grey_alpha, "PNG"), quarters=(WHITE, *GREYS[1:]))
    two = picture((WHITE, (0, 0, 0), (0, 0, 0), WHITE))
    yield Animal(
        name="two-colours.png",
        data=saved(two.convert("1"), "PNG"),
        quarters=(WHITE, (0, 0, 0), (0, 0, 0), WHITE),
    )
    # The profile says that the channel called red is blue light, and the other way round.
    crossed = tuple((blue, green, red) for red, green, blue in COLOURS)
    for kind in ("PNG", "JPEG", "TIFF", "WEBP"):
        options = {"quality": 100, "lossless": True} if kind == "WEBP" else {"quality": 98}
        yield Animal(
            name=f"profile-{kind}.{kind.lower()}",
            data=saved(picture(crossed), kind, icc_profile=crossed_profile(), **options),
        )
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield Animal(name="srgb.png", data=saved(image, "PNG", icc_profile=srgb))
    yield Animal(name="no-profile.png", data=saved(image, "PNG", icc_profile=b"no profile" * 9))


def crossed_profile() -> bytes:
    """The profile of a screen that lights blue for red."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    swapped = bytearray(profile)
    swapped[red : red + 4], swapped[blue : blue + 4] = b"bXYZ", b"rXYZ"
    swapped[84:100] = bytes(16)  # its own check sum; zero means that there is none
    return bytes(swapped)


def _several_frames() -> Iterator[Animal]:
    frames = [picture(), picture(COLOURS[::-1]), picture(GREYS)]
    more = {"save_all": True, "append_images": frames[1:]}
    for name, kind, options in (
        ("animated-gif.gif", "GIF", {"duration": 50}),
        ("animated-webp.webp", "WEBP", {"lossless": True}),
        ("animated-png.png", "PNG", {}),
        ("pages.tif", "TIFF", {}),
    ):
        data = saved(frames[0], kind, **more, **options)
        yield Animal(name=name, data=data, reason="animated")
    if features.check("avif"):
        data = saved(frames[0], "AVIF", **more, quality=95)
        yield Animal(name="animated-avif.avif", data=data, reason="animated")
    data = saved(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=95)
    yield Animal(name="two-cameras.mpo", data=data)


def _huge() -> Iterator[Animal]:
    too_many = "too many pixels"
    header = struct.pack(">IIBBBBB", HUGE, HUGE, 8, 2, 0, 0, 0)
    yield Animal(name="huge-png.png", data=png(header, bytes(1 << 20)), reason=too_many)
    jpeg = bytearray(saved(picture(), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", HUGE, HUGE)
    yield Animal(name="huge-jpg.jpg", data=bytes(jpeg), reason=too_many)
    webp = bytearray(saved(picture(), "WEBP", exif=Image.Exif().tobytes() + b"x" * 8))
    assert webp[12:16] == b"VP8X"
    webp[24:30] = struct.pack("<I", HUGE - 1)[:3] * 2
    yield Animal(name="huge-webp.webp", data=bytes(webp), reason=too_many)
    lossless = bytearray(saved(picture(), "WEBP", lossless=True))
    assert lossless[12:16] == b"VP8L"
    lossless[21:25] = struct.pack("<I", 16382 | 16382 << 14)
    yield Animal(name="huge-lossless.webp", data=bytes(lossless), reason=too_many)
    lossy = bytearray(saved(picture(), "WEBP"))
    assert lossy[12:16] == b"VP8 "
    lossy[26:30] = struct.pack("<HH", 16383, 16383)
    yield Animal(name="huge-lossy.webp", data=bytes(lossy), reason=too_many)
    bmp = bytearray(saved(picture(), "BMP"))
    bmp[18:26] = struct.pack("<ii", HUGE, -HUGE)
    yield Animal(name="huge-bmp.bmp", data=bytes(bmp), reason=too_many)
    gif = bytearray(saved(picture(), "GIF"))
    gif[6:10] = struct.pack("<HH", HUGE, HUGE)
    yield Animal(name="huge-gif.gif", data=bytes(gif), reason=too_many)
    for name, options in (("huge-tif.tif", {}), ("huge-lzw.tif", {"compression": "tiff_lzw"})):
        tiff = saved(picture(), "TIFF", **options)
        for tag, length in ((256, WIDTH), (257, HEIGHT)):
            old = struct.pack("<HHII", tag, 4, 1, length)
            if old not in tiff:
                old = struct.pack("<HHIHH", tag, 3, 1, length, 0)
            assert tiff.count(old) == 1
            tiff = tiff.replace(old, struct.pack("<HHII", tag, 4, 1, HUGE))
        yield Animal(name=name, data=tiff, reason=too_many)
    if features.check("avif"):
        avif = bytearray(saved(picture(), "AVIF"))
        at = avif.index(b"ispe") + 8
        avif[at : at + 8] = struct.pack(">II", HUGE, HUGE)
        yield Animal(name="huge-avif.avif", data=bytes(avif), reason=too_many)


def _cut_short() -> Iterator[Animal]:
    # Noise, so that every byte of the file matters.
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    kinds = [
        ("jpg", saved(image, "JPEG")),
        ("progressive.jpg", saved(image, "JPEG", progressive=True)),
        ("png", saved(image, "PNG")),
        ("webp", saved(image, "WEBP")),
        ("lossless.webp", saved(image, "WEBP", lossless=True)),
        ("gif", saved(image, "GIF")),
        ("bmp", saved(image, "BMP")),
        ("tif", saved(image, "TIFF")),
        ("lzw.tif", saved(image, "TIFF", compression="tiff_lzw")),
    ]
    if features.check("avif"):
        kinds.append(("avif", saved(image, "AVIF")))
    for kind, data in kinds:
        for percent in (1, 10, 50, 90, 99):
            part = data[: max(16, len(data) * percent // 100)]
            name = f"cut-{percent}-{kind.replace('.', '-')}.{kind}"
            yield Animal(name=name, data=part, reason="truncated")
    # What a download leaves that had reserved the whole length.
    jpeg = kinds[0][1]
    half = jpeg[: len(jpeg) // 2].ljust(len(jpeg), b"\0")
    yield Animal(name="half-zeros.jpg", data=half, reason="truncated")


def _not_pictures() -> Iterator[Animal]:
    yield Animal(name="empty.png", data=b"", reason="empty file")
    page = b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>"
    yield Animal(name="error.jpg", data=page, reason="not a picture")
    yield Animal(name="notes.png", data=b"a red apple on a table\n", reason="not a picture")
    yield Animal(name="zeros.jpg", data=bytes(5000), reason="not a picture")
    yield Animal(name="one-byte.gif", data=b"G", reason="not a picture")
    noise = np.random.default_rng(1).integers(0, 256, 5000, dtype=np.uint8).tobytes()
    yield Animal(name="noise.bmp", data=noise, reason="not a picture")
    for name, start in (
        ("icon.ico", saved(picture(), "ICO")),
        ("drawing.png", b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("page.pdf", b"%PDF-1.7\n"),
        ("print.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        ("layers.psd", b"8BPS\0\1" + bytes(40)),
        ("phone.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        ("film.jpg", b"\0\0\0\x18ftypisom\0\0\0\0isomiso2"),
        ("next.jxl", b"\0\0\0\x0cJXL \r\n\x87\n"),
        ("song.webp", b"RIFF\x24\0\0\0WAVEfmt "),
    ):
        yield Animal(name=name, data=start, reason="unsupported format")


def _odd() -> Iterator[Animal]:
    image = picture()
    good = saved(image, "PNG")
    jpeg = saved(image, "JPEG", quality=95)
    yield Animal(name="jpeg.png", data=jpeg, misnamed=True)
    yield Animal(name="png.jpg", data=good, misnamed=True)
    yield Animal(name="no-ending", data=good)
    yield Animal(name="more-behind.jpg", data=jpeg + b"\0\0\0\x18ftypmp42" + bytes(500))
    one = {"quarters": ()}
    yield Animal(name="1x1.png", data=saved(image.resize((1, 1)), "PNG"), size=(1, 1), **one)
    thin = saved(image.resize((1, 10000)), "PNG")
    yield Animal(name="1x10000.png", data=thin, size=(10000, 1), **one)
    bomb = zlib.compress(bytes(64 << 20))
    texts = with_chunk(good, b"iTXt", b"note\0\1\0\0\0" + bomb)
    yield Animal(name="bomb-text.png", data=texts)
    yield Animal(name="bomb-old-text.png", data=with_chunk(good, b"zTXt", b"note\0\0" + bomb))
    yield Animal(name="bomb-profile.png", data=with_chunk(good, b"iCCP", b"icc\0\0" + bomb))
    yield Animal(name="long-text.png", data=with_chunk(good, b"tEXt", b"note\0" + b"x" * (2 << 20)))
    # Pixels go on long after the picture is full.
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(image))
    yield Animal(name="bomb-pixels.png", data=png(header, rows + bytes(64 << 20)))
    broken = bytearray(good)
    broken[good.index(b"IDAT") + 12] ^= 0x40
    yield Animal(name="broken.png", data=bytes(broken), reason="damaged")
    wrong = bytearray(good)
    wrong[-16] ^= 1  # of the check sum of the pixels, which are whole
    yield Animal(name="check-sum.png", data=bytes(wrong), reason="damaged")
    text = with_chunk(good, b"tEXt", b"note\0hello")
    harmless = bytearray(text)
    harmless[text.index(b"hello")] ^= 1
    yield Animal(name="check-sum-of-text.png", data=bytes(harmless))
    no_exif = jpeg[:2] + b"\xff\xe1\0\x10Exif\0\0garbage!" + jpeg[2:]
    yield Animal(name="broken-exif.jpg", data=no_exif)
    tiff = saved(image, "TIFF")
    once, twice = (struct.pack("<HHI", 277, 3, count) for count in (1, 2))
    assert tiff.count(once) == 1
    yield Animal(name="odd-tag.tif", data=tiff.replace(once, twice))  # Pillow warns of it
    scan = saved(image, "JPEG", progressive=True)
    at = scan.index(b"\xff\xda")
    busy = scan[:at] + b"\xff\xda\0\x08\1\1\0\0\0\0" * 600 + scan[at:]
    yield Animal(name="busy.jpg", data=busy, reason="damaged")


def shows(pixels: NDArray[np.uint8], quarters: tuple[tuple[int, int, int], ...]) -> bool:
    """Whether the middle of each quarter has its colour, as near as a lossy format keeps it."""
    top, left = pixels.shape[0] // 4, pixels.shape[1] // 4
    middles = [(top, left), (top, 3 * left), (3 * top, left), (3 * top, 3 * left)]
    return all(
        np.abs(pixels[y, x].astype(int) - colour).max() <= 12
        for (y, x), colour in zip(middles, quarters, strict=False)
    )
