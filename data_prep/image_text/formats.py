"""What readers recognise images, captions and keys by, and what they hand on."""

import dataclasses

from cocu_jax.input.images import MAX_BYTES as MAX_IMAGE_BYTES

# Endings of files and members, the same for folders, tars and zips; letters of either case.
IMAGE_ENDINGS = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff")
IMAGE_ENDINGS += ("avif", "heic", "heif", "img")
TEXT_ENDINGS = ("txt", "text", "caption", "cap")
# Columns of lists and tables, and fields of JSON objects, the first there is.
CAPTION_COLUMNS = ("caption", "captions", "text", "title", "sentence", "sentences", "comment")
CAPTION_COLUMNS += ("txt", "cap")
PATH_COLUMNS = ("path", "image", "image_path", "filepath", "file_path", "file", "filename")
PATH_COLUMNS += ("file_name", "image_name", "image_file")
IMAGE_COLUMNS = (*IMAGE_ENDINGS, "image", "image_bytes")
KEY_COLUMNS = ("key", "__key__", "id", "image_id")

MAX_TEXT_BYTES = 1 << 20
LARGE_IMAGE = f"image file over {MAX_IMAGE_BYTES // 10**6} MB"
LARGE_TEXT = f"text over {MAX_TEXT_BYTES >> 20} MiB"
NO_IMAGE, NO_CAPTION = "no image", "no caption"


@dataclasses.dataclass(frozen=True)
class Reading:
    """How raw files are read, where their own names do not tell.

    Attributes:
        image_column: columns of tables and lists, or endings of members, that hold the image;
            empty for the usual ones.
        caption_column: the same for captions; fields of JSON objects, too.
        key_column: column of tables and lists with the key; "" for the usual ones.
        images: folder where the paths of lists start; "" for the list's own folder.
        only_splits: splits of Karpathy's files, and of lists with a column `split`, that are taken;
            empty for all.
        dotted_keys: keys of tars end at the last dot of a name instead of the first.
    """

    image_column: tuple[str, ...] = ()
    caption_column: tuple[str, ...] = ()
    key_column: str = ""
    images: str = ""
    only_splits: tuple[str, ...] = ()
    dotted_keys: bool = False

    @property
    def captions(self) -> tuple[str, ...]:
        """Columns or fields of captions, the first that is there."""
        return self.caption_column or CAPTION_COLUMNS


@dataclasses.dataclass(frozen=True)
class RawExample:
    """One image and its captions, as found.

    Attributes:
        key: its name, or "".
        image: the encoded image; None if there is none.
        captions: its captions.
        place: file and row or member, for messages.
        faults: a reason for each further caption that could not be read.
        no_image: why `image` is None.
    """

    key: str
    image: bytes | None
    captions: tuple[str, ...]
    place: str
    faults: tuple[str, ...] = ()
    no_image: str = NO_IMAGE


@dataclasses.dataclass(frozen=True)
class Dropped:
    """Pairs, or parts of pairs, of which no example can be made.

    Attributes:
        reason: what is wrong and what to do.
        place: file and row or member.
        count: how many pairs.
    """

    reason: str
    place: str
    count: int = 1
