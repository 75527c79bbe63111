"""How much a simulation may be of; checked before anything is allocated."""

from typing import Final

SIMULATED_REQUESTS_MAX: Final = 10_000_000
SIMULATED_BLOCK_USES_MAX: Final = 200_000_000
"""Blocks of all requests of one workload, each as often as it is used: 4 bytes apiece."""
SIMULATED_SEGMENTS_MAX: Final = 1_000_000
"""Pieces of one bandwidth over time."""
SIMULATED_NODES_MAX: Final = 10_000
SIMULATED_TRACE_BYTES_MAX: Final = 1024 * 1024 * 1024
"""One file of a trace, which is read whole."""
