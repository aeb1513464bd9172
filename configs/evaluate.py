"""Zero-shot evaluation: `main.py --config=configs/evaluate.py --config.benchmarks=voc,ade20k`.

Needs `--config.checkpoint`, `--config.data_dir` and `--workdir`. Prepare a benchmark with
`python -m data_prep segmentation --help`.
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    """The published settings; those of each benchmark are in eval/benchmarks.json."""
    config = ml_collections.ConfigDict()
    config.job = "evaluate"
    # A training run or one of its checkpoints (RUN@STEP), a folder or hub id in the format of
    # Hugging Face or open_clip, or a file: the authors' .pth or OpenAI's .pt.
    config.checkpoint = ""
    # A comma-separated list of: voc, context, coco_object, imagenet_s_50, imagenet_s_300,
    # imagenet_s_919, cityscapes, ade20k, coco_stuff; voc20 and context59 (without background);
    # imagenet (classification); or directories of segmentation datasets.
    config.benchmarks = "voc"
    config.data_dir = ""  # directory of the benchmarks that `python -m data_prep` has prepared

    # Changes to a benchmark's published settings; results are reported under a separate name.
    config.protocol = "groupvit"  # or "tcl", "naclip"; see eval/presets.py
    config.dense = ""  # for a CLIP: naclip (default), clearclip, sclip, maskclip or clip
    config.pamr = False  # refine labels by the colours of the image
    config.mode = ""  # "slide" (windows) or "whole" (the whole image at once)
    config.bg_thresh = config_dict.placeholder(float)  # threshold of the background class
    config.templates = ""  # simple, subset (7), subset_groupvit (the published 7) or full (80)
    config.softmax = config_dict.placeholder(bool)  # softmax over the classes before the argmax
    config.classification_templates = "subset"
    config.class_names = ""  # text file with other class names, one per line, in the same order
    config.dtype = "float32"  # type of matrix products; or "bfloat16"
    config.limit = 0  # number of images, the first of the benchmark; 0: all
    config.images_per_device = 0  # batch size per device in classification; 0: 32
    config.windows_per_forward = 0  # per device; 0: chosen by crop and device

    config.pictures = 8  # number of images of each benchmark to draw
    config.save_predictions = False  # write label PNGs in the benchmarks' own format

    # Settings for directories. Resizing: (maximum long side, short side), or () for none.
    config.custom = ml_collections.ConfigDict()
    config.custom.split = "validation"
    config.custom.crop = 448
    config.custom.stride = 224
    config.custom.resize_long_short = (2048, 448)
    config.custom.bg_thresh = 0.95  # only used with a background class
    return config
