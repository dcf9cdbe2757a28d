// uint8 pixels to normalised floats: value * scale + shift, one fused multiply-add in float32, then rounded to the
// type asked for. A byte has 256 values, so the plain form looks them up in a table made by that very sum: every
// instruction set gives the same bits.
#include "kernels.h"
#include <math.h>
#include <string.h>
#ifdef DL_X86
#include <immintrin.h>
#endif

enum { FLOAT32, FLOAT16, BFLOAT16 };  // kernels/normalize.py holds the same order
enum { MOST_CHANNELS = 4, CHUNK = 1 << 16 };  // CHUNK: pixels of one task

struct pixels {  // kernels/normalize.py holds the same order
    int64_t images, channels, count;  // count: pixels of one image
    int64_t in_image, in_channel, in_pixel;     // strides in bytes
    int64_t out_image, out_channel, out_pixel;  // strides in elements
    int64_t dtype;
};

// How a chunk is done: by lookups, as one row, plane by plane, or RGB pixels into planes.
enum { PLAIN, ROW, PLANES, SPLIT };

struct job {
    const uint8_t *source;
    uint8_t *target;
    const struct pixels *shape;
    const float *scale, *shift;
    int32_t level;
    int64_t chunks;  // of one image
    int form, tabled;
    uint32_t table[MOST_CHANNELS][256];
};

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static uint32_t to_bfloat16(float value) {  // of no NaN
    uint32_t bits = bits_of(value);
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

static uint32_t to_float16(float value) {  // to the nearest, ties to even; of no NaN
    uint32_t sign = bits_of(value) >> 16 & 0x8000;
    float magnitude = fabsf(value);
    if (magnitude >= 65520.0f) return sign | 0x7C00;
    if (magnitude == 0) return sign;
    int exponent;
    frexpf(magnitude, &exponent);
    if (exponent < -13) exponent = -13;  // subnormal: the unit stays that of the smallest normal number
    return sign | (((uint32_t)(exponent + 13) << 10) + (uint32_t)lrintf(ldexpf(magnitude, 11 - exponent)));
}

static uint32_t value_of(const struct job *job, int64_t channel, uint8_t byte) {
    float value = fmaf((float)byte, job->scale[channel], job->shift[channel]);
    switch (job->shape->dtype) {
        case FLOAT32: return bits_of(value);
        case FLOAT16: return to_float16(value);
        default: return to_bfloat16(value);
    }
}

static void make_table(struct job *job) {
    for (int c = 0; c < job->shape->channels; c++)
        for (int i = 0; i < 256; i++) job->table[c][i] = value_of(job, c, (uint8_t)i);
}

static void plain(const struct job *job, const uint8_t *in, uint8_t *out, int64_t from, int64_t count) {
    const struct pixels *s = job->shape;
    const size_t size = s->dtype == FLOAT32 ? 4 : 2;
    for (int64_t c = 0; c < s->channels; c++) {
        const uint8_t *p = in + c * s->in_channel;
        uint8_t *q = out + c * s->out_channel * (int64_t)size;
        for (int64_t x = from; x < count; x++) {
            uint8_t byte = p[x * s->in_pixel];
            uint32_t bits = job->tabled ? job->table[c][byte] : value_of(job, c, byte);
            memcpy(q + x * s->out_pixel * (int64_t)size, &bits, size);  // little-endian: the low half first
        }
    }
}

#ifdef DL_X86
DL_TARGET_AVX2 static inline __attribute__((always_inline)) void store8(uint8_t *out, int64_t at, __m256 v, int dtype) {
    if (dtype == FLOAT32) _mm256_storeu_ps((float *)(out + 4 * at), v);
    else if (dtype == FLOAT16)
        _mm_storeu_si128((__m128i *)(out + 2 * at), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    else {
        __m256i bits = _mm256_castps_si256(v), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        bits = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd), 16);
        __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(bits, bits), 0x08);
        _mm_storeu_si128((__m128i *)(out + 2 * at), _mm256_castsi256_si128(packed));
    }
}

