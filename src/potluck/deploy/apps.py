"""Where Flower finds the two apps.

Torch, Flower and Potluck make some hundred thousand objects as they are imported, which live as long as the process.
The garbage collector looks at them again and again, for a third of a short process's time: it rests meanwhile.
"""

from __future__ import annotations

import gc

gc.freeze()
gc.disable()
from potluck.deploy.client_app import client_app  # noqa: E402 - that is the point
from potluck.deploy.server_app import server_app  # noqa: E402 - the same

gc.freeze()
gc.enable()

__all__ = ["client_app", "server_app"]
