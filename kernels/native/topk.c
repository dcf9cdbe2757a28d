// The best rows of a matrix for each query. The scan gives each row an interval that holds its score; the k-th best
// lower end is a threshold, and only rows whose upper end reaches it are kept and, in the end, scored exactly.
// A row or query whose squares leave float32 gets an interval without ends, and so is always scored exactly.
#include "scores.h"
#include "topk.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    RUN = 1024,      // rows of one step of a thread
    SOME = 64,       // rows tested at once
    FEW = 3,         // queries up to which rows are read by products(), not as a tile
    SPARE = 64,      // room of a list beyond 2 k: how often its threshold is renewed
    BUDGET = 1 << 28 // bytes of all lists; fewer queries at a time where k asks for more
};

struct search {  // mirrored in kernels/topk.py
    const void *matrix;
    int64_t count, dimension, stride;
    const float *scale, *queries;  // scale: NULL but for int8
    int64_t wanted, k;
    const int64_t *rows;  // or NULL
    int64_t listed;
    const uint8_t *bitmap;
    double slack;  // below 0: k rows; else every row that misses the k-th best by that at most
    const double *thresholds;  // or NULL: the score of each query that is the least of interest
    int32_t dtype, metric, threads;
};

struct entry {
    double lower, upper;  // of the score, larger taken as better; equal when it is exact
    int64_t row;
    int64_t exact;
};

struct list {
    struct entry *entries;
    int64_t held, room;
    double reach;  // the k-th best lower end so far
};

struct wanted {
    struct query exact;
    float *unit;    // the query divided by its length, padded
    double length;  // 0: every row has to be scored exactly
    int known;      // whether any row can have a score
};

struct scan {
    const struct search *search;
    struct dl_matrix matrix;
    int32_t level;
    int64_t k, size;  // size: queries of this group
    struct wanted *wanted;
    const struct dl_batch *batch;  // NULL: few queries
    uint32_t *packed;
    int64_t lanes, steps, width;
    double error, batch_error;  // of a product, as a share of the row's length
    struct worker *workers;
    int64_t next, runs, searched;  // searched: rows, or entries of the list
    int failed;
};

struct worker {
    struct list lists[DL_GROUP];
    struct dl_reach reach;
    int64_t ids[RUN];
    float products[DL_BLOCK * DL_GROUP], squares[RUN];
    const char *ahead[DL_BLOCK];
    uint32_t *converted;
    double *scratch;
    int64_t scratch_room;
    float *floats;  // one row as float32
};

// --- exact scores

static double exact_score(const struct scan *scan, float *floats, const struct wanted *wanted, int64_t id) {
    const struct search *search = scan->search;
    const char *row = scan->matrix.data + id * scan->matrix.stride;
    int32_t dtype = search->dtype;
    if (dtype >= BFLOAT16) {
        for (int64_t i = 0; i < search->dimension; i++) {
            uint16_t half;
            if (dtype == INT8) {
                floats[i] = (float)((const int8_t *)row)[i] * search->scale[id];
            } else {
                memcpy(&half, row + 2 * i, 2);
                uint32_t bits = (uint32_t)half << 16;
                memcpy(floats + i, &bits, 4);
            }
        }
        row = (const char *)floats;
        dtype = FLOAT32;
    }
    double score = dl_score(scan->level, dtype, search->metric, &wanted->exact, row);
    return search->metric == L2 ? -score : score;
}

static int64_t row_bytes(const struct search *search) {
    return search->dimension * (search->dtype == FLOAT32 ? 4 : search->dtype == INT8 ? 1 : 2);
}

static void prefetch(const struct scan *scan, int64_t id) {
    const char *row = scan->matrix.data + id * scan->matrix.stride;
    for (int64_t at = 0; at < row_bytes(scan->search) && at < 8192; at += 64) __builtin_prefetch(row + at);
}

static void score_entries(const struct scan *scan, float *floats, const struct wanted *wanted, struct list *list) {
    int64_t kept = 0;
    for (int64_t i = 0; i < list->held; i++) {
        struct entry entry = list->entries[i];
        if (i + 2 < list->held && !list->entries[i + 2].exact) prefetch(scan, list->entries[i + 2].row);
        if (!entry.exact) {
            entry.lower = entry.upper = exact_score(scan, floats, wanted, entry.row);
            entry.exact = 1;
        }
        if (!isnan(entry.lower)) list->entries[kept++] = entry;
    }
    list->held = kept;
}