DL_TARGET_AVX512 static inline __attribute__((always_inline)) void store16(uint8_t *out, int64_t at, __m512 v, int dtype) {
    if (dtype == FLOAT32) _mm512_storeu_ps(out + 4 * at, v);
    else if (dtype == FLOAT16)
        _mm256_storeu_si256((__m256i *)(out + 2 * at),
                            _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    else {
        __m512i bits = _mm512_castps_si512(v), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        bits = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd), 16);
        _mm256_storeu_si256((__m256i *)(out + 2 * at), _mm512_cvtepi32_epi16(bits));
    }
}

// Eight RGB pixels, four in each half; four bytes behind them are read.
DL_TARGET_AVX2 static inline __attribute__((always_inline)) __m256i eight(const uint8_t *p) {
    __m128i low = _mm_loadu_si128((const __m128i *)p), high = _mm_loadu_si128((const __m128i *)(p + 12));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

// RGB pixels to planes: a shuffle puts one channel's bytes at the foot of each 32-bit element, zeros above.
DL_TARGET_AVX512 static inline __attribute__((always_inline)) int64_t split16(const struct job *job, const uint8_t *in,
                                                                             uint8_t *out, int64_t count, int dtype) {
    __m512i pick[3];
    __m512 scale[3], shift[3];  // read before the loop: for all the compiler knows, a store may change them
    for (int c = 0; c < 3; c++) {
        scale[c] = _mm512_set1_ps(job->scale[c]);
        shift[c] = _mm512_set1_ps(job->shift[c]);
        pick[c] = _mm512_broadcast_i32x4(
            _mm_setr_epi32((int)(0x80808000u | (unsigned)c), (int)(0x80808000u | (unsigned)(c + 3)),
                           (int)(0x80808000u | (unsigned)(c + 6)), (int)(0x80808000u | (unsigned)(c + 9))));
    }
    const int64_t apart = job->shape->out_channel;
    int64_t x = 0;
    for (; x + 18 <= count; x += 16) {  // the last load reads four bytes of the pixels behind
        const uint8_t *p = in + 3 * x;
        __m512i pixels = _mm512_inserti64x4(_mm512_castsi256_si512(eight(p)), eight(p + 24), 1);
        for (int c = 0; c < 3; c++) {
            __m512 v = _mm512_cvtepi32_ps(_mm512_shuffle_epi8(pixels, pick[c]));
            store16(out, c * apart + x, _mm512_fmadd_ps(v, scale[c], shift[c]), dtype);
        }
    }
    return x;
}

DL_TARGET_AVX2 static inline __attribute__((always_inline)) int64_t split8(const struct job *job, const uint8_t *in,
                                                                          uint8_t *out, int64_t count, int dtype) {
    __m256i pick[3];
    __m256 scale[3], shift[3];
    for (int c = 0; c < 3; c++) {
        scale[c] = _mm256_set1_ps(job->scale[c]);
        shift[c] = _mm256_set1_ps(job->shift[c]);
        pick[c] = _mm256_broadcastsi128_si256(
            _mm_setr_epi32((int)(0x80808000u | (unsigned)c), (int)(0x80808000u | (unsigned)(c + 3)),
                           (int)(0x80808000u | (unsigned)(c + 6)), (int)(0x80808000u | (unsigned)(c + 9))));
    }
    const int64_t apart = job->shape->out_channel;
    int64_t x = 0;
    for (; x + 10 <= count; x += 8) {
        __m256i pixels = eight(in + 3 * x);
        for (int c = 0; c < 3; c++) {
            __m256 v = _mm256_cvtepi32_ps(_mm256_shuffle_epi8(pixels, pick[c]));
            store8(out, c * apart + x, _mm256_fmadd_ps(v, scale[c], shift[c]), dtype);
        }
    }
    return x;
}

// Elements that lie side by side in both: element i is of channel i % channels (a plane: channels = 1), and 48 are a
// whole number of pixels.
DL_TARGET_AVX512 static inline __attribute__((always_inline)) int64_t row16(const uint8_t *in, uint8_t *out, int64_t count,
                                                                           int channels, const float *scale,
                                                                           const float *shift, int dtype) {
    __m512 a[3], b[3];
    float of[2][48];
    for (int i = 0; i < 48; i++) of[0][i] = scale[i % channels], of[1][i] = shift[i % channels];
    for (int v = 0; v < 3; v++) a[v] = _mm512_loadu_ps(of[0] + 16 * v), b[v] = _mm512_loadu_ps(of[1] + 16 * v);
    int64_t x = 0;
    for (; x + 48 <= count; x += 48)
        for (int v = 0; v < 3; v++) {
            __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(in + x + 16 * v)));
            store16(out, x + 16 * v, _mm512_fmadd_ps(_mm512_cvtepi32_ps(bytes), a[v], b[v]), dtype);
        }
    return x;
}

