"""Encoded image files of every kind that people have, and bytes that are no image."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 57, 83


def photograph(height=HEIGHT, width=WIDTH, channels=3, seed=0):
    """Waves of colour with grain and some saturated pixels, as photographs have."""
    y, x = np.mgrid[:height, :width] / 7.0
    waves = [np.sin(x + y / 3), np.sin(y - x / 4), np.cos(x / 2) * np.sin(y / 2), np.sin(x - y)]
    noise = np.random.default_rng(seed).normal(0, 18, (height, width, channels))
    return np.uint8(np.clip(128 + 115 * np.stack(waves[:channels], -1) + noise, 0, 255))


def encode(pixels, kind="JPEG", mode=None, **options):
    """Bytes of an image file; `mode` converts first."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def exif(orientation, little_endian=True, kind=3):
    """A TIFF header and a directory of three entries, one of them the orientation."""
    order, mark = ("<", b"II*\0") if little_endian else (">", b"MM\0*")
    value = struct.pack(f"{order}HH", orientation, 0)
    value = struct.pack(f"{order}I", orientation) if kind == 4 else value
    entries = [
        struct.pack(f"{order}HHI", 0x0100, 4, 1) + struct.pack(f"{order}I", 4000),
        struct.pack(f"{order}HHI", 0x0112, kind, 1) + value,
        struct.pack(f"{order}HHI", 0x0128, 3, 1) + struct.pack(f"{order}HH", 2, 0),
    ]
    directory = struct.pack(f"{order}H", 3) + b"".join(entries) + b"\0\0\0\0"
    return b"Exif\0\0" + mark + struct.pack(f"{order}I", 8) + directory


def with_segment(jpeg, content, marker=0xE1, first=True):
    """A JPEG with another segment: first of all, or behind its first one."""
    place = 2 if first else 4 + struct.unpack(">H", jpeg[4:6])[0]
    return (
        jpeg[:place] + struct.pack(">BBH", 255, marker, len(content) + 2) + content + jpeg[place:]
    )


