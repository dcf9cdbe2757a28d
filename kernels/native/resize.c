// Antialiased resize of a box of an image (Pillow's BILINEAR: a triangle as wide as the larger of the two pixels).
// Vertical first, which leaves less for the costlier horizontal pass; whole numbers throughout, so that every
// instruction set gives the same bytes. Weights have 14 bits and sum to 1 exactly, the row in between keeps 7 bits of
// fraction: together within half a grey level and a little of the exact result, so within one level of Pillow.
#include "kernels.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#ifdef DL_X86
#include <immintrin.h>
#endif

enum { ONE = 1 << 14, FRACTION = 7 };
enum { TO_MIDDLE = 14 - FRACTION, TO_BYTE = 14 + FRACTION };
enum { TAPS = 8, SLACK = 64 };  // weights come in groups of TAPS; SLACK: elements a vector may touch past a row

struct shape {  // kernels/resize.py holds the same order
    int64_t height, width, channels, out_height, out_width;
    int64_t row_stride, out_y_stride, out_x_stride, out_c_stride;
    double x0, y0, x1, y1;
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
static void fill(const double *exact, int count, int16_t *weights) {
    double total = 0, sum = 0;
    long before = 0;
    for (int j = 0; j < count; j++) total += exact[j];
    for (int j = 0; j < count; j++) {
        sum += exact[j];
        long now = lrint(sum / total * ONE);
        weights[j] = (int16_t)(now - before);
        before = now;
    }
}

static int make_filter(struct filter *f, int64_t held, double from, double to, int64_t size) {
    double scale = (to - from) / (double)size, width = scale < 1 ? 1 : scale;
    int most = (int)ceil(width) * 2 + 1;
    f->taps = (most + TAPS - 1) / TAPS * TAPS;
    f->start = malloc((size_t)size * sizeof *f->start);
    f->count = malloc((size_t)size * sizeof *f->count);
    f->weights = calloc((size_t)size * (size_t)f->taps, sizeof *f->weights);
    double *exact = malloc((size_t)most * sizeof *exact);
    int failed = !f->start || !f->count || !f->weights || !exact;
    for (int64_t i = 0; i < size && !failed; i++) {
        double center = from + ((double)i + 0.5) * scale;
        int64_t first = (int64_t)fmax(center - width + 0.5, 0), last = (int64_t)fmin(center + width + 0.5, (double)held);
        for (int64_t j = first; j < last; j++) exact[j - first] = fmax(0, 1 - fabs((double)j - center + 0.5) / width);
        f->start[i] = (int32_t)first;
        f->count[i] = (int32_t)(last - first);
        fill(exact, f->count[i], f->weights + i * f->taps);
    }
    free(exact);
    return failed;
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

static void vertical(const struct job *job, int64_t y, int64_t from) {
    const struct shape *s = job->shape;
    const int16_t *w = job->down.weights + y * job->down.taps;
    const uint8_t *top = job->source + job->down.start[y] * s->row_stride + job->first * s->channels;
    for (int64_t x = from; x < job->columns * s->channels; x++) {
        int32_t sum = 1 << (TO_MIDDLE - 1);
        for (int j = 0; j < job->down.count[y]; j++) sum += w[j] * top[j * s->row_stride + x];
        job->middle[x] = (int16_t)(sum >> TO_MIDDLE);
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
        job->row[x] = (uint8_t)(sum >> TO_BYTE);
    }
}

#ifdef DL_X86
#include "resize_avx2.h"
#endif

static void one_row(const struct job *job, int32_t level, int64_t y) {
    const struct shape *s = job->shape;
    int64_t middle = 0, apart = 0, across = 0;  // how far the vector forms came; the plain ones finish
#ifdef DL_X86
    if (level >= DL_AVX2) middle = vertical_avx2(job, y);
#endif
    vertical(job, y, middle);
#ifdef DL_X86
    if (level >= DL_AVX2 && s->channels == 3) apart = split_avx2(job);
#endif
    split(job, apart);
    for (int64_t c = 0; c < s->channels; c++) {
        const int16_t *plane = job->planes + c * job->plane;
#ifdef DL_X86
        if (level >= DL_AVX2) across = horizontal_avx2(job, plane);
#endif
        horizontal(job, plane, across);
        uint8_t *out = job->target + y * s->out_y_stride + c * s->out_c_stride;
        if (s->out_x_stride == 1) memcpy(out, job->row, (size_t)s->out_width);
        else
            for (int64_t x = 0; x < s->out_width; x++) out[x * s->out_x_stride] = job->row[x];
    }
    (void)level;
}

static int make_rows(struct job *job) {
    const struct shape *s = job->shape;
    const struct filter *f = &job->across;
    int64_t last = f->start[s->out_width - 1] + f->count[s->out_width - 1];
    job->first = f->start[0];
    job->columns = last - job->first;
    job->plane = job->columns + f->taps + SLACK;
    job->middle = calloc((size_t)(job->columns * s->channels + SLACK), sizeof *job->middle);
    job->planes = calloc((size_t)(job->plane * s->channels), sizeof *job->planes);
    job->row = malloc((size_t)(s->out_width + SLACK));
    return !job->middle || !job->planes || !job->row;
}

// 0, or 1 without memory.
DL_EXPORT int32_t dl_resize(int32_t level, const uint8_t *source, uint8_t *target, const struct shape *shape) {
    struct job job = {.source = source, .target = target, .shape = shape};
    int failed = make_filter(&job.down, shape->height, shape->y0, shape->y1, shape->out_height) ||
                 make_filter(&job.across, shape->width, shape->x0, shape->x1, shape->out_width) || make_rows(&job);
    for (int64_t y = 0; y < shape->out_height && !failed; y++) one_row(&job, level, y);
    free_filter(&job.down);
    free_filter(&job.across);
    free(job.middle);
    free(job.planes);
    free(job.row);
    return failed;
}
