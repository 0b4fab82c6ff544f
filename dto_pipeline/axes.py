"""Names of indices: groups, kinds of evidence, height classes, shape coefficients. Plain numbers, without PyTorch."""

from __future__ import annotations

NEAR, FAR = 0, 1  # group axis
MEAN, GROUND = 0, 1  # evidence axis: all pixels, or those of the lowest rows
BABY, KID, TEEN, ADULT_FEMALE, ADULT_MALE, ADULT = range(6)  # height classes
HEIGHT_CLASSES = ("baby", "kid", "teen", "adult_female", "adult_male", "adult")
NUM_BETAS = 11  # SMPL's ten and the kid axis, last; models without it keep 0 there
KID_AXIS = 10