// --- the lists

static double kth_largest(double *values, int64_t count, int64_t k) {
    int64_t low = 0, high = count - 1, place = k - 1;
    while (low < high) {
        double pivot = values[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (values[i] > pivot) i++;
            while (values[j] < pivot) j--;
            if (i <= j) {
                double swap = values[i];
                values[i++] = values[j];
                values[j--] = swap;
            }
        }
        if (place <= j) high = j;
        else if (place >= i) low = i;
        else break;
    }
    return values[place];
}

static double slack_of(const struct scan *scan) { return scan->search->slack > 0 ? scan->search->slack : 0; }

static int enough_scratch(struct worker *worker, int64_t count) {
    if (count <= worker->scratch_room) return 1;
    double *larger = realloc(worker->scratch, (size_t)count * sizeof *larger);
    if (!larger) return 0;
    worker->scratch = larger;
    worker->scratch_room = count;
    return 1;
}

// Renews the threshold and drops what does not reach it.
static int prune(const struct scan *scan, struct worker *worker, struct list *list) {
    if (list->held < scan->k) return 1;
    if (!enough_scratch(worker, list->held)) return 0;
    for (int64_t i = 0; i < list->held; i++) worker->scratch[i] = list->entries[i].lower;
    double kth = kth_largest(worker->scratch, list->held, scan->k);
    if (kth > list->reach) list->reach = kth;
    double reach = list->reach - slack_of(scan);
    int64_t kept = 0;
    for (int64_t i = 0; i < list->held; i++)
        if (list->entries[i].upper >= reach) list->entries[kept++] = list->entries[i];
    list->held = kept;
    return 1;
}

static int better(const void *left, const void *right) {
    const struct entry *a = left, *b = right;
    if (a->lower != b->lower) return a->lower > b->lower ? -1 : 1;
    return a->row < b->row ? -1 : a->row > b->row;
}

// Leaves the entries that are in the result as far as this list knows, in its order, with exact scores.
static int settle(const struct scan *scan, struct worker *worker, struct list *list, const struct wanted *wanted) {
    if (!prune(scan, worker, list)) return 0;
    score_entries(scan, worker->floats, wanted, list);
    if (!prune(scan, worker, list)) return 0;
    qsort(list->entries, (size_t)list->held, sizeof *list->entries, better);
    if (scan->search->slack < 0 && list->held > scan->k) list->held = scan->k;
    return 1;
}

static int grow(struct list *list, int64_t room) {
    struct entry *larger = realloc(list->entries, (size_t)room * sizeof *larger);
    if (!larger) return 0;
    list->entries = larger;
    list->room = room;
    return 1;
}

// The thresholds of products, moved down by more than float32 rounds.
static void renew_reach(const struct scan *scan, struct worker *worker, int64_t i) {
    double reach = worker->lists[i].reach - slack_of(scan), length = scan->wanted[i].length, margin;
    double error = scan->batch ? scan->batch_error : scan->error;
    struct dl_reach *out = &worker->reach;
    out->fixed[i] = -INFINITY;
    if (isinf(reach) || length == 0) return;
    if (scan->search->metric == COSINE) {
        out->fixed[i] = 0;
        out->length[i] = (float)(reach - error);
        return;
    }
    if (scan->search->metric == L2) {
        margin = (length * length + reach * reach) / (2 * length) * 0x1p-20;
        reach = (length * length - reach * reach) / (2 * length);
        out->square[i] = (float)((1 - error) / (2 * length));
    } else {
        reach /= length;
        margin = fabs(reach) * 0x1p-20;
    }
    out->fixed[i] = (float)(reach - margin);
    out->length[i] = (float)-error;
}

static int make_room(const struct scan *scan, struct worker *worker, int64_t i) {
    struct list *list = &worker->lists[i];
    if (!prune(scan, worker, list)) return 0;
    if (list->held > (scan->k + list->room) / 2 && !settle(scan, worker, list, &scan->wanted[i])) return 0;
    renew_reach(scan, worker, i);
    return list->held <= (scan->k + list->room) / 2 || grow(list, 2 * list->room);
}

// --- intervals

struct row {
    int64_t id;
    double square, length;
    int plain;  // whether float32 holds its squares
};

