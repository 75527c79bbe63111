// The kernels: lossy levels of many chunks, between their bytes and the pages of an engine.
//
// Built at run time by CuPy (codec/cuda/device.py); by nvcc in a test; and, as C++ (-x c++), for the CPU, where the
// tests compare every number with the NumPy reference.
#include "decode.cuh"
#include "encode.cuh"
#include "pages.cuh"
#include "synthesis.cuh"

KVL_KERNEL(kvl_decode, KvlDecode, KVL_WARP, kvl_decode_body)
KVL_KERNEL(kvl_synthesise, KvlSynthesis, KVL_TILE_THREADS, kvl_synthesise_body)
KVL_KERNEL(kvl_scatter, KvlPages, KVL_PAGE_THREADS, kvl_scatter_body)
KVL_KERNEL(kvl_gather, KvlPages, KVL_PAGE_THREADS, kvl_gather_body)
KVL_KERNEL(kvl_quantise, KvlQuantise, KVL_WARP, kvl_quantise_body)
KVL_KERNEL(kvl_encode, KvlEncode, KVL_WARP, kvl_encode_body)
