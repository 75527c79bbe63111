"""The limits of kvloom in one place: counts, sizes and waits. Units come last in the names.

A limit is checked before the memory it guards is allocated, and the error that reports it names both numbers. Network
stores (``kvstore/network_limits.py``) and simulations (``daemon/planner/simulate/limits.py``) have their own.
"""

from typing import Final

# Layout and chunks
CHUNK_TOKENS_DEFAULT: Final = 256
RECOMPUTED_TOKENS_MIN: Final = 64
"""What a blended prompt computes again at least, where it loads as much: fewer take no less time."""
CHUNK_TOKENS_MAX: Final = 4096
LAYERS_MAX: Final = 512
KV_HEADS_MAX: Final = 1024
HEAD_DIM_MAX: Final = 4096
POSITION_MAX: Final = 2**31 - 1
VOCABULARY_MAX: Final = 2**32 - 1
LAYOUT_BYTES_MAX: Final = 64 * 1024
TRANSFORM_WIDTH_MAX: Final = 4096
"""Channels that one transform of the codec mixes."""
PART_CHANNELS_MAX: Final = 65_535
"""Channels of one part of a codec profile."""
BLOCK_PARTS_MAX: Final = 4096
BLOCK_LAYERS_MAX: Final = 255
GPU_BLOCKS_MAX: Final = 2**31 - 1
"""Thread blocks of one launch, as many as CUDA takes along an axis."""

# Container
LOSSY_LEVELS_MAX: Final = 8
SEGMENTS_MAX: Final = LAYERS_MAX * (LOSSY_LEVELS_MAX + 2)
"""Blocks of one layer at every lossy level, keys and values at ``exact``."""
CONTAINER_HEADER_BYTES_MAX: Final = 96 + LAYOUT_BYTES_MAX + SEGMENTS_MAX * 16 + 8
CONTAINER_BYTES_MAX: Final = 256 * 1024 * 1024
DECODED_BYTES_MAX: Final = 2**32 - 1
"""What a container decodes to; the entropy coder counts symbols in 32 bits."""
PROFILE_BYTES_MAX: Final = 1024 * 1024 * 1024
BLEND_GATE_BYTES_MAX: Final = 4096

# Identity
SALT_BYTES_MAX: Final = 1024
ADAPTER_BYTES_MAX: Final = 1024
MULTIMODAL_DIGESTS_MAX: Final = 4096
PREFIX_TOKENS_MAX: Final = 2_000_000
"""Tokens in one ``longest prefix`` question."""
PREFIX_CHUNKS_MAX: Final = 125_000
"""Chunks in one ``longest prefix`` question: the most tokens, in blocks of 16."""

