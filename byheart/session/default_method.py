"""Which method a new memory has where none is named.

A method that is named is taken as it is; only the default gives way to another.
"""

from __future__ import annotations

import logging

from byheart.methods.compact import Compact
from byheart.methods.full import Full
from byheart.model.backbone import Backbone
from byheart.session.calibration import find_obstacle

log = logging.getLogger(__name__)


def default_method(backbone: Backbone) -> str:
    """``compact``, or ``full`` where the model can have no codec, which is then logged with its reason.

    Nothing is calibrated to find out.
    """
    obstacle = find_obstacle(backbone)
    if not obstacle:
        return Compact.name
    log.warning(
        "This memory is made with method '%s' instead of '%s', in many times more bytes: %s.",
        Full.name,
        Compact.name,
        obstacle,
    )
    return Full.name
