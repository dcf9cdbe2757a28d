// The sums of one instruction set and element type; scores.c includes this file once for each. Expects:
//   NAME(x)        a name of its own        TARGET     the function attribute
//   ELEMENT        the row's element type   V, W       a vector of W doubles; W divides LANES
//   LOAD(p)        W elements at any address as doubles
//   QUERY(p) ZERO ADD SUB MUL FMA STORE     the vector's operations
// The order of the sums is fixed by kernels/reference.py: 16 lanes, each in order, folded in halves.

TARGET static inline __attribute__((always_inline)) void NAME(step)(int metric, const ELEMENT *row,
                                                                    const double *query, V sum[LANES / W],
                                                                    V norm[LANES / W]) {
    for (int v = 0; v < LANES / W; v++) {
        V q = QUERY(query + v * W), x = LOAD(row + v * W);
        if (metric == L2) {
            V gap = SUB(x, q);
            sum[v] = ADD(sum[v], MUL(gap, gap));  // not exact, so never fused
        } else {
            sum[v] = FMA(x, q, sum[v]);
            if (metric == COSINE) norm[v] = FMA(x, x, norm[v]);
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

// One row at a time: the sums of the next rows run beside it anyway, and four rows at once, four streams of memory,
// made a full scan 1.4 to 1.6 times slower.
TARGET static inline __attribute__((always_inline)) double NAME(row)(const struct scan *scan, int metric,
                                                                     const ELEMENT *row) {
    const struct query *query = &scan->query;
    V sum[LANES / W], norm[LANES / W];
    for (int v = 0; v < LANES / W; v++) sum[v] = norm[v] = ZERO;
    int64_t whole = query->dimension / LANES * LANES;
    for (int64_t at = 0; at < whole; at += LANES) NAME(step)(metric, row + at, query->values + at, sum, norm);
    if (whole < query->dimension) {
        ELEMENT tail[LANES];
        memset(tail, 0, sizeof tail);
        memcpy(tail, row + whole, (size_t)(query->dimension - whole) * sizeof(ELEMENT));
        NAME(step)(metric, tail, query->values + whole, sum, norm);
    }
    return score(scan, NAME(fold)(sum), metric == COSINE ? NAME(fold)(norm) : 0);
}

TARGET static void NAME(range)(const struct scan *scan, int64_t from, int64_t to) {
    const ELEMENT *matrix = scan->matrix;
    for (int64_t i = from; i < to; i++) {
        const ELEMENT *row = matrix + (scan->rows ? scan->rows[i] : i) * scan->query.dimension;
        if (scan->rows && i + AHEAD < to)
            prefetch(matrix + scan->rows[i + AHEAD] * scan->query.dimension, scan->query.dimension * sizeof(ELEMENT));
        switch (scan->metric) {
            case COSINE: scan->out[i] = NAME(row)(scan, COSINE, row); break;
            case L2: scan->out[i] = NAME(row)(scan, L2, row); break;
            default: scan->out[i] = NAME(row)(scan, INNER, row); break;
        }
    }
}

#undef NAME
#undef ELEMENT
#undef LOAD
