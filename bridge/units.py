"""Old name of `bridge.field_types`, kept for plug-ins."""

import warnings

from bridge.field_types import Bytes, Seconds, duration

__all__ = ["Bytes", "Seconds", "duration"]
warnings.warn("bridge.units is called bridge.field_types now", FutureWarning, stacklevel=2)
