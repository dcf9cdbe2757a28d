// The exact score of one row, for the kernels that choose which rows to score.
#pragma once
#include "kernels.h"

enum { COSINE = 0, L2 = 1, INNER = 2 };

struct query {
    int64_t dimension;
    double *values;  // padded with zeros to a multiple of the sums' lanes
    double norm;     // the sum of its squares
};

// 0, or 1 without memory; `values` are floats at any address. The caller frees query->values.
int dl_prepare(struct query *query, const void *values, int64_t dimension);

// What dl_scores gives for that row: of float32 (dtype 0) or float16 (1).
double dl_score(int32_t level, int32_t dtype, int32_t metric, const struct query *query, const void *row);
