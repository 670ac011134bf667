"""Coding keys and values in few bytes: what a text's slots have in common is known beforehand, the rest is coded.

Nothing here knows a method. ``calibration`` makes a ``Codec`` of a model, ``transform`` turns slots into numbers of
which most are near zero, ``entropy`` writes those in as many bits as they carry.
"""
