// CRC-32C. AVX-512: 256 bytes are folded at once with carry-less products. AVX2: the crc32 instruction takes 8 bytes but
// answers three cycles later, so three blocks are summed at once and joined. Elsewhere: eight tables, 8 bytes a step.
#include "kernels.h"
#include <string.h>
#ifdef DL_X86
#include <immintrin.h>
#endif

#define POLYNOMIAL 0x82F63B78u  // bit-reflected
enum { LONG = 2048, SHORT = 256 };  // bytes of one of the three blocks
enum { WIDE = 256 };                // bytes folded at once

static uint32_t table[8][256];
static uint64_t shift_long[2], shift_short[2];  // factors that carry a sum over one and over two blocks
static uint64_t fold_low, fold_high;            // factors that carry 128 bits over WIDE bytes

// a * b modulo the polynomial; reflected: x^0 is the highest bit.
static uint32_t multiply(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (uint32_t bit = 1u << 31; bit; bit >>= 1) {
        if (a & bit) product ^= b;
        b = b & 1 ? b >> 1 ^ POLYNOMIAL : b >> 1;
    }
    return product;
}

static uint32_t power_of_x(uint64_t n) {
    uint32_t result = 1u << 31, square = 1u << 30;
    for (; n; n >>= 1, square = multiply(square, square))
        if (n & 1) result = multiply(result, square);
    return result;
}

__attribute__((constructor)) static void make_tables(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >> 1 ^ POLYNOMIAL : crc >> 1;
        table[0][i] = crc;
    }
    for (int t = 1; t < 8; t++)
        for (uint32_t i = 0; i < 256; i++) table[t][i] = table[t - 1][i] >> 8 ^ table[0][table[t - 1][i] & 255];
    // The instruction that reduces the product multiplies by x^32, and the reflected product by x: 33 are taken off.
    // A folded product of 64 by 32 bits lands 33 too high as well; its low half stands 64 above its high half.
    for (int blocks = 1; blocks <= 2; blocks++) {
        shift_long[blocks - 1] = power_of_x(8ull * LONG * blocks - 33);
        shift_short[blocks - 1] = power_of_x(8ull * SHORT * blocks - 33);
    }
    fold_low = power_of_x(8ull * WIDE + 64 - 33);
    fold_high = power_of_x(8ull * WIDE - 33);
}

static uint32_t crc_portable(uint32_t crc, const uint8_t *p, int64_t n) {
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t v;
        memcpy(&v, p, 8);
        v ^= crc;
        crc = table[7][v & 255] ^ table[6][v >> 8 & 255] ^ table[5][v >> 16 & 255] ^ table[4][v >> 24 & 255] ^
              table[3][v >> 32 & 255] ^ table[2][v >> 40 & 255] ^ table[1][v >> 48 & 255] ^ table[0][v >> 56];
    }
    for (; n > 0; n--) crc = crc >> 8 ^ table[0][(crc ^ *p++) & 255];
    return crc;
}

#ifdef DL_X86
DL_TARGET_AVX2 static inline uint64_t word(const uint8_t *p) {
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

DL_TARGET_AVX2 static inline uint64_t carried(uint64_t crc, uint64_t factor) {
    __m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128((int64_t)crc), _mm_cvtsi64_si128((int64_t)factor), 0);
    return (uint64_t)_mm_cvtsi128_si64(product);
}

DL_TARGET_AVX2 static inline uint64_t three(uint64_t a, const uint8_t *p, int block, const uint64_t shift[2]) {
    uint64_t b = 0, c = 0;
    for (int i = 0; i < block; i += 8) {
        a = _mm_crc32_u64(a, word(p + i));
        b = _mm_crc32_u64(b, word(p + block + i));
        c = _mm_crc32_u64(c, word(p + 2 * block + i));
    }
    return _mm_crc32_u64(0, carried(a, shift[1]) ^ carried(b, shift[0])) ^ c;
}

DL_TARGET_AVX2 static uint32_t crc_sse42(uint32_t start, const uint8_t *p, int64_t n) {
    uint64_t crc = start;
    for (; n >= 3 * LONG; n -= 3 * LONG, p += 3 * LONG) crc = three(crc, p, LONG, shift_long);
    for (; n >= 3 * SHORT; n -= 3 * SHORT, p += 3 * SHORT) crc = three(crc, p, SHORT, shift_short);
    for (; n >= 8; n -= 8, p += 8) crc = _mm_crc32_u64(crc, word(p));
    for (; n > 0; n--) crc = _mm_crc32_u8((uint32_t)crc, *p++);
    return (uint32_t)crc;
}

DL_TARGET_AVX512 static uint32_t crc_avx512(uint32_t crc, const uint8_t *p, int64_t n) {
    if (n < 4 * WIDE) return crc_sse42(crc, p, n);
    const __m512i factors = _mm512_set_epi64((long long)fold_high, (long long)fold_low, (long long)fold_high,
                                             (long long)fold_low, (long long)fold_high, (long long)fold_low,
                                             (long long)fold_high, (long long)fold_low);
    uint8_t rest[WIDE];
    __m512i sum[WIDE / 64];
    for (int i = 0; i < WIDE / 64; i++) sum[i] = _mm512_loadu_si512(p + 64 * i);
    sum[0] = _mm512_xor_si512(sum[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    for (p += WIDE, n -= WIDE; n >= WIDE; p += WIDE, n -= WIDE) {
        for (int i = 0; i < WIDE / 64; i++) {
            __m512i low = _mm512_clmulepi64_epi128(sum[i], factors, 0x00);
            __m512i high = _mm512_clmulepi64_epi128(sum[i], factors, 0x11);
            sum[i] = _mm512_ternarylogic_epi64(low, high, _mm512_loadu_si512(p + 64 * i), 0x96);  // exclusive or
        }
    }
    for (int i = 0; i < WIDE / 64; i++) _mm512_storeu_si512(rest + 64 * i, sum[i]);
    return crc_sse42(crc_sse42(0, rest, WIDE), p, n);
}
#endif

DL_EXPORT uint32_t dl_crc32c(int32_t level, uint32_t value, const uint8_t *data, int64_t size) {
#ifdef DL_X86
    if (level >= DL_AVX512) return ~crc_avx512(~value, data, size);
    if (level >= DL_AVX2) return ~crc_sse42(~value, data, size);
#endif
    (void)level;
    return ~crc_portable(~value, data, size);
}

struct blocks {
    int32_t level;
    const uint8_t *data;
    int64_t size, block;
    uint8_t *out;  // may lie at any address
};

static void one_block(void *context, int64_t item) {
    const struct blocks *all = context;
    int64_t start = item * all->block, left = all->size - start;
    uint32_t crc = dl_crc32c(all->level, 0, all->data + start, left < all->block ? left : all->block);
    memcpy(all->out + 4 * item, &crc, 4);
}

DL_EXPORT void dl_crc32c_blocks(int32_t level, const uint8_t *data, int64_t size, int64_t block, uint8_t *out,
                                int32_t threads) {
    struct blocks all = {level, data, size, block, out};
    dl_parallel((size + block - 1) / block, threads, one_block, &all);
}
