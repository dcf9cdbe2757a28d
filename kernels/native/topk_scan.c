// Products of rows and queries in float32, or for batches in bfloat16, by every instruction set. One query waits for
// memory, so it reads one row after the other; a batch is bound by arithmetic, so it takes rows in blocks, each element
// of a row against 16 queries at a time with no sum across a vector.
#include "topk.h"
#include <math.h>
#include <string.h>
#ifdef DL_X86
#include <immintrin.h>
#endif

enum { AHEAD = 6144 };  // bytes asked for early, line by line: half of that is as good for a scan, and worse for lists

static inline float of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

struct unaligned_float { float value; } __attribute__((packed));
struct unaligned_half { uint16_t bits; } __attribute__((packed));
struct unaligned_brain { uint16_t bits; } __attribute__((packed));

static inline float of_half(uint32_t half) {
    uint32_t sign = (half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 0) return (sign ? -0x1p-24f : 0x1p-24f) * (float)fraction;
    return of_bits(sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13);
}

// The tests of struct dl_reach: compiled once for each instruction set, which vectorises them.
#define ANY(name)                                                                                               \
    TARGET static int name##_rows(const struct dl_reach *reach, const float *products, const float *squares,   \
                                  int64_t count) {                                                             \
        float fixed = *reach->fixed, length = *reach->length, square = *reach->square;                         \
        int found = 0;                                                                                          \
        for (int64_t i = 0; i < count; i++)                                                                     \
            found |= !(products[i] < fixed + length * sqrtf(squares[i]) + square * squares[i]) |               \
                     !(squares[i] > DL_SMALLEST) | !(squares[i] < DL_LARGEST);                                  \
        return found;                                                                                           \
    }                                                                                                           \
    TARGET static int name##_queries(const struct dl_reach *reach, const float *products, float square,        \
                                     int64_t count) {                                                          \
        float length = sqrtf(square);                                                                           \
        int found = !(square > DL_SMALLEST) | !(square < DL_LARGEST);                                           \
        for (int64_t i = 0; i < count; i++)                                                                     \
            found |= !(products[i] < reach->fixed[i] + reach->length[i] * length + reach->square[i] * square); \
        return found;                                                                                           \
    }

// A tile of ROWS rows and LANES lanes of queries, for vectors V of DL_LANE / PARTS units; expects ONE(units), a unit of
// a row in every place, and DOT(sum, queries, one). The next block's rows are asked for one cache line a step: the
// scan of a batch would otherwise wait for memory and compute in turn.
#define TILE(name, target, V, PARTS, ROWS, LANES)                                                               \
    target static inline __attribute__((always_inline)) void name(const struct dl_tile *tile, int64_t row,     \
                                                                  int64_t lane) {                              \
        enum { PLACES = DL_LANE / PARTS };                                                                      \
        const uint32_t *rows = tile->rows + row * tile->width, *queries = tile->queries + lane * DL_LANE;      \
        V sum[ROWS][LANES * PARTS];                                                                             \
        for (int r = 0; r < ROWS; r++)                                                                          \
            for (int v = 0; v < LANES * PARTS; v++) sum[r][v] = (V)ZERO;                                        \
        int64_t part = (tile->steps + ROWS - 1) / ROWS;                                                         \
        for (int next = 0; next < ROWS; next++) {                                                               \
            const char *ahead = tile->ahead[row + next], *last = ahead + tile->ahead_bytes;                     \
            int64_t stop = (next + 1) * part < tile->steps ? (next + 1) * part : tile->steps;                   \
            for (int64_t at = next * part; at < stop; at++, ahead += ahead < last ? 64 : 0) {                   \
                const uint32_t *q = queries + at * tile->lanes * DL_LANE;                                       \
                __builtin_prefetch(ahead, 0, 2);                                                                \
                for (int r = 0; r < ROWS; r++) {                                                                \
                    __auto_type one = ONE(rows + r * tile->width + at);                                         \
                    for (int v = 0; v < LANES * PARTS; v++) sum[r][v] = DOT(sum[r][v], q + v * PLACES, one);    \
                }                                                                                               \
            }                                                                                                   \
        }                                                                                                       \
        for (int r = 0; r < ROWS; r++)                                                                          \
            for (int v = 0; v < LANES * PARTS; v++)                                                             \
                memcpy(tile->products + ((row + r) * tile->lanes + lane) * DL_LANE + v * PLACES, &sum[r][v],    \
                       sizeof(V));                                                                              \
    }

