"""Training a network on images and soft masks: the loss, the augmentation, the loop, and prediction.

Importing this package loads no torch: the settings are read by processes that must stay small.
"""