DL_TARGET_AVX2 static inline __attribute__((always_inline)) int64_t row8(const uint8_t *in, uint8_t *out, int64_t count,
                                                                        int channels, const float *scale,
                                                                        const float *shift, int dtype) {
    __m256 a[3], b[3];
    float of[2][24];
    for (int i = 0; i < 24; i++) of[0][i] = scale[i % channels], of[1][i] = shift[i % channels];
    for (int v = 0; v < 3; v++) a[v] = _mm256_loadu_ps(of[0] + 8 * v), b[v] = _mm256_loadu_ps(of[1] + 8 * v);
    int64_t x = 0;
    for (; x + 24 <= count; x += 24)
        for (int v = 0; v < 3; v++) {
            __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(in + x + 8 * v)));
            store8(out, x + 8 * v, _mm256_fmadd_ps(_mm256_cvtepi32_ps(bytes), a[v], b[v]), dtype);
        }
    return x;
}

// One function for each instruction set and type, so that the type is no question in the loops.
#define FORMS(NAME, TARGET, SPLIT, ROW, DTYPE)                                                                      \
    TARGET static int64_t split_##NAME(const struct job *j, const uint8_t *in, uint8_t *out, int64_t count) {       \
        return SPLIT(j, in, out, count, DTYPE);                                                                     \
    }                                                                                                               \
    TARGET static int64_t row_##NAME(const uint8_t *in, uint8_t *out, int64_t count, int channels,                  \
                                     const float *scale, const float *shift) {                                      \
        return ROW(in, out, count, channels, scale, shift, DTYPE);                                                  \
    }
FORMS(avx512_f32, DL_TARGET_AVX512, split16, row16, FLOAT32)
FORMS(avx512_f16, DL_TARGET_AVX512, split16, row16, FLOAT16)
FORMS(avx512_bf16, DL_TARGET_AVX512, split16, row16, BFLOAT16)
FORMS(avx2_f32, DL_TARGET_AVX2, split8, row8, FLOAT32)
FORMS(avx2_f16, DL_TARGET_AVX2, split8, row8, FLOAT16)
FORMS(avx2_bf16, DL_TARGET_AVX2, split8, row8, BFLOAT16)

typedef int64_t split_form(const struct job *, const uint8_t *, uint8_t *, int64_t);
typedef int64_t row_form(const uint8_t *, uint8_t *, int64_t, int, const float *, const float *);
static split_form *const splits[2][3] = {{split_avx2_f32, split_avx2_f16, split_avx2_bf16},
                                         {split_avx512_f32, split_avx512_f16, split_avx512_bf16}};
static row_form *const rows[2][3] = {{row_avx2_f32, row_avx2_f16, row_avx2_bf16},
                                     {row_avx512_f32, row_avx512_f16, row_avx512_bf16}};

// How many pixels a vector form did; the plain one finishes.
static int64_t fast(const struct job *job, const uint8_t *in, uint8_t *out, int64_t count) {
    const struct pixels *s = job->shape;
    int64_t channels = s->channels, done = 0, size = s->dtype == FLOAT32 ? 4 : 2;
    int level = job->level >= DL_AVX512;
    row_form *row = rows[level][s->dtype];
    if (job->form == SPLIT) return splits[level][s->dtype](job, in, out, count);
    if (job->form == ROW) return row(in, out, count * channels, (int)channels, job->scale, job->shift) / channels;
    for (int64_t c = 0; c < channels; c++)
        done = row(in + c * s->in_channel, out + c * s->out_channel * size, count, 1, job->scale + c, job->shift + c);
    return done;
}
#endif

