"""How much may be under way to a network store, and how long; checked before anything is sent or allocated."""

from typing import Final

NETWORK_INFLIGHT_BYTES_MAX: Final = 512 * 1024 * 1024
"""Bytes of records on their way to or from the network store; a single record may be as large as its own limit."""
NETWORK_REQUESTS_MAX: Final = 64
"""Operations under way at the network store."""
NETWORK_WAITING_MAX: Final = 1024
"""Operations that wait for one of those to end; past this they are refused."""
NETWORK_WAIT_SECONDS_MAX: Final = 5.0
NETWORK_TRIES_MAX: Final = 3
NETWORK_BYTES_PER_SECOND_MIN: Final = 8 * 1024 * 1024
"""A transfer slower than this is given up: computing the KV again is faster."""
VALKEY_VALUE_BYTES_MAX: Final = 1024 * 1024
"""One value of Valkey, and so the longest that one command holds up its server."""
VALKEY_CONNECTIONS_MAX: Final = 16
"""Connections to one Valkey node."""
S3_PART_BYTES: Final = 8 * 1024 * 1024
"""A larger object is put in parts of this size, and read in ranges of it."""
S3_REQUESTS_PER_OBJECT_MAX: Final = 4
MOONCAKE_THREADS_MAX: Final = 16
"""Threads that wait in Mooncake's client; one that never comes back is lost to the pool."""