# Store
KEYS_PER_REQUEST_MAX: Final = 10_000
DIRTY_BYTES_MAX: Final = 512 * 1024 * 1024
"""Bytes accepted in memory and not yet written behind; past this a put waits, then is refused."""
WRITE_BATCH_BYTES_MAX: Final = 64 * 1024 * 1024
WRITE_BATCH_RECORDS_MAX: Final = 256
PUT_WAIT_SECONDS_MAX: Final = 30.0
RECORD_BYTES_MAX: Final = CONTAINER_BYTES_MAX + 4096
"""Payload of one record: a container and what wrappers add to it."""
WRITE_QUEUE_BYTES_MAX: Final = 1024 * 1024 * 1024
"""Bytes handed to one disk tier and not yet committed; past this its puts are refused."""
MEMORY_SEGMENT_BYTES_MAX: Final = 32 * 1024 * 1024
MEMORY_TIER_BYTES_MIN: Final = 256 * 1024
SHARED_DIRTY_BYTES_MAX: Final = 256 * 1024 * 1024
"""Bytes waiting for one shared tier; past this a chunk stays local (or its put waits, where so configured)."""
SHARED_DRAIN_SECONDS_MAX: Final = 10.0
"""How long a closing store still writes to its shared tiers."""
SSD_SEGMENT_BYTES_MAX: Final = 128 * 1024 * 1024
"""A file of the log of an SSD tier whose quota is below 128 GiB is at most so large; a larger one has larger files."""
SSD_SEGMENTS_MAX: Final = 2048
"""Files of that log; each is an open descriptor."""
SSD_INDEX_BYTES_MIN: Final = 64 * 1024
"""What the index of that log may take beside :data:`SSD_INDEX_FRAME_BYTES` for every frame of the log."""
SSD_INDEX_FRAME_BYTES: Final = 128
SSD_INDEX_BATCH_MAX: Final = 1024
"""Changes of the index that are written at once."""
SSD_INDEX_CHANGES_MAX: Final = 65_536
"""Changes that wait to be written to it; past this they are forgotten and it is written anew."""
SCRUB_BYTES_PER_SECOND_DEFAULT: Final = 8 * 1024 * 1024
"""What the background scrub reads: 64 GiB in two and a quarter hours."""
PROMOTIONS_QUEUED_MAX: Final = 256
PROMOTION_BYTES_MAX: Final = 128 * 1024 * 1024
"""Payloads that promotions waiting hold on to; past this a promotion reads its record again."""
PROMOTIONS_AT_ONCE_MAX: Final = 4
CHANGES_REMEMBERED_MAX: Final = 4096
"""Keys whose last change is known; a promotion that is older than the oldest of them is given up."""
GETS_AT_ONCE_DEFAULT: Final = 16
DELETIONS_AT_ONCE_MAX: Final = 64
ADMISSION_KEYS_MAX: Final = 32_768
"""Chunks seen once whose second use a disk tier waits for."""
WARM_RECORDS_MAX: Final = 131_072
"""Records that a daemon remembers over a restart to have been in memory: 64 bytes each."""
TTL_SECONDS_MAX: Final = 10 * 366 * 86_400
SWEEP_SECONDS: Final = 10.0
SHARED_COUNT_ROUNDS_DEFAULT: Final = 6
"""Rounds of upkeep from one count of what owners have on shared tiers to the next."""
SWEEP_RECORDS_MAX: Final = 1024
"""Expired records that one pass frees on one tier."""
LEASE_SECONDS_DEFAULT: Final = 60.0
LEASE_SECONDS_MAX: Final = 3600.0
LEASES_MAX: Final = 4096
"""Leases of one owner at the same time."""
PINNED_SHARE_MAX: Final = 4
"""An owner may pin a quarter of its quota on the smallest local tier, all owners together half of that tier."""
OWNERS_COUNTED_MAX: Final = 1024
"""Owners with counters of their own; those beyond are counted together."""
PROFILES_MAX: Final = 256
"""Codec profiles on one shelf."""
SHELF_BYTES_MAX: Final = 16 * 1024 * 1024 * 1024
"""Their bytes."""
NAMESPACE_CHARS_MAX: Final = 64
TIER_BYTES_MIN: Final = 1024 * 1024
"""The smallest memory or SSD tier that a daemon accepts."""

