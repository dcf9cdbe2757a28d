// Antialiased resize of a box of an image under Pillow's filters. Whole numbers throughout, so that every instruction
// set gives the same bytes. Weights have 14 bits and sum to 1 exactly, the row in between keeps 7 bits of fraction:
// together within half a grey level and a little of the exact result, so within one level of Pillow.
// Vertical first, which leaves less for the costlier horizontal pass. What a filter with negative lobes puts beyond the
// range of pixels is cut off after each pass.
#include "kernels.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#ifdef DL_X86
#include <immintrin.h>
#endif

enum { ONE = 1 << 14, FRACTION = 7, MOST = 255 << FRACTION };
enum { TO_MIDDLE = 14 - FRACTION, TO_BYTE = 14 + FRACTION };
enum { TAPS = 8, SLACK = 64 };  // weights come in groups of TAPS; SLACK: elements a vector may touch past a row
enum { NEAREST, AREA, BILINEAR, BICUBIC, LANCZOS };  // kernels/resize.py holds the same order

struct shape {  // kernels/resize.py holds the same order
    int64_t height, width, channels, out_height, out_width;
    int64_t row_stride, out_y_stride, out_x_stride, out_c_stride;
    double x0, y0, x1, y1;
    int64_t kind, antialias;
};

struct filter {  // target pixel i is the sum of weights[i * taps + j] * source[start[i] + j], j < count[i]
    int32_t *start, *count, taps;
    int16_t *weights;
};

static void free_filter(struct filter *f) {
    free(f->start);
    free(f->count);
    free(f->weights);
}

// The weights of one target pixel. The running sum is rounded, not each weight: the total is then exact.
static void fill(double *exact, int count, int16_t *weights) {
    double total = 0, sum = 0;
    long before = 0;
    for (int j = 0; j < count; j++) total += exact[j];
    if (total == 0) exact[0] = total = 1;  // a box between two pixels by its last bit
    for (int j = 0; j < count; j++) {
        sum += exact[j];
        long now = lrint(sum / total * ONE);
        weights[j] = (int16_t)(now - before);
        before = now;
    }
}

static double sinc(double x) { return x == 0 ? 1 : sin(x * M_PI) / (x * M_PI); }

// Half the filter's width in source pixels (in target pixels when reducing with antialias), and its height at x.
static const double support[] = {0, 0.5, 1, 2, 3};

static double height_at(int64_t kind, double x) {
    double far = fabs(x);
    switch (kind) {
        case AREA: return x > -0.5 && x <= 0.5;
        case BILINEAR: return far < 1 ? 1 - far : 0;
        case BICUBIC:  // Keys' cubic with a = -0.5
            return far < 1 ? (1.5 * far - 2.5) * far * far + 1 : far < 2 ? ((-0.5 * far + 2.5) * far - 4) * far + 2 : 0;
        default: return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0;
    }
}

static int allocate(struct filter *f, int64_t size, int most) {
    f->taps = (most + TAPS - 1) / TAPS * TAPS;
    f->start = malloc((size_t)size * sizeof *f->start);
    f->count = malloc((size_t)size * sizeof *f->count);
    f->weights = calloc((size_t)size * (size_t)f->taps, sizeof *f->weights);
    return !f->start || !f->count || !f->weights;
}

// One source pixel for each target pixel: the one its centre lies in. The centre is summed up step by step, as Pillow
// does, because a centre on an edge falls to either side by its last bit.
static int make_nearest(struct filter *f, int64_t held, double from, double to, int64_t size) {
    if (allocate(f, size, 1)) return 1;
    double scale = (to - from) / (double)size, center = from + scale * 0.5;
    for (int64_t i = 0; i < size; i++, center += scale) {
        f->start[i] = (int32_t)(center < (double)held ? center : (double)(held - 1));
        f->count[i] = 1;
        f->weights[i * f->taps] = ONE;
    }
    return 0;
}

static int make_smooth(struct filter *f, const struct shape *s, int64_t held, double from, double to, int64_t size) {
    double scale = (to - from) / (double)size, step = scale > 1 && s->antialias ? scale : 1;
    double width = support[s->kind] * step;
    int most = (int)ceil(width) * 2 + 1;
    double *exact = malloc((size_t)most * sizeof *exact);
    int failed = allocate(f, size, most) || !exact;
    for (int64_t i = 0; i < size && !failed; i++) {
        double center = from + ((double)i + 0.5) * scale;
        int64_t first = (int64_t)fmax(center - width + 0.5, 0), last = (int64_t)fmin(center + width + 0.5, (double)held);
        for (int64_t j = first; j < last; j++) exact[j - first] = height_at(s->kind, ((double)j - center + 0.5) / step);
        f->start[i] = (int32_t)first;
        f->count[i] = (int32_t)(last - first);
        fill(exact, f->count[i], f->weights + i * f->taps);
    }
    free(exact);
    return failed;
}

static int make_filter(struct filter *f, const struct shape *s, int64_t held, double from, double to, int64_t size) {
    return s->kind == NEAREST ? make_nearest(f, held, from, to, size) : make_smooth(f, s, held, from, to, size);
}

