// Fast, inexact products of rows and queries: what the search for the best rows runs over everything.
#pragma once
#include "kernels.h"

enum { FLOAT32, FLOAT16, BFLOAT16, INT8 };

struct dl_matrix {
    const char *data;
    int64_t dimension, stride;  // stride: bytes from row to row
    int32_t dtype;
};

enum {
    DL_PAD = 64,     // a query's floats are followed by zeros up to a multiple of this
    DL_BLOCK = 96,   // rows of one tile; a multiple of every number of rows taken at once (3, 6, 8, 12)
    DL_GROUP = 64,   // queries of one tile at most
    DL_LANE = 16,    // queries side by side
};

// Products of the listed rows with one query of floats, and each row's sum of squares. float32 sums of at least 16
// lanes: the error is below (dimension / 16 + 24) * 2^-24 of |row| * |query|. `known`: how many of the rows that will be
// wanted are listed, at least `count`: they are asked for early.
typedef void (*dl_products)(const struct dl_matrix *matrix, const int64_t *rows, int64_t count, int64_t known,
                            const float *query, float *products, float *squares);
dl_products dl_products_of(int32_t level, int32_t dtype);

// A row as the tile reads it: `steps` units of 32 bits (one float, or two bfloat16), then zeros to a multiple of 16.
typedef float (*dl_convert)(const void *row, int64_t dimension, uint32_t *units);  // gives the sum of squares

struct dl_tile {
    const uint32_t *rows;     // DL_BLOCK rows, `width` units apart
    const uint32_t *queries;  // [steps][DL_LANE * lanes] units
    int64_t steps, width, lanes, count;  // count: rows that matter
    const char *const *ahead;  // DL_BLOCK rows to fetch into the cache meanwhile
    int64_t ahead_bytes;
    float *products;  // [row][DL_LANE * lanes]
};

struct dl_batch {
    dl_convert convert[4];  // by element type
    void (*tile)(const struct dl_tile *tile);
    int pairs;  // whether a unit is two bfloat16
};
const struct dl_batch *dl_batch_of(int32_t level);

// Sums of squares between which float32 loses nothing that counts.
#define DL_SMALLEST 1e-25f
#define DL_LARGEST 1e25f

// Thresholds of a product, one for each query: fixed + length * |row| + square * |row|^2.
struct dl_reach {
    float fixed[DL_GROUP], length[DL_GROUP], square[DL_GROUP];
};

// Whether any product is not below the threshold (NaN is not), or any square outside the limits above: of many rows
// against the first query, and of one row against many queries.
struct dl_tests {
    int (*rows)(const struct dl_reach *reach, const float *products, const float *squares, int64_t count);
    int (*queries)(const struct dl_reach *reach, const float *products, float square, int64_t count);
};
const struct dl_tests *dl_tests_of(int32_t level);
