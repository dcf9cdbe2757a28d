// Shared by every file here. The library is a plain C ABI: no Python headers, no global state but constant tables.
#pragma once
#include <stdint.h>
#include <stddef.h>

#define DL_ABI 6  // kernels/library.py holds the same number
#define DL_EXPORT __attribute__((visibility("default")))

// Instruction sets; the caller passes one not above dl_level(). AVX2 includes FMA, F16C, SSE4.2 and PCLMUL;
// AVX512 is that of Ice Lake and Zen 4, with VPCLMULQDQ and VNNI: older ones wait for memory in the scans with AVX2 already.
enum { DL_PORTABLE = 0, DL_AVX2 = 1, DL_AVX512 = 2 };

#if defined(__x86_64__)
#define DL_X86 1
#define DL_TARGET_AVX2 __attribute__((target("avx2,fma,f16c,sse4.2,pclmul")))
#define DL_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,vpclmulqdq,avx2,fma,f16c,sse4.2,pclmul")))
#define DL_TARGET_BFLOAT16 __attribute__((target("avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,vpclmulqdq,avx2,fma,f16c,sse4.2,pclmul")))
#endif

// Calls task(context, item) for every item in 0..items-1, on up to `threads` threads, the caller's included.
typedef void (*dl_task)(void *context, int64_t item);
void dl_parallel(int64_t items, int32_t threads, dl_task task, void *context);

DL_EXPORT uint32_t dl_crc32c(int32_t level, uint32_t value, const uint8_t *data, int64_t size);
DL_EXPORT int64_t dl_image_facts(const uint8_t *data, int64_t size);
