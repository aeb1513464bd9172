"""The concept gallery of the demo corpus: its classes among many concepts that never appear."""

from data_prep.gallery.gallery import Gallery
from data_prep.scenes.artwork import ARTWORK
from data_prep.scenes.settings import ScenesConfig
from data_prep.scenes.stuff import TEXTURES

# Everyday concepts beside the drawable ones, so that finding concepts is a real search. None of
# them is a word of a caption pattern or part of a class name.
_DISTRACTORS = (
    "airplane", "ant", "armchair", "baby", "backpack", "basket", "beach", "bear", "bed", "bee",
    "bicycle", "boat", "book", "bottle", "bowl", "boy", "bread", "bridge", "broccoli", "bucket",
    "building", "cake", "camel", "camera", "candle", "chair", "cheese", "child", "church", "clock",
    "cloud", "coat", "computer", "cow", "cup", "curtain", "deer", "desk", "dog", "door", "dress",
    "drum", "eagle", "egg", "fence", "fire", "fireplace", "flag", "flower", "forest", "fork", "fox",
    "frog", "garden", "giraffe", "girl", "glove", "goat", "hammer", "harbour", "hat", "helicopter",
    "hill", "island", "jacket", "keyboard", "kitchen", "kite", "ladder", "lake", "lamp", "leaf",
    "lemon", "lion", "man", "mirror", "monkey", "moon", "motorcycle", "mountain", "mouse", "office",
    "orange", "owl", "panda", "parrot", "pear", "pencil", "person", "piano", "pillow", "pumpkin",
    "river", "roof", "sandwich", "sheep", "ship", "shoe", "sink", "skateboard", "spider", "spoon",
    "stairs", "star", "street", "suitcase", "sun", "table", "teapot", "tiger", "tomato", "tower",
    "toy", "traffic light", "truck", "vase", "violin", "whale", "window", "woman", "zebra",
)  # fmt: skip


def scenes_gallery(settings: ScenesConfig) -> Gallery:
    """Class names in class order, then other things that could be drawn, then distractors."""
    return Gallery.build([*settings.classes, *ARTWORK, *TEXTURES, *_DISTRACTORS])
