"""Memory of this process."""

import resource
import sys


def peak_mebibytes() -> float:
    """The most memory that the process has had resident so far, in MiB."""
    # Linux counts in KiB, macOS in bytes.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
