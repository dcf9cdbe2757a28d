// One score per row against one query. All sums are float64: products of two float32 numbers are exact in it, sums of
// squares cannot overflow, and a sum is finite exactly when every element is. The scan still waits for memory.
#include "scores.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#ifdef DL_X86
#include <immintrin.h>
#endif

enum { LANES = 16, CHUNK = 256, AHEAD = 2, FAR = 8192 };  // CHUNK: rows of one task; FAR: bytes prefetched of a row

struct scan {
    const void *matrix;
    const int64_t *rows;
    double *out;
    struct query query;
    int metric;
    int64_t count;
    void (*range)(const struct scan *scan, int64_t from, int64_t to);
};

static inline double score(const struct scan *scan, double sum, double norm) {
    if (!isfinite(scan->query.norm)) return NAN;
    if (scan->metric == L2) return isfinite(sum) ? sqrt(sum) : NAN;
    if (scan->metric == INNER) return isfinite(sum) ? sum : NAN;
    if (!isfinite(norm) || !(norm > 0) || !(scan->query.norm > 0)) return NAN;
    double cosine = sum / sqrt(norm * scan->query.norm);
    return cosine > 1 ? 1 : cosine < -1 ? -1 : cosine;
}

// Listed rows lie anywhere, so a whole row is asked for two rows early: half the time of leaving it to the processor.
static inline void prefetch(const void *row, size_t bytes) {
    for (size_t at = 0; at < bytes && at < FAR; at += 64) __builtin_prefetch((const char *)row + at);
}

struct unaligned_float { float value; } __attribute__((packed));
struct unaligned_half { uint16_t bits; } __attribute__((packed));

static inline double of_float(const struct unaligned_float *p) { return (double)p->value; }

static inline double of_half(const struct unaligned_half *p) {
    uint32_t sign = (uint32_t)(p->bits & 0x8000) << 16, exponent = p->bits >> 10 & 31, fraction = p->bits & 1023;
    if (exponent == 0) return (sign ? -0x1p-24 : 0x1p-24) * (double)fraction;
    uint32_t bits = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
    float value;
    memcpy(&value, &bits, 4);
    return (double)value;
}

#define TARGET
#define V double
#define W 1
#define ZERO 0.0
#define QUERY(p) (*(p))
#define ADD(a, b) ((a) + (b))
#define SUB(a, b) ((a) - (b))
#define MUL(a, b) ((a) * (b))
#define FMA(a, b, c) ((a) * (b) + (c))
#define STORE(p, v) (*(p) = (v))
#define NAME(x) portable_float32_##x
#define ELEMENT struct unaligned_float
#define LOAD(p) of_float(p)
#include "scores_body.h"
#define NAME(x) portable_float16_##x
#define ELEMENT struct unaligned_half
#define LOAD(p) of_half(p)
#include "scores_body.h"
#undef TARGET
#undef V
#undef W
#undef ZERO
#undef QUERY
#undef ADD
#undef SUB
#undef MUL
#undef FMA
#undef STORE

#ifdef DL_X86
#define TARGET DL_TARGET_AVX2
#define V __m256d
#define W 4
#define ZERO _mm256_setzero_pd()
#define QUERY(p) _mm256_loadu_pd(p)
#define ADD(a, b) _mm256_add_pd(a, b)
#define SUB(a, b) _mm256_sub_pd(a, b)
#define MUL(a, b) _mm256_mul_pd(a, b)
#define FMA(a, b, c) _mm256_fmadd_pd(a, b, c)
#define STORE(p, v) _mm256_storeu_pd(p, v)
#define NAME(x) avx2_float32_##x
#define ELEMENT float
#define LOAD(p) _mm256_cvtps_pd(_mm_loadu_ps(p))
#include "scores_body.h"
#define NAME(x) avx2_float16_##x
#define ELEMENT uint16_t
#define LOAD(p) _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64((const __m128i *)(p))))
#include "scores_body.h"
#undef TARGET
#undef V
#undef W
#undef ZERO
#undef QUERY
#undef ADD
#undef SUB
#undef MUL
#undef FMA
#undef STORE

#define TARGET DL_TARGET_AVX512
#define V __m512d
#define W 8
#define ZERO _mm512_setzero_pd()
#define QUERY(p) _mm512_loadu_pd(p)
#define ADD(a, b) _mm512_add_pd(a, b)
#define SUB(a, b) _mm512_sub_pd(a, b)
#define MUL(a, b) _mm512_mul_pd(a, b)
#define FMA(a, b, c) _mm512_fmadd_pd(a, b, c)
#define STORE(p, v) _mm512_storeu_pd(p, v)
#define NAME(x) avx512_float32_##x
#define ELEMENT float
#define LOAD(p) _mm512_cvtps_pd(_mm256_loadu_ps(p))
#include "scores_body.h"
#define NAME(x) avx512_float16_##x
#define ELEMENT uint16_t
#define LOAD(p) _mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p))))
#include "scores_body.h"
#endif

static void (*const ranges[3][2])(const struct scan *, int64_t, int64_t) = {
    {portable_float32_range, portable_float16_range},
#ifdef DL_X86
    {avx2_float32_range, avx2_float16_range},
    {avx512_float32_range, avx512_float16_range},
#endif
};

static void one_chunk(void *context, int64_t item) {
    const struct scan *scan = context;
    int64_t from = item * CHUNK, to = from + CHUNK < scan->count ? from + CHUNK : scan->count;
    scan->range(scan, from, to);
}

int dl_prepare(struct query *query, const void *values, int64_t dimension) {
    size_t padded = (size_t)((dimension + LANES - 1) / LANES * LANES);
    const struct unaligned_float *given = values;
    query->dimension = dimension;
    query->values = calloc(padded, sizeof(double));
    if (!query->values) return 1;
    double lanes[LANES] = {0};
    for (int64_t i = 0; i < dimension; i++) {
        double x = query->values[i] = of_float(given + i);
        lanes[i % LANES] += x * x;
    }
    query->norm = portable_float32_fold(lanes);
    return 0;
}

double dl_score(int32_t level, int32_t dtype, int32_t metric, const struct query *query, const void *row) {
    double score;
    struct scan scan = {row, NULL, &score, *query, metric, 1, NULL};
    ranges[level][dtype](&scan, 0, 1);
    return score;
}

// 0; -1 without memory; 1 + i when rows[i] is not a row of the matrix.
DL_EXPORT int64_t dl_scores(int32_t level, const void *matrix, int64_t count, int64_t dimension, int32_t dtype,
                            const void *query, int32_t metric, const int64_t *rows, int64_t size, double *out,
                            int32_t threads) {
    for (int64_t i = 0; rows && i < size; i++)
        if (rows[i] < 0 || rows[i] >= count) return 1 + i;
    struct scan scan = {matrix, rows, out, {0}, metric, size, ranges[level][dtype]};
    if (dl_prepare(&scan.query, query, dimension)) return -1;
    int64_t megabytes = size * dimension >> 18;  // a thread costs as much as reading about one
    if (threads > megabytes) threads = (int32_t)megabytes;
    dl_parallel((size + CHUNK - 1) / CHUNK, threads, one_chunk, &scan);
    free(scan.query.values);
    return 0;
}
