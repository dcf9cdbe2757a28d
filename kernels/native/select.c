// The k-th best of a list of scores, and the positions of those that reach a threshold. NaN is no score.
#include "kernels.h"
#include <math.h>
#include <stdlib.h>

// The root of heap[0..k-1], its smallest, is replaced.
static void replace_root(double *heap, int64_t k, double value) {
    int64_t at = 0;
    for (int64_t child = 1; child < k; child = 2 * at + 1) {
        if (child + 1 < k && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= value) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = value;
}

static void add_leaf(double *heap, int64_t at, double value) {
    for (; at && heap[(at - 1) / 2] > value; at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
    heap[at] = value;
}

// 0, or 1 without memory. *out is NaN when fewer than k scores are there.
DL_EXPORT int32_t dl_kth_best(const double *scores, int64_t count, int64_t k, int32_t largest, double *out) {
    *out = NAN;
    if (k < 1 || k > count) return 0;
    double *heap = malloc((size_t)k * sizeof *heap);
    if (!heap) return 1;
    int64_t held = 0;
    for (int64_t i = 0; i < count; i++) {
        double value = largest ? scores[i] : -scores[i];
        if (held == k) {
            if (value > heap[0]) replace_root(heap, k, value);
        } else if (value == value) {
            add_leaf(heap, held++, value);
        }
    }
    if (held == k) *out = largest ? heap[0] : -heap[0];
    free(heap);
    return 0;
}

// How many; their ascending positions go to `out` unless it is NULL.
DL_EXPORT int64_t dl_at_least(const double *scores, int64_t count, double threshold, int32_t largest, int64_t *out) {
    int64_t found = 0;
    for (int64_t i = 0; i < count; i++) {
        int reaches = largest ? scores[i] >= threshold : scores[i] <= threshold;
        if (reaches && out) out[found] = i;
        found += reaches;
    }
    return found;
}
