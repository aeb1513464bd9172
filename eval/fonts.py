"""Fonts that can write a class name, whatever its script."""

import functools
import importlib.resources
import pathlib
import shutil
import subprocess

from PIL import ImageFont

# Package and file; Chinese, Japanese and Korean are in one font, Arabic and Persian in another.
_PACKAGED = (
    ("noto_cjk_sans_jp_regular", "NotoSansCJKjp-Regular.otf"),
    ("fontpkg_noto_sans_arabic", "files/NotoSansArabic[wdth,wght].ttf"),
)


def choose_font(text: str, size: float) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text and a font that has all its characters, or "" and the default font if none has.

    Looked for, in this order: Pillow's own font, those of our requirements, those that the system
    knows (fontconfig).
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
    for path in _known_to_system(characters):
        yield lambda size, path=path: ImageFont.truetype(path, size)


def _packaged(package: str, file: str, size: float) -> ImageFont.FreeTypeFont | None:
    try:
        path = importlib.resources.files(package).joinpath(file)
    except ModuleNotFoundError:
        return None
    return ImageFont.truetype(str(path), size) if pathlib.Path(str(path)).is_file() else None


def _has(font: ImageFont.FreeTypeFont, characters: str) -> bool:
    """Whether none of the characters is drawn as the box that stands for unknown ones."""
    unknown = bytes(font.getmask("\U0010fffe"))
    return all(
        bytes(font.getmask(character)) != unknown for character in characters if character.isalnum()
    )


@functools.lru_cache(maxsize=256)
def _known_to_system(characters: str) -> tuple[str, ...]:
    if not characters or not shutil.which("fc-list"):
        return ()
    wanted = " ".join(f"{ord(character):x}" for character in characters)
    command = ["fc-list", f":charset={wanted}", "file"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    names = [line.strip().rstrip(":") for line in found.splitlines()]
    return tuple(sorted(name for name in names if name.endswith((".ttf", ".otf", ".ttc"))))