static struct row describe(int64_t id, float square) {
    return (struct row){id, square, sqrt(square), square > DL_SMALLEST && square < DL_LARGEST};
}

static struct entry interval(const struct scan *scan, const struct wanted *wanted, const struct row *row, double product) {
    double length = wanted->length, error = scan->error;
    struct entry entry = {-INFINITY, INFINITY, row->id, 0};
    if (!row->plain || length == 0) return entry;
    if (scan->search->metric == COSINE) {
        entry.lower = product / row->length - error;
        entry.upper = product / row->length + error;
    } else if (scan->search->metric == INNER) {
        entry.lower = length * (product - error * row->length);
        entry.upper = length * (product + error * row->length);
    } else {
        double total = row->square - 2 * length * product + length * length;
        double gap = error * (row->square + 2 * length * row->length + length * length);
        entry.lower = -sqrt(total + gap);
        entry.upper = -sqrt(total > gap ? total - gap : 0);
    }
    return entry;
}

static void offer(struct scan *scan, struct worker *worker, int64_t i, const struct row *row, float product) {
    struct list *list = &worker->lists[i];
    if (!scan->wanted[i].known) return;
    struct entry entry = interval(scan, &scan->wanted[i], row, product);
    if (!(entry.upper >= list->reach - slack_of(scan))) return;
    list->entries[list->held++] = entry;
    if (list->held == list->room && !make_room(scan, worker, i)) {
        __atomic_store_n(&scan->failed, 1, __ATOMIC_RELAXED);
        list->held = 0;
    }
}

// --- the scan

static void rescale(const struct scan *scan, const int64_t *ids, int64_t count, float *products, float *squares) {
    const float *scale = scan->search->scale;
    for (int64_t r = 0; scale && r < count; r++) {
        if (products) products[r] *= scale[ids[r]];
        squares[r] *= scale[ids[r]] * scale[ids[r]];
    }
}

// Several rows for a few queries; the rows are in the cache for all but the first.
static void scan_rows(struct scan *scan, struct worker *worker, const int64_t *ids, int64_t count, int64_t after) {
    dl_products products = dl_products_of(scan->level, scan->search->dtype);
    for (int64_t i = 0; i < scan->size; i++) {
        struct dl_reach reach = {{worker->reach.fixed[i]}, {worker->reach.length[i]}, {worker->reach.square[i]}};
        products(&scan->matrix, ids, count, count + after, scan->wanted[i].unit, worker->products, worker->squares);
        rescale(scan, ids, count, worker->products, worker->squares);
        if (!dl_tests_of(scan->level)->rows(&reach, worker->products, worker->squares, count)) continue;
        for (int64_t r = 0; r < count; r++) {
            struct row row = describe(ids[r], worker->squares[r]);
            offer(scan, worker, i, &row, worker->products[r]);
        }
    }
}

// A row that may be among the best for some query of the group: a float32 product decides.
static void offer_row(struct scan *scan, struct worker *worker, const struct row *row, const float *products) {
    dl_products exacter = dl_products_of(scan->level, scan->search->dtype);
    struct dl_reach *reach = &worker->reach;
    for (int64_t i = 0; i < scan->size; i++) {
        double bound = reach->fixed[i] + reach->length[i] * row->length + reach->square[i] * row->square;
        if (row->plain && products[i] < bound) continue;
        float product, square;
        exacter(&scan->matrix, &row->id, 1, 1, scan->wanted[i].unit, &product, &square);
        rescale(scan, &row->id, 1, &product, &square);
        offer(scan, worker, i, row, product);
    }
}

static void scan_block(struct scan *scan, struct worker *worker, const int64_t *ids, int64_t count, int64_t after) {
    const struct search *search = scan->search;
    dl_convert convert = scan->batch->convert[search->dtype];
    for (int64_t r = 0; r < count; r++) {
        const char *row = scan->matrix.data + ids[r] * scan->matrix.stride;
        worker->squares[r] = convert(row, search->dimension, worker->converted + r * scan->width);
    }
    for (int64_t r = 0; r < DL_BLOCK; r++)
        worker->ahead[r] = scan->matrix.data + ids[r < after ? count + r : 0] * scan->matrix.stride;
    struct dl_tile tile = {worker->converted, scan->packed, scan->steps, scan->width, scan->lanes, count,
                           worker->ahead, row_bytes(search), worker->products};
    scan->batch->tile(&tile);
    for (int64_t r = 0; r < count; r++) {
        float *products = worker->products + r * scan->lanes * DL_LANE;
        if (search->scale)
            for (int64_t i = 0; i < scan->size; i++) products[i] *= search->scale[ids[r]];
        rescale(scan, ids + r, 1, NULL, worker->squares + r);
        if (!dl_tests_of(scan->level)->queries(&worker->reach, products, worker->squares[r], scan->size)) continue;
        struct row row = describe(ids[r], worker->squares[r]);
        offer_row(scan, worker, &row, products);
    }
}

