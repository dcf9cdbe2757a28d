// resize.c's steps with 512-bit vectors: no splitting into planes, all channels of a pixel go through one multiply-add.

// Two source rows a step: their bytes are interleaved, so that one multiply-add takes both weights.
DL_TARGET_AVX512 static int64_t vertical_avx512(const struct job *job, int64_t y) {
    const struct shape *s = job->shape;
    const int16_t *w = job->down.weights + y * job->down.taps;
    const int count = job->down.count[y];
    const uint8_t *top = job->source + job->down.start[y] * s->row_stride + job->first * s->channels;
    const __m512i zero = _mm512_setzero_si512(), half = _mm512_set1_epi32(1 << (TO_MIDDLE - 1));
    const __m512i most = _mm512_set1_epi16(MOST);
    // packing works within each 128-bit lane: this puts the lanes' words back in order
    const __m512i front = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), back = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    int64_t x = 0, width = job->columns * s->channels;
    for (; x + 64 <= width; x += 64) {
        __m512i a = half, b = half, c = half, d = half;
        for (int j = 0; j < count; j += 2) {  // an odd count: weights are padded with 0, the row is read twice
            const uint8_t *p = top + j * s->row_stride + x, *next = j + 1 < count ? p + s->row_stride : p;
            uint32_t pair = (uint16_t)w[j] | (uint32_t)(uint16_t)w[j + 1] << 16;
            __m512i weight = _mm512_set1_epi32((int32_t)pair);
            __m512i u = _mm512_loadu_si512(p), v = _mm512_loadu_si512(next);
            __m512i low = _mm512_unpacklo_epi8(u, v), high = _mm512_unpackhi_epi8(u, v);
            a = _mm512_dpwssd_epi32(a, _mm512_unpacklo_epi8(low, zero), weight);
            b = _mm512_dpwssd_epi32(b, _mm512_unpackhi_epi8(low, zero), weight);
            c = _mm512_dpwssd_epi32(c, _mm512_unpacklo_epi8(high, zero), weight);
            d = _mm512_dpwssd_epi32(d, _mm512_unpackhi_epi8(high, zero), weight);
        }
        __m512i ab = _mm512_packs_epi32(_mm512_srai_epi32(a, TO_MIDDLE), _mm512_srai_epi32(b, TO_MIDDLE));
        __m512i cd = _mm512_packs_epi32(_mm512_srai_epi32(c, TO_MIDDLE), _mm512_srai_epi32(d, TO_MIDDLE));
        ab = _mm512_min_epi16(_mm512_max_epi16(ab, zero), most);
        cd = _mm512_min_epi16(_mm512_max_epi16(cd, zero), most);
        _mm512_storeu_si512(job->middle + x, _mm512_permutex2var_epi64(ab, front, cd));
        _mm512_storeu_si512(job->middle + x + 32, _mm512_permutex2var_epi64(ab, back, cd));
    }
    return x;
}

// The sums of one target pixel: lane k holds those of taps 2k and 2k + 1 of each group, one channel an element.
DL_TARGET_AVX512 static inline __m512i pixel(const struct job *job, int64_t x, __m512i pairs) {
    const struct filter *f = &job->across;
    const __m512i lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const int16_t *p = job->middle + (f->start[x] - job->first) * job->shape->channels, *w = f->weights + x * f->taps;
    __m512i sum = _mm512_setzero_si512();
    for (int t = 0; t < f->taps; t += TAPS, p += TAPS * job->shape->channels) {
        __m512i weights = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(w + t)));
        sum = _mm512_dpwssd_epi32(sum, _mm512_permutexvar_epi16(pairs, _mm512_loadu_si512(p)),
                                  _mm512_permutexvar_epi32(lanes, weights));
    }
    return sum;
}

// The target row of 3 or 4 channels into job->row, four bytes a pixel.
DL_TARGET_AVX512 static void horizontal_avx512(const struct job *job) {
    const int channels = (int)job->shape->channels;
    const __m512i half = _mm512_set1_epi32(1 << (TO_BYTE - 1)), zero = _mm512_setzero_si512();
    int16_t order[32];  // where tap 2k + odd of channel c lies among the pixels
    for (int i = 0; i < 32; i++) {
        int tap = i / 8 * 2 + i % 2, c = i % 8 / 2;
        order[i] = (int16_t)(tap * channels + (c < channels ? c : 0));
    }
    const __m512i pairs = _mm512_loadu_si512(order);
    const int64_t width = job->shape->out_width;
    for (int64_t x = 0; x < width; x += 4) {
        int64_t last = width - 1;
        __m512i a = pixel(job, x, pairs), b = pixel(job, x + 1 < width ? x + 1 : last, pairs);
        __m512i c = pixel(job, x + 2 < width ? x + 2 : last, pairs), d = pixel(job, x + 3 < width ? x + 3 : last, pairs);
        __m512i ab = _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(a, b, 0xEE));
        __m512i cd = _mm512_add_epi32(_mm512_shuffle_i32x4(c, d, 0x44), _mm512_shuffle_i32x4(c, d, 0xEE));
        __m512i all = _mm512_add_epi32(_mm512_shuffle_i32x4(ab, cd, 0x88), _mm512_shuffle_i32x4(ab, cd, 0xDD));
        all = _mm512_max_epi32(_mm512_srai_epi32(_mm512_add_epi32(all, half), TO_BYTE), zero);
        _mm_storeu_si128((__m128i *)(job->row + 4 * x), _mm512_cvtusepi32_epi8(all));
    }
}

// job->row into the target: planes sixteen pixels a step, anything else byte by byte.
DL_TARGET_AVX512 static void scatter_avx512(const struct job *job, uint8_t *out) {
    const struct shape *s = job->shape;
    for (int64_t c = 0; c < s->channels; c++, out += s->out_c_stride) {
        int64_t x = 0;
        for (; s->out_x_stride == 1 && x + 16 <= s->out_width; x += 16) {
            __m512i pixels = _mm512_loadu_si512(job->row + 4 * x);
            _mm_storeu_si128((__m128i *)(out + x), _mm512_cvtepi32_epi8(_mm512_srli_epi32(pixels, (unsigned)(8 * c))));
        }
        for (; x < s->out_width; x++) out[x * s->out_x_stride] = job->row[4 * x + c];
    }
}