static int form_of(int32_t level, const struct pixels *s) {
    int together = s->in_pixel == s->channels && s->in_channel == 1;
    if (level < DL_AVX2) return PLAIN;
    if (together && s->out_pixel == s->channels && s->out_channel == 1) return ROW;
    if (s->out_pixel == 1 && s->in_pixel == 1) return PLANES;
    return s->out_pixel == 1 && together && s->channels == 3 ? SPLIT : PLAIN;
}

static void one_chunk(void *context, int64_t item) {
    const struct job *job = context;
    const struct pixels *s = job->shape;
    int64_t image = item / job->chunks, first = item % job->chunks * CHUNK, count = s->count - first, done = 0;
    const uint8_t *in = job->source + image * s->in_image + first * s->in_pixel;
    uint8_t *out = job->target + (image * s->out_image + first * s->out_pixel) * (s->dtype == FLOAT32 ? 4 : 2);
    if (count > CHUNK) count = CHUNK;
#ifdef DL_X86
    if (job->form != PLAIN) done = fast(job, in, out, count);
#endif
    plain(job, in, out, done, count);
}

DL_EXPORT void dl_normalize(int32_t level, const uint8_t *source, uint8_t *target, const struct pixels *shape,
                            const float *scale, const float *shift, int32_t threads) {
    struct job job = {.source = source, .target = target, .shape = shape, .scale = scale, .shift = shift, .level = level};
    job.chunks = (shape->count + CHUNK - 1) / CHUNK;
    job.form = form_of(level, shape);
    job.tabled = job.form == PLAIN && shape->images * shape->count >= 256;
    if (job.tabled) make_table(&job);
    dl_parallel(shape->images * job.chunks, threads, one_chunk, &job);
}

struct planes {  // kernels/normalize.py holds the same order
    int64_t images, height, width;
    int64_t y_image, y_row, chroma_image, chroma_row, chroma_pixel;  // strides in bytes; luma lies side by side
    int64_t out_image, out_row, out_pixel, out_channel;              // strides in elements
    int64_t dtype;
};

struct conversion {
    const uint8_t *y, *u, *v;
    uint8_t *target;
    const struct planes *shape;
    const float *factors;  // luma scale and shift; V in red, U and V in green, U in blue; scales; shifts
};

static inline float within_byte(float value) { return value < 0 ? 0 : value > 255 ? 255 : value; }

static void one_yuv_row(void *context, int64_t item) {
    const struct conversion *job = context;
    const struct planes *s = job->shape;
    const float *f = job->factors;
    int64_t image = item / s->height, row = item % s->height, size = s->dtype == FLOAT32 ? 4 : 2;
    const uint8_t *y = job->y + image * s->y_image + row * s->y_row;
    int64_t chroma = image * s->chroma_image + row / 2 * s->chroma_row;
    uint8_t *out = job->target + (image * s->out_image + row * s->out_row) * size;
    for (int64_t x = 0; x < s->width; x++) {
        float luma = (float)y[x] * f[0] + f[1];
        float u = (float)job->u[chroma + x / 2 * s->chroma_pixel] - 128;
        float v = (float)job->v[chroma + x / 2 * s->chroma_pixel] - 128;
        float rgb[3] = {luma + f[2] * v, luma + f[3] * u + f[4] * v, luma + f[5] * u};
        for (int c = 0; c < 3; c++) {
            float value = within_byte(rgb[c]) * f[6 + c] + f[9 + c];
            uint32_t bits = s->dtype == FLOAT32   ? bits_of(value)
                            : s->dtype == FLOAT16 ? to_float16(value)
                                                  : to_bfloat16(value);
            memcpy(out + (x * s->out_pixel + c * s->out_channel) * size, &bits, (size_t)size);
        }
    }
}

DL_EXPORT void dl_normalize_yuv(const uint8_t *y, const uint8_t *u, const uint8_t *v, uint8_t *target,
                                const struct planes *shape, const float *factors, int32_t threads) {
    struct conversion job = {y, u, v, target, shape, factors};
    dl_parallel(shape->images * shape->height, threads, one_yuv_row, &job);
}