# Daemon
CONFIG_FILE_BYTES_MAX: Final = 1024 * 1024
LIST_CHUNKS_DEFAULT: Final = 100
LIST_CHUNKS_MAX: Final = 10_000
REQUEST_HEADER_BYTES_MAX: Final = 16 * 1024
REQUEST_LINE_BYTES_MAX: Final = 4 * 1024
REQUEST_HEADERS_MAX: Final = 64
KEEPALIVE_SECONDS_MAX: Final = 75.0
REFUSED_BODY_SECONDS_MAX: Final = 2.0
"""How long the body of a refused request is still read, so that the client gets to see the answer."""
JSON_BODY_BYTES_MAX: Final = 64 * 1024 * 1024
PREFIX_BODY_BYTES_MAX: Final = 32 * 1024 * 1024
JSON_ITEMS_MAX: Final = 4 * 1024 * 1024
"""Values in a JSON body, counted by its commas before it is parsed."""
JSON_NODES_MAX: Final = 1024
"""Lists and objects in a request's JSON body, counted likewise."""
JSON_PARSED_BYTES_PER_BYTE: Final = 8
"""Bytes that a byte of JSON may take once it is parsed; so many are reserved."""
KEYS_BODY_BYTES_MAX: Final = 1024 * 1024
"""A JSON list of ``KEYS_PER_REQUEST_MAX`` keys fits."""
BATCH_HEAD_BYTES_MAX: Final = 4096
"""What stands before a chunk in a batch."""
BATCH_BYTES_MAX: Final = 8 * 1024 * 1024 * 1024
"""A batch of chunks, of which one at a time is in memory."""
REQUEST_ID_CHARACTERS_MAX: Final = 64
CREDENTIAL_CHARS_MAX: Final = 256
"""A key as it is sent; longer ones are not looked at."""
TENANTS_MAX: Final = 1024
API_KEYS_MAX: Final = 10_000
KEY_NOTE_CHARS_MAX: Final = 80
CREDENTIALS_BYTES_MAX: Final = 8 * 1024 * 1024
CREDENTIALS_POLL_SECONDS: Final = 2.0
"""How often a daemon looks whether its credentials file has changed; SIGHUP makes it look at once."""
INFLIGHT_BYTES_MAX: Final = 1024 * 1024 * 1024
REQUESTS_INFLIGHT_MAX: Final = 4096
"""Requests inside at once; a connection has one at a time."""
STORE_READS_MAX: Final = 16
"""Chunks being read out of the store at once; how large each is, is known only when it has been. One tenant may have
three quarters of these places."""
CONNECTIONS_MAX: Final = 10_240
STRANGERS_MAX: Final = 1024
"""Connections over which no key has come yet."""
STRANGER_SECONDS_MAX: Final = 5.0
"""How long one may stay so; with the handshake below it is closed within ten seconds."""
STRANGER_JUDGED_SECONDS_MAX: Final = 0.5
"""What a request that is there when that time is up may take to be judged."""
TLS_HANDSHAKE_SECONDS_MAX: Final = 4.0
HEAD_SECONDS_MAX: Final = 8.0
"""From the first byte of a request's head to its last."""
BODY_WINDOW_SECONDS: Final = 4.0
BODY_BYTES_PER_SECOND_MIN: Final = 16 * 1024
"""A body that comes more slowly than this, over one window, is given up."""
METRIC_TENANTS_MAX: Final = 64
"""Tenants with metrics of their own; those beyond are one series together."""
EVENTS_QUEUED_MAX: Final = 4096
"""KV events that wait for one subscriber; what comes past that is counted as lost."""
EVENT_NAMES_MAX: Final = 131_072
"""Chunks whose hashes are remembered to tell of their removal: 6 MiB."""
EVENT_SUBSCRIBERS_MAX: Final = 256
EVENT_SUBSCRIBERS_PER_TENANT_MAX: Final = 16
EVENT_HEARTBEAT_SECONDS: Final = 15.0
"""How often a stream of events says that it is alive when there are none."""
SAMPLE_SECONDS: Final = 2.0
"""How often a daemon notes how it goes, for whoever looks at the dashboard."""
SAMPLES_MAX: Final = 300
"""Ten minutes of that."""
SAMPLE_TENANTS_MAX: Final = 64
"""Tenants in one of them, the busiest."""
SLOW_WINDOW_SECONDS: Final = 300
"""How long a slow request is remembered."""
SLOW_REQUESTS_PER_TENANT_MAX: Final = 16
"""Slow requests of one tenant in one minute."""
SLOW_TENANTS_MAX: Final = 128
"""Tenants whose requests of one minute are remembered, those that asked first."""
RECENT_CHUNKS_MAX: Final = 24
"""Chunks of one owner that are remembered as his latest."""
RECENT_OWNERS_MAX: Final = 256
TIER_ERROR_CHARACTERS_MAX: Final = 240
SESSION_SECONDS_MAX: Final = 12 * 3600
"""How long a login to the dashboard holds."""
SESSIONS_MAX: Final = 1024
SESSIONS_PER_KEY_MAX: Final = 8
"""Logins with one key at the same time; past this the oldest ends."""
LOGIN_FAILURES_MAX: Final = 10
"""Keys that do not hold, from one address and in one window, before its logins are refused unseen."""
LOGIN_WINDOW_SECONDS: Final = 60.0
LOGIN_PEERS_MAX: Final = 1024
"""Addresses whose failures are counted."""
DRAIN_SECONDS_MAX: Final = 30.0
MEMORY_GIVEN_BACK_SECONDS: Final = 30.0
"""How often a daemon gives memory that it has freed back to the system."""
STREAM_FRAME_BYTES: Final = 1024 * 1024
GRPC_FRAME_BYTES_MAX: Final = 2 * STREAM_FRAME_BYTES
"""A frame of a chunk or a profile, as it is accepted; those that are sent have :data:`STREAM_FRAME_BYTES` of data."""
GRPC_QUESTION_BYTES_MAX: Final = 16 * 1024 * 1024
"""A question: ``PREFIX_TOKENS_MAX`` tokens fit, five bytes each."""
GRPC_KEYS_BYTES_MAX: Final = 512 * 1024
"""A question that names ``KEYS_PER_REQUEST_MAX`` keys fits."""
GRPC_IDLE_SECONDS_MAX: Final = 7.0
"""A gRPC connection over which no call is under way is closed after this: gRPC cannot tell a tenant's from a
stranger's, and its clients connect again by themselves."""
GRPC_STREAMS_PER_CONNECTION_MAX: Final = 256
GRPC_LINGERING_MAX: Final = 256
"""Refused calls whose messages are still taken for a while, so that their clients get to see why."""
BATCH_READ_AHEAD_MAX: Final = 4
"""Chunks of a batch that are read, or ready, while one is being sent."""
LOCAL_CONNECTIONS_MAX: Final = 256
"""Connections to the Unix socket at once."""
LOCAL_LEASES_MAX: Final = 4096
"""Chunks that one connection may hold mapped at once."""
LOCAL_BOARD_LEASES_MAX: Final = 4096
"""Of them, those that a client may keep to read them again without asking; a power of two."""
LOCAL_GET_KEYS_MAX: Final = 128
"""Chunks in one local read: the system passes at most 253 descriptors at a time."""
LOCAL_INLINE_BYTES_MAX: Final = 64 * 1024 * 1024
"""Bytes that one local read of several chunks sends through the socket; the rest is asked for again, one by one."""

