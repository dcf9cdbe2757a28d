// The vector forms of resize.c's three steps; each gives back how many elements it did.

// Two source rows a step: their bytes are interleaved, so that one multiply-add takes both weights.
DL_TARGET_AVX2 static int64_t vertical_avx2(const struct job *job, int64_t y) {
    const struct shape *s = job->shape;
    const int16_t *w = job->down.weights + y * job->down.taps;
    const int count = job->down.count[y];
    const uint8_t *top = job->source + job->down.start[y] * s->row_stride + job->first * s->channels;
    const __m256i zero = _mm256_setzero_si256(), half = _mm256_set1_epi32(1 << (TO_MIDDLE - 1));
    const __m256i most = _mm256_set1_epi16(MOST);
    int64_t x = 0, width = job->columns * s->channels;
    for (; x + 32 <= width; x += 32) {
        __m256i a = half, b = half, c = half, d = half;
        for (int j = 0; j < count; j += 2) {  // an odd count: weights are padded with 0, the row is read twice
            const uint8_t *p = top + j * s->row_stride + x, *next = j + 1 < count ? p + s->row_stride : p;
            uint32_t pair = (uint16_t)w[j] | (uint32_t)(uint16_t)w[j + 1] << 16;
            __m256i weight = _mm256_set1_epi32((int32_t)pair);
            __m256i u = _mm256_loadu_si256((const __m256i *)p), v = _mm256_loadu_si256((const __m256i *)next);
            __m256i low = _mm256_unpacklo_epi8(u, v), high = _mm256_unpackhi_epi8(u, v);
            a = _mm256_add_epi32(a, _mm256_madd_epi16(_mm256_unpacklo_epi8(low, zero), weight));
            b = _mm256_add_epi32(b, _mm256_madd_epi16(_mm256_unpackhi_epi8(low, zero), weight));
            c = _mm256_add_epi32(c, _mm256_madd_epi16(_mm256_unpacklo_epi8(high, zero), weight));
            d = _mm256_add_epi32(d, _mm256_madd_epi16(_mm256_unpackhi_epi8(high, zero), weight));
        }
        // each 128-bit half holds its own 16 columns: packed within the half, then the halves are put in order
        __m256i ab = _mm256_packs_epi32(_mm256_srai_epi32(a, TO_MIDDLE), _mm256_srai_epi32(b, TO_MIDDLE));
        __m256i cd = _mm256_packs_epi32(_mm256_srai_epi32(c, TO_MIDDLE), _mm256_srai_epi32(d, TO_MIDDLE));
        ab = _mm256_min_epi16(_mm256_max_epi16(ab, zero), most);
        cd = _mm256_min_epi16(_mm256_max_epi16(cd, zero), most);
        _mm256_storeu_si256((__m256i *)(job->middle + x), _mm256_permute2x128_si256(ab, cd, 0x20));
        _mm256_storeu_si256((__m256i *)(job->middle + x + 16), _mm256_permute2x128_si256(ab, cd, 0x31));
    }
    return x;
}

// Eight RGB pixels a step. Each channel fills different lanes of the three vectors, so blends gather it and one
// shuffle puts it in order: element i of channel c lies in lane (3 i + c) mod 8.
DL_TARGET_AVX2 static int64_t split_avx2(const struct job *job) {
    const __m128i red = _mm_setr_epi8(0, 1, 6, 7, 12, 13, 2, 3, 8, 9, 14, 15, 4, 5, 10, 11);
    const __m128i green = _mm_setr_epi8(2, 3, 8, 9, 14, 15, 4, 5, 10, 11, 0, 1, 6, 7, 12, 13);
    const __m128i blue = _mm_setr_epi8(4, 5, 10, 11, 0, 1, 6, 7, 12, 13, 2, 3, 8, 9, 14, 15);
    int64_t x = 0;
    for (; x + 8 <= job->columns; x += 8) {
        const __m128i *p = (const __m128i *)(job->middle + 3 * x);
        __m128i a = _mm_loadu_si128(p), b = _mm_loadu_si128(p + 1), c = _mm_loadu_si128(p + 2);
        __m128i r = _mm_blend_epi16(_mm_blend_epi16(a, b, 0x92), c, 0x24);
        __m128i g = _mm_blend_epi16(_mm_blend_epi16(a, b, 0x24), c, 0x49);
        __m128i d = _mm_blend_epi16(_mm_blend_epi16(a, b, 0x49), c, 0x92);
        _mm_storeu_si128((__m128i *)(job->planes + x), _mm_shuffle_epi8(r, red));
        _mm_storeu_si128((__m128i *)(job->planes + job->plane + x), _mm_shuffle_epi8(g, green));
        _mm_storeu_si128((__m128i *)(job->planes + 2 * job->plane + x), _mm_shuffle_epi8(d, blue));
    }
    return x;
}

DL_TARGET_AVX2 static inline __m256i two(const int16_t *a, const int16_t *b) {
    __m128i low = _mm_loadu_si128((const __m128i *)a), high = _mm_loadu_si128((const __m128i *)b);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

// Eight target pixels a step, two in each vector, TAPS source elements at once.
DL_TARGET_AVX2 static int64_t horizontal_avx2(const struct job *job, const int16_t *plane) {
    const struct filter *f = &job->across;
    const __m256i half = _mm256_set1_epi32(1 << (TO_BYTE - 1));
    int64_t x = 0;
    for (; x + 8 <= job->shape->out_width; x += 8) {
        __m256i sum[4];
        for (int k = 0; k < 4; k++) {
            const int16_t *a = plane + f->start[x + 2 * k] - job->first, *w = f->weights + (x + 2 * k) * f->taps;
            const int16_t *b = plane + f->start[x + 2 * k + 1] - job->first, *v = w + f->taps;
            sum[k] = _mm256_madd_epi16(two(a, b), two(w, v));
            for (int t = TAPS; t < f->taps; t += TAPS)
                sum[k] = _mm256_add_epi32(sum[k], _mm256_madd_epi16(two(a + t, b + t), two(w + t, v + t)));
        }
        __m256i all = _mm256_hadd_epi32(_mm256_hadd_epi32(sum[0], sum[1]), _mm256_hadd_epi32(sum[2], sum[3]));
        all = _mm256_srai_epi32(_mm256_add_epi32(all, half), TO_BYTE);
        __m128i even = _mm256_castsi256_si128(all), odd = _mm256_extracti128_si256(all, 1);
        __m128i words = _mm_packs_epi32(_mm_unpacklo_epi32(even, odd), _mm_unpackhi_epi32(even, odd));
        _mm_storel_epi64((__m128i *)(job->row + x), _mm_packus_epi16(words, words));
    }
    return x;
}