typedef float F4 __attribute__((vector_size(16)));

static inline F4 load4(const void *p) {
    F4 v;
    memcpy(&v, p, sizeof v);
    return v;
}

#define TARGET
#define F F4
#define W 4
#define ZERO (F4){0}
#define QUERY(p) load4(p)
#define FMA(a, b, c) ((a) * (b) + (c))
#define SUM(v) (((v)[0] + (v)[2]) + ((v)[1] + (v)[3]))
#define NAME(x) portable_float32_##x
#define ELEMENT struct unaligned_float
#define LOAD(p) load4(p)
#include "topk_body.h"
#define NAME(x) portable_float16_##x
#define ELEMENT struct unaligned_half
#define LOAD(p) (F4){of_half((p)[0].bits), of_half((p)[1].bits), of_half((p)[2].bits), of_half((p)[3].bits)}
#include "topk_body.h"
#define BRAIN(p, i) of_bits((uint32_t)(p)[i].bits << 16)
#define NAME(x) portable_bfloat16_##x
#define ELEMENT struct unaligned_brain
#define LOAD(p) (F4){BRAIN(p, 0), BRAIN(p, 1), BRAIN(p, 2), BRAIN(p, 3)}
#include "topk_body.h"
#define NAME(x) portable_int8_##x
#define ELEMENT int8_t
#define LOAD(p) (F4){(float)(p)[0], (float)(p)[1], (float)(p)[2], (float)(p)[3]}
#include "topk_body.h"
ANY(portable_any)
static inline F4 one4(const uint32_t *unit) {
    float x = of_bits(*unit);
    return (F4){x, x, x, x};
}
#define ONE(unit) one4(unit)
#define DOT(sum, q, one) (load4(q) * (one) + (sum))
TILE(portable_rows, , F4, 4, 3, 1)
static void portable_tile(const struct dl_tile *tile) {
    for (int64_t row = 0; row < tile->count; row += 3)
        for (int64_t lane = 0; lane < tile->lanes; lane++) portable_rows(tile, row, lane);
}
#undef ONE
#undef DOT
#undef TARGET
#undef F
#undef W
#undef ZERO
#undef QUERY
#undef FMA
#undef SUM

