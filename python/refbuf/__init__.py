"""refbuf"""
from ._refbuf import _C_API, __version__, flush, flush_all, refcount
