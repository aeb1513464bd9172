"""Mean and standard deviation of ImageNet's pixels, red, green and blue, in [0, 1].

The usual input normalisation of models that were trained from random weights.
"""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
