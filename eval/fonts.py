"""Fonts for class names in any script."""

import functools
import importlib.resources
import pathlib
import shutil
import subprocess

from PIL import ImageFont

# Package and file. The first font has Chinese, Japanese and Korean, the second Arabic and Persian.
_PACKAGED = (
    ("noto_cjk_sans_jp_regular", "NotoSansCJKjp-Regular.otf"),
    ("fontpkg_noto_sans_arabic", "files/NotoSansArabic[wdth,wght].ttf"),
)


def choose_font(text: str, size: float) -> tuple[str, ImageFont.FreeTypeFont]:
    """Finds a font that has all characters of a text.

    Candidates are, in this order, Pillow's own font, the fonts of our requirements, and the fonts
    of the system (fontconfig).

    Returns:
        The text and the font; "" and Pillow's own font if no font has all characters.
    """
    characters = "".join(sorted(set(text) - set(" ")))
    for load in _candidates(characters):
        font = load(size)
        if font is not None and _has(font, characters):
            return text, font
    return "", ImageFont.load_default(size=size)


def _candidates(characters: str):
    yield lambda size: ImageFont.load_default(size=size)
    for package, file in _PACKAGED:
        yield lambda size, package=package, file=file: _packaged(package, file, size)
    for path in _system_fonts(characters):
        yield lambda size, path=path: ImageFont.truetype(path, size)


def _packaged(package: str, file: str, size: float) -> ImageFont.FreeTypeFont | None:
    try:
        path = importlib.resources.files(package).joinpath(file)
    except ModuleNotFoundError:
        return None
    return ImageFont.truetype(str(path), size) if pathlib.Path(str(path)).is_file() else None


def _has(font: ImageFont.FreeTypeFont, characters: str) -> bool:
    """Whether no character is drawn as the box for unknown characters."""
    unknown = bytes(font.getmask("\U0010fffe"))
    return all(
        bytes(font.getmask(character)) != unknown for character in characters if character.isalnum()
    )


@functools.lru_cache(maxsize=256)
def _system_fonts(characters: str) -> tuple[str, ...]:
    if not characters or not shutil.which("fc-list"):
        return ()
    wanted = " ".join(f"{ord(character):x}" for character in characters)
    command = ["fc-list", f":charset={wanted}", "file"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    names = [line.strip().rstrip(":") for line in found.splitlines()]
    return tuple(sorted(name for name in names if name.endswith((".ttf", ".otf", ".ttc"))))