static int64_t take_bits(const struct search *search, int64_t from, int64_t to, int64_t *ids) {
    int64_t count = 0;
    for (int64_t at = from; at < to; at += 64) {  // `from` is a multiple of 64
        uint64_t bits = 0;
        int64_t bytes = (search->count + 7) / 8 - at / 8;
        memcpy(&bits, search->bitmap + at / 8, bytes < 8 ? (size_t)bytes : 8);
        if (to - at < 64) bits &= (UINT64_C(1) << (to - at)) - 1;
        for (; bits; bits &= bits - 1) ids[count++] = at + __builtin_ctzll(bits);
    }
    return count;
}

static int64_t take_run(const struct scan *scan, int64_t run, int64_t *ids) {
    const struct search *search = scan->search;
    int64_t from = run * RUN, to = from + RUN < scan->searched ? from + RUN : scan->searched;
    if (search->bitmap) return take_bits(search, from, to, ids);
    for (int64_t i = from; i < to; i++) ids[i - from] = search->rows ? search->rows[i] : i;
    return to - from;
}

static void work(void *context, int64_t item) {
    struct scan *scan = context;
    struct worker *worker = &scan->workers[item];
    int64_t run;
    while ((run = __atomic_fetch_add(&scan->next, 1, __ATOMIC_RELAXED)) < scan->runs) {
        int64_t count = take_run(scan, run, worker->ids);
        int64_t step = scan->batch ? DL_BLOCK : SOME;
        for (int64_t at = 0; at < count; at += step) {
            int64_t here = count - at < step ? count - at : step;
            if (scan->batch) scan_block(scan, worker, worker->ids + at, here, count - at - here);
            else scan_rows(scan, worker, worker->ids + at, here, count - at - here);
        }
    }
}

static void join(void *context, int64_t i) {
    struct scan *scan = context;
    struct list *list = &scan->workers[0].lists[i];
    for (int32_t w = 1; w < scan->search->threads; w++) {
        const struct list *other = &scan->workers[w].lists[i];
        if (list->held + other->held > list->room && !grow(list, list->held + other->held)) {
            __atomic_store_n(&scan->failed, 1, __ATOMIC_RELAXED);
            return;
        }
        memcpy(list->entries + list->held, other->entries, (size_t)other->held * sizeof *list->entries);
        list->held += other->held;
        if (other->reach > list->reach) list->reach = other->reach;
    }
}

static int64_t finishers(const struct scan *scan) {
    return scan->size < scan->search->threads ? scan->size : scan->search->threads;
}

static void finish(void *context, int64_t item) {
    struct scan *scan = context;
    for (int64_t i = item; i < scan->size; i += finishers(scan)) {
        join(scan, i);
        if (!settle(scan, &scan->workers[item], &scan->workers[0].lists[i], &scan->wanted[i]))
            __atomic_store_n(&scan->failed, 1, __ATOMIC_RELAXED);
    }
}

// --- one group of queries

static int want(struct wanted *wanted, const struct search *search, int64_t number) {
    const float *values = search->queries + number * search->dimension;
    int64_t padded = (search->dimension + DL_PAD - 1) / DL_PAD * DL_PAD;
    wanted->unit = calloc((size_t)padded, sizeof(float));
    if (!wanted->unit || dl_prepare(&wanted->exact, values, search->dimension)) return 0;
    double norm = wanted->exact.norm;
    wanted->known = isfinite(norm) && (norm > 0 || search->metric != COSINE);
    if (!(norm > DL_SMALLEST && norm < DL_LARGEST)) return 1;
    wanted->length = sqrt(norm);
    for (int64_t i = 0; i < search->dimension; i++) wanted->unit[i] = (float)(wanted->exact.values[i] / wanted->length);
    return 1;
}

