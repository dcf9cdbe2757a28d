// The sums of one instruction set and element type; scores.c includes this file once for each. Expects:
//   NAME(x)        a name of its own        TARGET     the function attribute
//   ELEMENT        the row's element type   V, W       a vector of W doubles; W divides 16
//   ROWS           rows summed at once      LOAD(p)    W elements at any address as doubles
//   QUERY(p) ZERO ADD SUB MUL FMA STORE     the vector's operations
// The order of the sums is fixed by kernels/reference.py: 16 lanes, each in order, folded in halves.

enum { NAME(VECTORS) = LANES / W };

TARGET static inline __attribute__((always_inline)) void NAME(step)(int metric, const ELEMENT *const rows[ROWS],
                                                                    const double *query, V sum[ROWS][LANES / W],
                                                                    V norm[ROWS][LANES / W]) {
    for (int v = 0; v < LANES / W; v++) {
        V q = QUERY(query + v * W);
        for (int r = 0; r < ROWS; r++) {
            V x = LOAD(rows[r] + v * W);
            if (metric == L2) {
                V gap = SUB(x, q);
                sum[r][v] = ADD(sum[r][v], MUL(gap, gap));  // not exact, so never fused
            } else {
                sum[r][v] = FMA(x, q, sum[r][v]);
                if (metric == COSINE) norm[r][v] = FMA(x, x, norm[r][v]);
            }
        }
    }
}

TARGET static inline __attribute__((always_inline)) double NAME(fold)(const V lanes[LANES / W]) {
    double d[LANES];
    for (int v = 0; v < LANES / W; v++) STORE(d + v * W, lanes[v]);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) d[i] += d[i + half];
    return d[0];
}

TARGET static inline __attribute__((always_inline)) void NAME(group)(int metric, const ELEMENT *const start[ROWS],
                                                                     const struct query *query, double *sums,
                                                                     double *norms) {
    V sum[ROWS][LANES / W], norm[ROWS][LANES / W];
    const ELEMENT *rows[ROWS];
    ELEMENT tail[ROWS][LANES];
    for (int r = 0; r < ROWS; r++) {
        rows[r] = start[r];
        for (int v = 0; v < LANES / W; v++) sum[r][v] = norm[r][v] = ZERO;
    }
    int64_t whole = query->dimension / LANES * LANES;
    for (int64_t at = 0; at < whole; at += LANES) {
        NAME(step)(metric, rows, query->values + at, sum, norm);
        for (int r = 0; r < ROWS; r++) rows[r] += LANES;
    }
    if (whole < query->dimension) {
        memset(tail, 0, sizeof tail);
        for (int r = 0; r < ROWS; r++) {
            memcpy(tail[r], rows[r], (size_t)(query->dimension - whole) * sizeof(ELEMENT));
            rows[r] = tail[r];
        }
        NAME(step)(metric, rows, query->values + whole, sum, norm);
    }
    for (int r = 0; r < ROWS; r++) {
        sums[r] = NAME(fold)(sum[r]);
        norms[r] = metric == COSINE ? NAME(fold)(norm[r]) : 0;
    }
}

TARGET static void NAME(range)(const struct scan *scan, int64_t from, int64_t to) {
    const ELEMENT *rows[ROWS];
    double sums[ROWS], norms[ROWS];
    for (int64_t at = from; at < to; at += ROWS) {
        for (int r = 0; r < ROWS; r++) {  // a last group that is not full repeats its last row
            int64_t i = at + r < to ? at + r : to - 1;
            int64_t row = scan->rows ? scan->rows[i] : i;
            rows[r] = (const ELEMENT *)scan->matrix + row * scan->query.dimension;
        }
        if (scan->rows) ahead(scan, at + ROWS, to, ROWS, sizeof(ELEMENT));
        switch (scan->metric) {
            case COSINE: NAME(group)(COSINE, rows, &scan->query, sums, norms); break;
            case L2: NAME(group)(L2, rows, &scan->query, sums, norms); break;
            default: NAME(group)(INNER, rows, &scan->query, sums, norms); break;
        }
        for (int r = 0; r < ROWS && at + r < to; r++) scan->out[at + r] = score(scan, sums[r], norms[r]);
    }
}

#undef NAME
#undef ELEMENT
#undef LOAD