# Planner
PLAN_WAYS_MAX: Final = 64
"""Links times levels by which the chunks of one plan can be got."""
PLAN_TENANTS_MAX: Final = 256
"""Tenants of whose engines something is remembered; whoever has not planned or reported for longest is forgotten."""
PLAN_ENGINES_MAX: Final = 16
"""Engines of one tenant, likewise; about 4 KiB each."""
PLAN_LINKS_MAX: Final = 64
"""Links that one tenant's engines report on, likewise; about 1 KiB each."""
PLAN_DECODERS_MAX: Final = 64
"""Levels that one tenant's engines report the decoding of, likewise."""
PLAN_CHUNKS_MAX: Final = 10_000
"""Chunks of one plan."""
PLAN_SAMPLES_MAX: Final = 512
"""Measurements in one report of an engine."""
PLAN_RECENT_MAX: Final = 64
"""Plans that the daemon shows in its figures."""
PLAN_AWAITED_MAX: Final = 4096
"""Plans whose outcome may still be reported."""
PLAN_OUTLINES_MAX: Final = 65_536
"""Chunks whose sizes at each level are remembered, so that planning does not read their headers: about 20 MiB."""
PLAN_SECONDS_DEFAULT: Final = 0.25
"""What the RAG pipeline waits for a plan before it goes on without one."""
PLAN_REPORT_SECONDS_MAX: Final = 5.0
"""What sending one report may take; it is sent in the background."""
PLAN_HEADERS_AT_ONCE_MAX: Final = 32
ENGINE_NAME_CHARACTERS_MAX: Final = 128