#ifdef DL_X86
#define TARGET DL_TARGET_AVX2
#define F __m256
#define W 8
#define ZERO _mm256_setzero_ps()
#define QUERY(p) _mm256_loadu_ps(p)
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
TARGET static inline float sum8(__m256 v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
#define SUM(v) sum8(v)
#define NAME(x) avx2_float32_##x
#define ELEMENT float
#define LOAD(p) _mm256_loadu_ps(p)
#include "topk_body.h"
#define NAME(x) avx2_float16_##x
#define ELEMENT uint16_t
#define LOAD(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p)))
#include "topk_body.h"
#define NAME(x) avx2_bfloat16_##x
#define ELEMENT uint16_t
#define LOAD(p) _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p))), 16))
#include "topk_body.h"
#define NAME(x) avx2_int8_##x
#define ELEMENT int8_t
#define LOAD(p) _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p))))
#include "topk_body.h"
ANY(avx2_any)
#define ONE(unit) _mm256_castsi256_ps(_mm256_set1_epi32((int)*(unit)))
#define DOT(sum, q, one) _mm256_fmadd_ps(_mm256_loadu_ps((const float *)(q)), one, sum)
TILE(avx2_rows, TARGET, __m256, 2, 6, 1)
TARGET static void avx2_tile(const struct dl_tile *tile) {
    for (int64_t row = 0; row < tile->count; row += 6)
        for (int64_t lane = 0; lane < tile->lanes; lane++) avx2_rows(tile, row, lane);
}
#undef ONE
#undef DOT
#undef TARGET
#undef F
#undef W
#undef ZERO
#undef QUERY
#undef FMA
#undef SUM

#define TARGET DL_TARGET_AVX512
#define PAIR_TARGET DL_TARGET_BFLOAT16
#define PAIR(units, x, y) _mm512_storeu_si512(units, (__m512i)_mm512_cvtne2ps_pbh(y, x))
#define F __m512
#define W 16
#define ZERO _mm512_setzero_ps()
#define QUERY(p) _mm512_loadu_ps(p)
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define SUM(v) _mm512_reduce_add_ps(v)
#define NAME(x) avx512_float32_##x
#define ELEMENT float
#define LOAD(p) _mm512_loadu_ps(p)
#include "topk_body.h"
#define NAME(x) avx512_float16_##x
#define ELEMENT uint16_t
#define LOAD(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p)))
#include "topk_body.h"
#define NAME(x) avx512_bfloat16_##x
#define ELEMENT uint16_t
#define LOAD(p) _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p))), 16))
#include "topk_body.h"
#define NAME(x) avx512_int8_##x
#define ELEMENT int8_t
#define LOAD(p) _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(p))))
#include "topk_body.h"
ANY(avx512_any)
#define ONE(unit) ((__m512bh)_mm512_set1_epi32((int)*(unit)))
#define DOT(sum, q, one) _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(q), one)
TILE(pairs_1, DL_TARGET_BFLOAT16, __m512, 1, 12, 1)
TILE(pairs_2, DL_TARGET_BFLOAT16, __m512, 1, 12, 2)
TILE(pairs_3, DL_TARGET_BFLOAT16, __m512, 1, 8, 3)
TILE(pairs_4, DL_TARGET_BFLOAT16, __m512, 1, 6, 4)
DL_TARGET_BFLOAT16 static void pairs_tile(const struct dl_tile *tile) {
    switch (tile->lanes) {
        case 1: for (int64_t row = 0; row < tile->count; row += 12) pairs_1(tile, row, 0); break;
        case 2: for (int64_t row = 0; row < tile->count; row += 12) pairs_2(tile, row, 0); break;
        case 3: for (int64_t row = 0; row < tile->count; row += 8) pairs_3(tile, row, 0); break;
        default: for (int64_t row = 0; row < tile->count; row += 6) pairs_4(tile, row, 0);
    }
}
#endif

dl_products dl_products_of(int32_t level, int32_t dtype) {
    static const dl_products all[3][4] = {
        {portable_float32_products, portable_float16_products, portable_bfloat16_products, portable_int8_products},
#ifdef DL_X86
        {avx2_float32_products, avx2_float16_products, avx2_bfloat16_products, avx2_int8_products},
        {avx512_float32_products, avx512_float16_products, avx512_bfloat16_products, avx512_int8_products},
#endif
    };
    return all[level][dtype];
}

const struct dl_batch *dl_batch_of(int32_t level) {
    static const struct dl_batch all[3] = {
        {{portable_float32_convert, portable_float16_convert, portable_bfloat16_convert, portable_int8_convert},
         portable_tile, 0},
#ifdef DL_X86
        {{avx2_float32_convert, avx2_float16_convert, avx2_bfloat16_convert, avx2_int8_convert}, avx2_tile, 0},
        {{avx512_float32_convert, avx512_float16_convert, avx512_bfloat16_convert, avx512_int8_convert}, pairs_tile, 1},
#endif
    };
#ifdef DL_X86
    if (level == DL_AVX512 && !__builtin_cpu_supports("avx512bf16")) level = DL_AVX2;  // Ice Lake
#endif
    return all + level;
}

const struct dl_tests *dl_tests_of(int32_t level) {
    static const struct dl_tests all[3] = {
        {portable_any_rows, portable_any_queries},
#ifdef DL_X86
        {avx2_any_rows, avx2_any_queries},
        {avx512_any_rows, avx512_any_queries},
#endif
    };
    return all + level;
}
