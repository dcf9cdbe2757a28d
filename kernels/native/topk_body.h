// Products and conversions of one instruction set and element type; topk_scan.c includes this file once for each.
//   NAME(x)      a name of its own          TARGET    the function attribute
//   ELEMENT      the row's element type     F, W      a vector of W floats; 4 W divides DL_PAD
//   LOAD(p)      W elements at any address as floats       QUERY(p) ZERO FMA(a, b, c) SUM(v)   the vector's operations

TARGET static inline __attribute__((always_inline)) void NAME(step)(const ELEMENT *row, const float *query, F sum[4],
                                                                    F square[4]) {
    for (int v = 0; v < 4; v++) {
        F x = LOAD(row + v * W);
        sum[v] = FMA(x, QUERY(query + v * W), sum[v]);
        square[v] = FMA(x, x, square[v]);
    }
}

TARGET static void NAME(products)(const struct dl_matrix *matrix, const int64_t *rows, int64_t count, int64_t known,
                                  const float *query, float *products, float *squares) {
    int64_t dimension = matrix->dimension, whole = dimension / (4 * W) * (4 * W);
    int64_t bytes = dimension * (int64_t)sizeof(ELEMENT), ahead = AHEAD / bytes + 1;
    for (int64_t i = 0; i < count; i++) {
        const ELEMENT *row = (const ELEMENT *)(matrix->data + rows[i] * matrix->stride);
        const char *later = matrix->data + rows[i + ahead < known ? i + ahead : i] * matrix->stride;
        F sum[4] = {ZERO, ZERO, ZERO, ZERO}, square[4] = {ZERO, ZERO, ZERO, ZERO};
        for (int64_t at = 0; at < whole; at += 4 * W) {
            for (size_t line = 0; line < 4 * W * sizeof(ELEMENT); line += 64)
                __builtin_prefetch(later + at * (int64_t)sizeof(ELEMENT) + line);
            NAME(step)(row + at, query + at, sum, square);
        }
        if (whole < dimension) {
            ELEMENT tail[4 * W];
            memset(tail, 0, sizeof tail);
            memcpy(tail, row + whole, (size_t)(dimension - whole) * sizeof(ELEMENT));
            NAME(step)(tail, query + whole, sum, square);
        }
        products[i] = SUM((sum[0] + sum[1]) + (sum[2] + sum[3]));
        squares[i] = SUM((square[0] + square[1]) + (square[2] + square[3]));
    }
}

#ifdef PAIR  // PAIR(a, b): 2 W floats as bfloat16; PAIR_TARGET: its attribute
#define CONVERT_TARGET PAIR_TARGET
#define TAKE (2 * W)
#else
#define CONVERT_TARGET TARGET
#define TAKE W
#endif

CONVERT_TARGET static inline __attribute__((always_inline)) F NAME(take)(const ELEMENT *row, uint32_t *units, F square) {
    F x = LOAD(row);
#ifdef PAIR
    F y = LOAD(row + W);
    PAIR(units, x, y);
    square = FMA(y, y, square);
#else
    memcpy(units, &x, sizeof x);
#endif
    return FMA(x, x, square);
}

CONVERT_TARGET static float NAME(convert)(const void *data, int64_t dimension, uint32_t *units) {
    const ELEMENT *row = data;
    int64_t whole = dimension / TAKE * TAKE;
    F squares[4] = {ZERO, ZERO, ZERO, ZERO};  // four in turn: 16 lanes at least
    for (int64_t at = 0; at < whole; at += TAKE, units += W) {
        F square = NAME(take)(row + at, units, squares[0]);
        squares[0] = squares[1], squares[1] = squares[2], squares[2] = squares[3], squares[3] = square;
    }
    if (whole < dimension) {
        ELEMENT tail[TAKE];
        memset(tail, 0, sizeof tail);
        memcpy(tail, row + whole, (size_t)(dimension - whole) * sizeof(ELEMENT));
        squares[0] = NAME(take)(tail, units, squares[0]);
    }
    return SUM((squares[0] + squares[1]) + (squares[2] + squares[3]));
}

#undef CONVERT_TARGET
#undef TAKE
#undef NAME
#undef ELEMENT
#undef LOAD