# Clients
CLIENT_CONNECTIONS_MAX: Final = 4
"""Connections that one client keeps, and so the reads that ``get_many`` has in flight."""
CONNECT_SECONDS_MAX: Final = 2.0
NAME_KEPT_SECONDS: Final = 10.0
"""How long a client goes by the addresses that it has found for the name of its daemon's machine."""
PROGRESS_SECONDS_MAX: Final = 10.0
"""A transfer that moves no byte for this long is given up."""
LOOKUP_SECONDS_DEFAULT: Final = 0.05
"""What a lookup may take in all, for each :data:`LOOKUP_SHARE_KEYS_MAX` begun; what is not known by then is a miss."""
LOOKUP_SECONDS_MAX: Final = 60.0
LOOKUP_SHARE_KEYS_MAX: Final = 1000
RETRY_TRIES_MAX: Final = 3
"""Tries of one call, the first included."""
RETRY_SECONDS_MAX: Final = 5.0
"""No try begins later than this after the first."""
RETRY_READ_SECONDS_MAX: Final = 0.2
"""The same for reads, lookups and advice: after that, computing the KV is the better way."""
RETRY_BACKOFF_SECONDS: Final = 0.05
"""The longest first wait where a daemon does not say how long to wait; doubled for each further one."""
RETRY_TOKENS_MAX: Final = 10.0
"""A retry or a hedge takes a token of its client's; every call brings :data:`RETRY_TOKENS_PER_CALL`, up to this."""
RETRY_TOKENS_PER_CALL: Final = 0.1
CLIENT_BATCH_BYTES_MAX: Final = 64 * 1024 * 1024
"""Chunks that a client puts in one request; a larger one goes alone."""
CLIENT_BATCH_CHUNKS_MAX: Final = 256
LOCAL_RELEASES_DEFERRED_MAX: Final = 16
LOCAL_RELEASED_BYTES_DEFERRED_MAX: Final = 16 * 1024 * 1024
"""Leases that a client which asks nothing more may keep although it has no use for them: up to either limit."""
LOCAL_KEPT_READ_MAX: Final = 64
"""Chunks that a connection's client reads at a time by leases it has kept: who holds more asks, and is counted."""
LOCAL_USES_DEFERRED_MAX: Final = 4096
"""Reads by kept leases after which the daemon is told of them, if no question has done so before."""
ANSWER_TOKENS_MAX: Final = 1024
"""Tokens of one generated answer; caches are allocated with room for it."""
BATCH_QUESTIONS_MAX: Final = 4096
BLEND_TRIALS_MAX: Final = 256
CALIBRATION_CHARACTERS_MAX: Final = 8 * 1024 * 1024
"""Text that ``kvloom calibrate`` reads, shared out evenly among its files."""

DOCUMENT_BYTES_MAX: Final = 4 * 1024 * 1024
"""Text and title of one document."""
DOCUMENT_NAME_CHARACTERS_MAX: Final = 256
DOCUMENT_VERSIONS_DEFAULT: Final = 3
"""Versions of one document that a library keeps."""
LIBRARY_DOCUMENTS_MAX: Final = 1_000_000
CHAT_BODY_BYTES_MAX: Final = 16 * 1024 * 1024
"""A chat request or a document as it is sent: JSON may take several bytes for one of its text."""
CHAT_REQUESTS_MAX: Final = 64
"""Requests inside a model server or a proxy at once; those beyond are refused."""
CHAT_THREADS_MAX: Final = CHAT_REQUESTS_MAX + 8
"""Threads of such a server: each request inside may wait in one, and what ends streams finds one beside them."""
CHAT_DOCUMENTS_MAX: Final = 256
"""Documents of one chat request."""
CHAT_QUESTION_CHARACTERS_MAX: Final = 1024 * 1024
CHAT_UPSTREAM_SECONDS_MAX: Final = 600.0
"""How long a proxy waits for the next bytes of the engine behind it."""
INGESTS_QUEUED_MAX: Final = 1024
"""Ingests in the background that wait for one another."""