def png(width, height, depth, colour, rows):
    """A PNG from its raw rows (with filter bytes)."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def png_of_16_bits(channels):
    """Values of 16 bits whose low bytes are random."""
    shape = (HEIGHT, WIDTH, channels)
    low = np.random.default_rng(1).integers(0, 256, shape)
    values = (photograph(channels=channels).astype(int) * 256 + low).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    return png(WIDTH, HEIGHT, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], rows)


def cmyk():
    """Four inks, all of them used."""
    inks = photograph(channels=4)
    return Image.merge("CMYK", [Image.fromarray(inks[..., i]) for i in range(4)])


def without_adobe(jpeg):
    place = jpeg.index(b"\xff\xee")
    return jpeg[:place] + jpeg[place + 2 + struct.unpack(">H", jpeg[place + 2 : place + 4])[0] :]


def with_adobe_transform(jpeg, transform):
    place = jpeg.index(b"\xff\xee")
    end = place + 2 + struct.unpack(">H", jpeg[place + 2 : place + 4])[0]
    return jpeg[: end - 1] + bytes([transform]) + jpeg[end:]


def jpegs():
    pixels = photograph()
    files = {}
    for name, subsampling in {"444": 0, "422": 1, "420": 2}.items():
        for progressive in (False, True):
            files[f"jpeg {name}{' progressive' * progressive}"] = encode(
                pixels, subsampling=subsampling, progressive=progressive, quality=85
            )
    for height, width in ((1, 1), (3, 5), (17, 16), (1, 400), (16, 33)):
        files[f"jpeg {height}x{width}"] = encode(photograph(height, width))
    plain = files["jpeg 420"]
    files["jpeg restarts"] = encode(pixels, restart_marker_blocks=3)
    files["jpeg junk behind"] = plain + b"junk" * 20
    files["jpeg grey"] = encode(pixels, mode="L")
    files["jpeg rgb"] = encode(pixels, keep_rgb=True)
    inks = files["jpeg cmyk adobe"] = encode(cmyk())
    files["jpeg cmyk"] = without_adobe(inks)
    files["jpeg ycck"] = with_adobe_transform(inks, 2)
    files["jpeg comment"] = with_segment(plain, b"a comment", 0xFE)
    files["jpeg icc"] = encode(pixels, icc_profile=b"x" * 100_000)
    files["jpeg mpo"] = encode(
        Image.fromarray(pixels), "MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))]
    )
    return files


def turned_jpegs():
    plain = encode(photograph(), quality=85)
    files = {}
    for orientation in range(10):  # 0 and 9 mean nothing
        for little in (True, False):
            name = f"exif {orientation} {'little' if little else 'big'} endian"
            files[name] = with_segment(
                plain, exif(orientation, little), first=bool(orientation % 2)
            )
    turned = exif(6)
    files["exif behind comment and icc"] = with_segment(
        with_segment(encode(photograph(), icc_profile=b"y" * 500, exif=turned), b"c", 0xFE), b"z"
    )
    files["exif by pillow"] = encode(photograph(), exif=turned)
    files["exif of a cmyk image"] = with_segment(encode(cmyk()), turned)
    files["exif of a grey image"] = with_segment(encode(photograph(), mode="L"), turned)
    files["exif of type long"] = with_segment(plain, exif(6, kind=4))
    files["exif cut off"] = with_segment(plain, turned[:30])
    files["exif garbage"] = with_segment(plain, b"Exif\0\0garbage and more garbage")
    files["exif points outside"] = with_segment(plain, turned[:10] + b"\xff" * 4 + turned[14:])
    files["exif twice"] = with_segment(with_segment(plain, exif(3)), turned)
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="8"/>'
    files["xmp turned"] = with_segment(plain, xmp)
    files["xmp and exif"] = with_segment(with_segment(plain, xmp), turned)
    return files


def other_files():
    pixels = photograph()
    rgba = Image.fromarray(photograph(channels=4), "RGBA")
    rgb, grey, palette = (Image.fromarray(pixels).convert(mode) for mode in ("RGB", "L", "P"))
    some_alpha = bytes(range(256))
    frames = [Image.fromarray(photograph(seed=seed)) for seed in range(3)]
    files = {
        "png": encode(rgb, "PNG"),
        "png rgba": encode(rgba, "PNG"),
        "png grey": encode(grey, "PNG"),
        "png grey alpha": encode(rgba, "PNG", "LA"),
        "png palette": encode(palette, "PNG"),
        "png palette transparent": encode(palette, "PNG", transparency=7),
        "png palette half transparent": encode(palette, "PNG", transparency=some_alpha),
        "png palette of 4 bits": encode(rgb.quantize(16), "PNG"),
        "png palette of 4 bits transparent": encode(rgb.quantize(16), "PNG", transparency=3),
        "png colour key": encode(rgb, "PNG", transparency=tuple(map(int, pixels[3, 4]))),
        "png grey key": encode(grey, "PNG", transparency=120),
        "png 1 bit": encode(rgb, "PNG", "1"),
        "png 16 bit grey": png_of_16_bits(1),
        "png 16 bit grey alpha": png_of_16_bits(2),
        "png 16 bit rgb": png_of_16_bits(3),
        "png 16 bit rgba": png_of_16_bits(4),
        "png turned": encode(rgb, "PNG", exif=exif(6)[6:]),
        "png animated": encode(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "png 1x1": encode(pixels[:1, :1], "PNG"),
        "gif": encode(palette, "GIF"),
        "gif transparent": encode(palette, "GIF", transparency=3),
        "gif animated": encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "gif animated with alpha": encode(rgba, "GIF", save_all=True, append_images=[rgba]),
        "bmp": encode(rgb, "BMP"),
        "bmp palette": encode(palette, "BMP"),
        "bmp 1 bit": encode(rgb, "BMP", "1"),
        "webp": encode(rgb, "WEBP"),
        "webp lossless alpha": encode(rgba, "WEBP", lossless=True),
        "webp turned": encode(rgb, "WEBP", exif=exif(5)),
        "webp animated": encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "tiff": encode(rgb, "TIFF"),
        "tiff turned": encode(rgb, "TIFF", tiffinfo={0x0112: 6}),
        "tiff cmyk": encode(cmyk(), "TIFF"),
        "tiff 16 bit": encode(photograph(channels=1)[..., 0].astype(np.uint16) * 256, "TIFF"),
        "tiff lab": encode(Image.new("LAB", (9, 9)), "TIFF"),
        "ppm": encode(rgb, "PPM"),
        "tiny ppm": b"P5 1 1 255\n\x07",
        "avif": encode(rgb, "AVIF"),
        "4000x1": encode(photograph(1, 4000), "PNG"),
    }
    return files


def unreadable_files():
    """Bytes that have to be refused, whatever their ending was."""
    jpeg = encode(photograph())
    progressive = encode(photograph(), progressive=True)
    whole_png = encode(photograph(), "PNG")
    black = bytes(1 + 3 * 13_000)
    frame = jpeg.index(b"\xff\xc0")
    header = struct.pack(">HH", 60_000, 60_000)
    return {
        "zero bytes": b"",
        "one byte": b"\xff",
        "text": b"<html><body>404 not found</body></html>" * 3,
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "jpeg bomb": jpeg[: frame + 5] + header + jpeg[frame + 9 :],
        "png bomb": png(13_000, 13_000, 8, 2, black * 13_000),
        "png wider than 31 bits": png(2**31 + 5, 1, 8, 2, bytes(99)),
        "empty png": png(0, 5, 8, 2, bytes(99)),
        "float tiff": encode(photograph()[..., 0].astype(np.float32), "TIFF"),
        "32 bit tiff": encode(photograph()[..., 0].astype(np.int32) * 70_000, "TIFF"),
        **{f"jpeg without {cut} bytes": jpeg[:-cut] for cut in (1, 2, 30, 300, len(jpeg) - 30)},
        **{f"progressive without {cut}": progressive[:-cut] for cut in (1, 2, 30, 300)},
        **{f"png without {cut} bytes": whole_png[:-cut] for cut in (1, 4, 9, 12, 13, 30, 3000)},
        "png of header alone": whole_png[:30],
        "png with wrong checksum": whole_png[:300] + b"\0\1\2\3" + whole_png[304:],
        "gif cut off": encode(photograph(), "GIF")[:-900],
        "bmp cut off": encode(photograph(), "BMP")[:-900],
        "webp cut off": encode(photograph(), "WEBP")[:-200],
        "tiff cut off": encode(photograph(), "TIFF", compression="tiff_lzw")[:-900],
    }