static int pack(struct scan *scan) {
    int64_t places = scan->lanes * DL_LANE;
    scan->packed = calloc((size_t)(scan->steps * places), 4);
    uint32_t *units = calloc((size_t)scan->width, 4);
    for (int64_t i = 0; scan->packed && units && i < scan->size; i++) {
        scan->batch->convert[FLOAT32](scan->wanted[i].unit, scan->search->dimension, units);
        for (int64_t at = 0; at < scan->steps; at++) scan->packed[at * places + i] = units[at];
    }
    free(units);
    return scan->packed && units;
}

static double first_reach(const struct search *search, int64_t query) {
    if (!search->thresholds || isnan(search->thresholds[query])) return -INFINITY;
    return search->metric == L2 ? -search->thresholds[query] : search->thresholds[query];
}

static int equip(struct scan *scan, struct worker *worker, int64_t first) {
    worker->floats = malloc((size_t)scan->search->dimension * sizeof(float));
    if (scan->batch) {
        worker->converted = calloc((size_t)(scan->width * DL_BLOCK), 4);
        if (!worker->converted) return 0;
    }
    for (int64_t i = 0; i < scan->size; i++) {
        worker->lists[i].reach = first_reach(scan->search, first + i);
        renew_reach(scan, worker, i);
        if (!grow(&worker->lists[i], 2 * scan->k + SPARE)) return 0;
    }
    return worker->floats != NULL;
}

static int prepare(struct scan *scan, int64_t first) {
    const struct search *search = scan->search;
    scan->wanted = calloc((size_t)scan->size, sizeof *scan->wanted);
    scan->workers = calloc((size_t)search->threads, sizeof *scan->workers);
    if (!scan->wanted || !scan->workers) return 0;
    for (int64_t i = 0; i < scan->size; i++)
        if (!want(&scan->wanted[i], search, first + i)) return 0;
    scan->error = ((double)search->dimension / 16 + 24) * 0x1p-23;
    if (scan->size > FEW) {
        scan->batch = dl_batch_of(scan->level);
        int64_t each = scan->batch->pairs ? 2 : 1;
        scan->steps = (search->dimension + each - 1) / each;
        scan->width = (scan->steps + 15) / 16 * 16;
        scan->lanes = (scan->size + DL_LANE - 1) / DL_LANE;
        scan->batch_error = (4.0 * (double)search->dimension + 48) * 0x1p-24;
        if (scan->batch->pairs)  // bfloat16 keeps 8 bits: of the query, and of float32 and float16 rows
            scan->batch_error += (search->dtype <= FLOAT16 ? 0x1p-8 : 0x1p-9) + 0x1p-16;
        if (!pack(scan)) return 0;
    }
    for (int32_t w = 0; w < search->threads; w++)
        if (!equip(scan, &scan->workers[w], first)) return 0;
    return 1;
}

static void release(struct scan *scan) {
    for (int64_t i = 0; scan->wanted && i < scan->size; i++) {
        free(scan->wanted[i].unit);
        free(scan->wanted[i].exact.values);
    }
    for (int32_t w = 0; scan->workers && w < scan->search->threads; w++) {
        struct worker *worker = &scan->workers[w];
        for (int64_t i = 0; i < scan->size; i++) free(worker->lists[i].entries);
        free(worker->converted);
        free(worker->scratch);
        free(worker->floats);
    }
    free(scan->wanted);
    free(scan->workers);
    free(scan->packed);
}