# GPU tier
POOL_PAGE_TOKENS_DEFAULT: Final = 16
"""Tokens of one page of decoded KV, as in vLLM."""
POOL_PAGE_TOKENS_MAX: Final = 4096
POOL_PAGES_MAX: Final = 2**31 - 1
"""Pages of one pool; block tables count in 32 bits."""
POOL_DIRTY_BYTES_MAX: Final = 256 * 1024 * 1024
"""Decoded bytes that are in a pool and not yet stored; past this a put waits, then is refused."""
POOL_PREFETCHES_MAX: Final = 4
"""Prefetches of a pool under way at once; what more is asked for is left out."""
POOL_BATCH_CHUNKS_MAX: Final = 128
"""Chunks that a pool loads at once."""
POOL_LOADS_MAX: Final = 4
"""Calls of its source that a pool has under way."""
POOL_CLOSE_SECONDS_MAX: Final = 30.0
"""How long a closing pool still stores what is not stored yet."""
POOL_REPORT_SECONDS: Final = 1.0
"""How often a pool tells the daemon what has changed in it."""
POOL_REPORT_KEYS_MAX: Final = 1000
"""Keys in one report of a pool."""
POOL_CHUNKS_REGISTERED_MAX: Final = 1_000_000
"""Chunks in pools that a daemon knows by key, all pools together: about 100 bytes each."""
POOL_NAME_CHARACTERS_MAX: Final = 64
LOCAL_POOL_BYTES_MAX: Final = 4096
"""What a pool says of itself, beside keys."""

# Engines
ENGINE_LOAD_SECONDS_DEFAULT: Final = 5.0
"""How long a request waits for stored KV before the engine computes it."""
ENGINE_LOAD_SECONDS_MAX: Final = 600.0
ENGINE_LOAD_TOKENS_MIN: Final = 32
"""A hit shorter than this is computed: a step of the engine costs about as much as the load."""
ENGINE_LOAD_THREADS_MAX: Final = 8
ENGINE_SAVE_QUEUE_BYTES_DEFAULT: Final = 512 * 1024 * 1024
"""KV copied out of an engine that waits to be encoded and sent; what comes when it is full is not stored."""
ENGINE_SAVE_QUEUE_BYTES_MAX: Final = 64 * 1024 * 1024 * 1024
ENGINE_CLOSE_SECONDS_MAX: Final = 20.0
"""How long an engine that ends still sends what waits."""
ENGINE_AWAIT_SECONDS_DEFAULT: Final = 30.0
"""How long a request waits for KV that another engine is to compute, before it is computed here."""
ENGINE_AWAIT_PAUSE_SECONDS: Final = 0.005
"""Between two questions whether it has come."""
ENGINE_PLAN_PREFILLS_DEFAULT: Final = 5
"""Prefills that an engine has to have reported before the planner's word is taken."""
ENGINE_PLAN_PREFILL_TOKENS_MIN: Final = 32
"""A shorter one says little of what tokens cost."""
ENGINE_PLANNED_LOAD_SECONDS_MIN: Final = 0.05
"""A load is given this long even where computing takes less."""
ENGINE_DOCUMENTS_MAX: Final = 256
"""Documents that one request to an engine marks."""
ENGINE_TIER_JOBS_MAX: Final = 256
"""Transfers of vLLM's own offloading under way; what comes on top of them is not stored, and computed."""
ENGINE_REPORT_SECONDS: Final = 1.0
"""Between two reports of what loads and prefills took."""
ENGINE_PROBE_SECONDS: Final = 30.0
"""With nothing loaded for so long, a chunk that was not worth loading is read, to learn what its link does now."""
ENGINE_IDLE_SECONDS: Final = 0.005
"""How long a step with nothing to compute waits for a load, so that the engine does not turn idly meanwhile."""
ENGINE_LOOKUP_REUSE_SECONDS: Final = 2.0
"""For how long a request that waits for room is not looked up again."""
ENGINE_PAUSE_SECONDS_MIN: Final = 1.0
"""How long a daemon that kept silent is not asked; doubled each time, up to :data:`ENGINE_PAUSE_SECONDS_MAX`."""
ENGINE_PAUSE_SECONDS_MAX: Final = 30.0
ENGINE_SAVES_REMEMBERED_MAX: Final = 16_384
"""Chunks known to be on their way to the daemon, which are not saved twice."""
ENGINE_SAVES_REMEMBERED_SECONDS: Final = 30.0
ENGINE_SAVE_SECONDS_MAX: Final = 5.0
"""What is not stored so long after it was saved has been lost, and is saved anew."""
ENGINE_TAIL_TOKENS_MIN: Final = 8
"""A shorter unfinished chunk is not worth a record."""