struct job {
    const uint8_t *source;
    uint8_t *target;
    const struct shape *shape;
    struct filter down, across;
    int64_t first, columns;  // the source columns that the horizontal filter reads
    int16_t *middle;         // one row, pixels interleaved, FRACTION bits of fraction
    int16_t *planes;         // the same row, one plane per channel, each `plane` elements
    uint8_t *row;            // one target row of one channel
    int64_t plane;
};

static inline int32_t within(int32_t value, int32_t most) { return value < 0 ? 0 : value > most ? most : value; }

static void vertical(const struct job *job, int64_t y, int64_t from) {
    const struct shape *s = job->shape;
    const int16_t *w = job->down.weights + y * job->down.taps;
    const uint8_t *top = job->source + job->down.start[y] * s->row_stride + job->first * s->channels;
    for (int64_t x = from; x < job->columns * s->channels; x++) {
        int32_t sum = 1 << (TO_MIDDLE - 1);
        for (int j = 0; j < job->down.count[y]; j++) sum += w[j] * top[j * s->row_stride + x];
        job->middle[x] = (int16_t)within(sum >> TO_MIDDLE, MOST);
    }
}

static void split(const struct job *job, int64_t from) {
    int64_t channels = job->shape->channels;
    for (int64_t c = 0; c < channels; c++)
        for (int64_t x = from; x < job->columns; x++) job->planes[c * job->plane + x] = job->middle[x * channels + c];
}

static void horizontal(const struct job *job, const int16_t *plane, int64_t from) {
    const struct filter *f = &job->across;
    for (int64_t x = from; x < job->shape->out_width; x++) {
        const int16_t *w = f->weights + x * f->taps, *p = plane + f->start[x] - job->first;
        int32_t sum = 1 << (TO_BYTE - 1);
        for (int j = 0; j < f->count[x]; j++) sum += w[j] * p[j];
        job->row[x] = (uint8_t)within(sum >> TO_BYTE, 255);
    }
}

#ifdef DL_X86
#include "resize_avx2.h"
#include "resize_avx512.h"
#endif

static void by_channel(const struct job *job, int32_t level, uint8_t *out) {
    const struct shape *s = job->shape;
    int64_t apart = 0, across = 0;  // how far the vector forms came; the plain ones finish
#ifdef DL_X86
    if (level >= DL_AVX2 && s->channels == 3) apart = split_avx2(job);
#endif
    split(job, apart);
    for (int64_t c = 0; c < s->channels; c++, out += s->out_c_stride) {
        const int16_t *plane = job->planes + c * job->plane;
#ifdef DL_X86
        if (level >= DL_AVX2) across = horizontal_avx2(job, plane);
#endif
        horizontal(job, plane, across);
        if (s->out_x_stride == 1) memcpy(out, job->row, (size_t)s->out_width);
        else
            for (int64_t x = 0; x < s->out_width; x++) out[x * s->out_x_stride] = job->row[x];
    }
    (void)level;
}

static void one_row(const struct job *job, int32_t level, int64_t y) {
    const struct shape *s = job->shape;
    uint8_t *out = job->target + y * s->out_y_stride;
    int64_t middle = 0;
#ifdef DL_X86
    if (level >= DL_AVX512) middle = vertical_avx512(job, y);
    else if (level >= DL_AVX2) middle = vertical_avx2(job, y);
#endif
    vertical(job, y, middle);
#ifdef DL_X86
    if (level >= DL_AVX512 && s->channels >= 3) {
        horizontal_avx512(job);
        scatter_avx512(job, out);
        return;
    }
#endif
    by_channel(job, level, out);
}

static int make_rows(struct job *job) {
    const struct shape *s = job->shape;
    const struct filter *f = &job->across;
    int64_t last = f->start[s->out_width - 1] + f->count[s->out_width - 1];
    job->first = f->start[0];
    job->columns = last - job->first;
    job->plane = job->columns + f->taps + SLACK;
    job->middle = calloc((size_t)(job->plane * s->channels), sizeof *job->middle);
    job->planes = calloc((size_t)(job->plane * s->channels), sizeof *job->planes);
    job->row = malloc((size_t)(s->out_width * 4 + SLACK));
    return !job->middle || !job->planes || !job->row;
}

// 0, or 1 without memory.
DL_EXPORT int32_t dl_resize(int32_t level, const uint8_t *source, uint8_t *target, const struct shape *shape) {
    struct job job = {.source = source, .target = target, .shape = shape};
    int failed = make_filter(&job.down, shape, shape->height, shape->y0, shape->y1, shape->out_height) ||
                 make_filter(&job.across, shape, shape->width, shape->x0, shape->x1, shape->out_width) || make_rows(&job);
    for (int64_t y = 0; y < shape->out_height && !failed; y++) one_row(&job, level, y);
    free_filter(&job.down);
    free_filter(&job.across);
    free(job.middle);
    free(job.planes);
    free(job.row);
    return failed;
}