static int ascends(const void *left, const void *right) {
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

// A copy of the list that ascends, each row once; NULL without memory.
static int64_t *sorted_rows(struct search *search) {
    int64_t *rows = malloc((size_t)search->listed * sizeof *rows), kept = 0;
    if (!rows) return NULL;
    memcpy(rows, search->rows, (size_t)search->listed * sizeof *rows);
    qsort(rows, (size_t)search->listed, sizeof *rows, ascends);
    for (int64_t i = 0; i < search->listed; i++)
        if (!kept || rows[kept - 1] != rows[i]) rows[kept++] = rows[i];
    search->rows = rows;
    search->listed = kept;
    return rows;
}

// 0; -1 without memory; 1 + i when rows[i] is no row. The caller frees *sorted, a list put in order.
static int64_t check(struct search *search, int64_t **sorted) {
    int ascending = 1;
    for (int64_t i = 0; search->rows && i < search->listed; i++) {
        if (search->rows[i] < 0 || search->rows[i] >= search->count) return 1 + i;
        if (i && search->rows[i] <= search->rows[i - 1]) ascending = 0;
    }
    if (!ascending && !(*sorted = sorted_rows(search))) return -1;
    int64_t queries = search->wanted < DL_GROUP ? search->wanted : DL_GROUP;
    int64_t rows = search->rows ? search->listed : search->count;
    int64_t megabytes = rows * search->dimension * queries >> 18;  // a thread costs as much as reading about one
    if (search->threads > megabytes) search->threads = (int32_t)megabytes;
    if (search->threads > 64) search->threads = 64;
    if (search->threads < 1) search->threads = 1;
    return 0;
}

static int run(struct scan *scan, int64_t first) {
    int ready = prepare(scan, first);
    if (!ready) return 0;
    dl_parallel(scan->search->threads, scan->search->threads, work, scan);
    dl_parallel(finishers(scan), scan->search->threads, finish, scan);
    return !scan->failed;
}

static struct scan scan_of(int32_t level, const struct search *search) {
    int64_t searched = search->rows ? search->listed : search->count;
    return (struct scan){
        .search = search,
        .matrix = {search->matrix, search->dimension, search->stride, search->dtype},
        .level = level,
        .k = search->k < searched ? search->k : searched ? searched : 1,
        .runs = (searched + RUN - 1) / RUN,
        .searched = searched,
    };
}

static double shown(const struct scan *scan, const struct entry *entry) {
    return scan->search->metric == L2 ? -entry->lower : entry->lower;
}

static int topk(int32_t level, const struct search *search, int64_t *rows, double *scores) {
    struct scan start = scan_of(level, search);
    int64_t each = (2 * start.k + SPARE) * (int64_t)sizeof(struct entry) * search->threads, group = BUDGET / each;
    group = group < 1 ? 1 : group > DL_GROUP ? DL_GROUP : group;
    for (int64_t first = 0; first < search->wanted; first += group) {
        struct scan scan = start;
        scan.size = search->wanted - first < group ? search->wanted - first : group;
        int done = run(&scan, first);
        for (int64_t i = 0; done && i < scan.size; i++) {
            const struct list *list = &scan.workers[0].lists[i];
            for (int64_t place = 0; place < list->held; place++) {
                rows[(first + i) * search->k + place] = list->entries[place].row;
                scores[(first + i) * search->k + place] = shown(&scan, &list->entries[place]);
            }
        }
        release(&scan);
        if (!done) return 0;
    }
    return 1;
}

// 0; -1 without memory; 1 + i when rows[i] is no row. rows and scores hold wanted * k places, of which those without a
// result are left as they are.
DL_EXPORT int64_t dl_topk(int32_t level, const struct search *given, int64_t *rows, double *scores) {
    struct search search = *given;
    int64_t *sorted = NULL, bad = check(&search, &sorted);
    if (!bad && !topk(level, &search, rows, scores)) bad = -1;
    free(sorted);
    return bad;
}

static int reaching(int32_t level, const struct search *search, int64_t **rows, double **scores, int64_t *count) {
    struct scan scan = scan_of(level, search);
    scan.size = 1;
    int done = run(&scan, 0);
    if (done) {
        const struct list *list = &scan.workers[0].lists[0];
        *count = list->held;
        *rows = malloc((size_t)(list->held + 1) * sizeof **rows);
        *scores = malloc((size_t)(list->held + 1) * sizeof **scores);
        done = *rows && *scores;
        for (int64_t i = 0; done && i < list->held; i++) {
            (*rows)[i] = list->entries[i].row;
            (*scores)[i] = shown(&scan, &list->entries[i]);
        }
    }
    release(&scan);
    return done;
}

// As dl_topk for one query; *count rows and scores lie at *rows and *scores until dl_release.
DL_EXPORT int64_t dl_reaching(int32_t level, const struct search *given, int64_t **rows, double **scores, int64_t *count) {
    struct search search = *given;
    int64_t *sorted = NULL, bad = check(&search, &sorted);
    if (!bad && !reaching(level, &search, rows, scores, count)) bad = -1;
    free(sorted);
    return bad;
}

DL_EXPORT void dl_release(void *memory) { free(memory); }
