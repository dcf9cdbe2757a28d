// The plain members of a tar, many in one call: first their headers one after the other, then on all threads the
// CRC-32C, the kept bytes and the picture's size of each. A header that is in any way unusual ends the run in front of
// it: the walk in Python (ingest/tar_walk.py) takes that member, says what is wrong with it, and comes back.
#include "kernels.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_BLOB (4ll << 30)  // codecs/info.py holds the same number
enum { BLOCK = 512 };
enum { WINDOW = 2048 };            // read at once for headers: a small member's data and the header behind it
enum { SPAN = 1 << 18 };           // bytes of neighbours read at once: stays in a second-level cache
enum { MAX_WHOLE = 4 << 20 };      // a longer member has a sum per megabyte, which is not taken here
enum { MAX_KEPT = 1 << 16 };
enum { MAX_NAME = 1024, MAX_EXTENSIONS = 128 };
enum { SKIP = 0, KEEP = 1, SUM = 2, PICTURE = 3 };
enum { FULL = 0, UNUSUAL = 1 };
enum { NO_EXTENSION = 0 };  // the caller gives an empty text for it
enum { CODE, OFFSET, SIZE, CRC, FACTS, KEPT, NAME, KEY, FIELDS };
// what the caller gives (FD .. ROOM) and is given back
enum { FD, POSITION, END, ROWS, NAMES, KEPT_ROOM, EXTENSIONS, EXTENSION_ROOM };
enum { COUNT = 8, NAMES_USED, KEYS_USED, KEYS, KEPT_USED, STOPPED };

struct scan {
    int64_t *state;
    int64_t *rows;
    uint8_t *texts, *keys, *kept, *extensions, *actions;
    const uint8_t *names[MAX_EXTENSIONS];
    int64_t lengths[MAX_EXTENSIONS], extension_bytes;
    int last;  // the extension of the member before
    int64_t key, key_length;  // where the key before begins, and its length
    int64_t start, stop;
    uint8_t window[WINDOW];
};

struct head {
    int64_t size;
    uint8_t kind;
    int64_t length;  // of the name
    uint8_t name[MAX_NAME];
};

static int read_whole(int fd, uint8_t *place, int64_t length, int64_t offset) {
    while (length > 0) {
        ssize_t got = pread(fd, place, (size_t)length, offset);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return 0;
        place += got;
        offset += got;
        length -= got;
    }
    return 1;
}

// `length` bytes of the file, at most WINDOW; NULL where they are not to be had. The next call takes them away.
static const uint8_t *bytes_at(struct scan *scan, int64_t at, int64_t length) {
    if (at < scan->start || at + length > scan->stop) {
        int64_t left = scan->state[END] - at, wanted = left < WINDOW ? left : WINDOW;
        scan->start = scan->stop = at;
        if (length > wanted || !read_whole((int)scan->state[FD], scan->window, wanted, at)) return NULL;
        scan->stop = at + wanted;
    }
    return scan->window + (at - scan->start);
}

// -- headers

// Octal digits, spaces before them, spaces and NULs behind; -1 for anything else.
static int64_t number(const uint8_t *field, int length) {
    int64_t value = 0;
    int i = 0, first;
    while (i < length && field[i] == ' ') i++;
    for (first = i; i < length && field[i] >= '0' && field[i] <= '7'; i++) value = value << 3 | (field[i] - '0');
    if (i == first) return -1;
    for (; i < length; i++)
        if (field[i] && field[i] != ' ') return -1;
    return value;
}

static int is_utf8(const uint8_t *p, int64_t n) {
    for (int64_t i = 0; i < n;) {
        int more = p[i] < 0x80 ? 0 : p[i] >= 0xC2 && p[i] <= 0xDF ? 1 : (p[i] & 0xF0) == 0xE0 ? 2 : p[i] >= 0xF0 && p[i] <= 0xF4 ? 3 : -1;
        if (more < 0 || i + more >= n) return 0;
        for (int k = 1; k <= more; k++)
            if ((p[i + k] & 0xC0) != 0x80) return 0;
        if ((p[i] == 0xE0 && p[i + 1] < 0xA0) || (p[i] == 0xED && p[i + 1] > 0x9F) || (p[i] == 0xF0 && p[i + 1] < 0x90) ||
            (p[i] == 0xF4 && p[i + 1] > 0x8F))
            return 0;
        i += 1 + more;
    }
    return 1;
}

static int64_t until_nul(const uint8_t *text, int64_t room) {
    const uint8_t *end = memchr(text, 0, (size_t)room);
    return end ? end - text : room;
}

static int set_name(struct head *head, const uint8_t *text, int64_t length) {
    if (length < 1 || length > MAX_NAME) return 0;
    memcpy(head->name, text, (size_t)length);
    head->length = length;
    return 1;
}

// Whether the block is a header with the right sum and nothing rare; its name is taken unless one is there already.
static int parse(const uint8_t *block, struct head *head) {
    uint32_t sum = 8 * ' ';
    for (int i = 0; i < BLOCK; i++) sum += block[i];
    for (int i = 148; i < 156; i++) sum -= block[i];
    if (number(block + 148, 8) != (int64_t)sum) return 0;
    head->size = number(block + 124, 12);
    head->kind = block[156];
    if (head->size < 0) return 0;
    if (head->length) return 1;
    int64_t prefix = memcmp(block + 257, "ustar", 6) ? 0 : until_nul(block + 345, 155);
    if (prefix && !memcmp(block + 508, "tar", 4)) return 0;
    int64_t length = until_nul(block, 100);
    if (prefix) {
        memcpy(head->name, block + 345, (size_t)prefix);
        head->name[prefix++] = '/';
    }
    memcpy(head->name + prefix, block, (size_t)length);
    head->length = prefix + length;
    return 1;
}

// A pax header's records: taken is the path; what changes the data, and what is malformed, is left to the caller.
static int take_pax(const uint8_t *data, int64_t size, struct head *head) {
    for (int64_t at = 0; at < size && data[at];) {
        int64_t length = 0, i = at;
        for (; i < size && i < at + 8 && data[i] >= '0' && data[i] <= '9'; i++) length = 10 * length + (data[i] - '0');
        int64_t end = at + length - 1, key = i + 1;  // where the line ends, and the key begins
        if (i == at || i >= size || data[i] != ' ' || end >= size || end <= key || data[end] != '\n') return 0;
        const uint8_t *equals = memchr(data + key, '=', (size_t)(end - key));
        if (!equals || memchr(data + key, 0, (size_t)(end - key))) return 0;
        int64_t named = equals - (data + key), value = key + named + 1;
        if (!named || (named == 4 && !memcmp(data + key, "size", 4))) return 0;
        if (named >= 11 && !memcmp(data + key, "GNU.sparse.", 11)) return 0;
        if (named == 4 && !memcmp(data + key, "path", 4) && !set_name(head, data + value, end - value)) return 0;
        at = end + 1;
    }
    return 1;
}

// The header of a member at *at, with the extended headers before it, *at moved to its data; 0 where it is unusual.
static int next_head(struct scan *scan, int64_t *at, struct head *head) {
    struct head extended;
    uint8_t seen = 0;
    head->length = 0;
    for (;;) {
        const uint8_t *block = bytes_at(scan, *at, BLOCK);
        if (!block || !parse(block, head)) return 0;
        *at += BLOCK;
        if (head->kind == '0' || head->kind == 0 || head->kind == '5') return 1;
        if ((head->kind != 'x' && head->kind != 'L') || seen || head->size > WINDOW - BLOCK) return 0;
        const uint8_t *data = bytes_at(scan, *at, head->size);
        if (!data) return 0;
        extended.length = 0;
        if (head->kind == 'x' ? !take_pax(data, head->size, &extended)
                              : !set_name(&extended, data, until_nul(data, head->size)))
            return 0;
        head->length = extended.length;
        memcpy(head->name, extended.name, (size_t)extended.length);
        *at += head->size + (-head->size & (BLOCK - 1));
        seen = 1;
    }
}

// -- names

static int same(const uint8_t *a, const uint8_t *b, int64_t length) {
    for (int64_t i = 0; i < length; i++)
        if (a[i] != (b[i] >= 'A' && b[i] <= 'Z' ? b[i] + 32 : b[i])) return 0;
    return 1;
}

// The number of an extension, a new one where it is not known; -1 where there is no room for one more.
static int number_of(struct scan *scan, const uint8_t *text, int64_t length) {
    int64_t *state = scan->state;
    if (scan->lengths[scan->last] == length && same(scan->names[scan->last], text, length)) return scan->last;
    for (int i = 0; i < state[EXTENSIONS]; i++)
        if (scan->lengths[i] == length && same(scan->names[i], text, length)) return i;
    if (state[EXTENSIONS] == MAX_EXTENSIONS || scan->extension_bytes + length + 1 > state[EXTENSION_ROOM]) return -1;
    uint8_t *place = scan->extensions + scan->extension_bytes;
    for (int64_t i = 0; i < length; i++) {
        if (text[i] >= 0x80) return -1;
        place[i] = text[i] >= 'A' && text[i] <= 'Z' ? text[i] + 32 : text[i];
    }
    place[length] = 0;
    scan->extension_bytes += length + 1;
    scan->names[state[EXTENSIONS]] = place;
    scan->lengths[state[EXTENSIONS]] = length;
    scan->actions[state[EXTENSIONS]] = SKIP;
    return (int)state[EXTENSIONS]++;
}

// Where the first dot behind the last slash is, with something before and behind it; 0 where there is none such.
static int64_t dot_of(const struct head *head) {
    int64_t base = head->length;
    while (base && head->name[base - 1] != '/') base--;
    const uint8_t *dot = memchr(head->name + base, '.', (size_t)(head->length - base));
    return !dot || dot == head->name + base || dot + 1 == head->name + head->length ? 0 : dot - head->name;
}

// The number of a key: one more than that of the member before, unless it is the same. Keys take no more room than names.
static int64_t key_number(struct scan *scan, const uint8_t *text, int64_t length) {
    int64_t *state = scan->state;
    if (!state[KEYS] || length != scan->key_length || memcmp(scan->keys + scan->key, text, (size_t)length)) {
        scan->key = state[KEYS_USED];
        scan->key_length = length;
        memcpy(scan->keys + scan->key, text, (size_t)length);
        scan->keys[scan->key + length] = 0;
        state[KEYS_USED] += length + 1;
        state[KEYS]++;
    }
    return state[KEYS] - 1;
}

enum { TAKEN, PASSED, NO_ROOM, STRANGE };

static int take(struct scan *scan, struct head *head, int64_t at) {
    int64_t *state = scan->state, *row = scan->rows + FIELDS * state[COUNT];
    int is_folder = head->kind == '5' || (head->kind == 0 && head->length && head->name[head->length - 1] == '/');
    if (is_folder) return head->size ? STRANGE : PASSED;
    if (!head->length || !is_utf8(head->name, head->length)) return STRANGE;
    if (head->size > MAX_BLOB || head->size > state[END] - at) return STRANGE;
    if (state[COUNT] == state[ROWS] || state[NAMES_USED] + head->length + 1 > state[NAMES]) return NO_ROOM;
    int64_t dot = dot_of(head);
    int code = dot ? number_of(scan, head->name + dot + 1, head->length - dot - 1) : NO_EXTENSION;
    if (code < 0) return STRANGE;
    int kept = scan->actions[code] == KEEP && head->size <= MAX_KEPT;
    if (kept && state[KEPT_USED] + head->size > state[KEPT_ROOM]) return NO_ROOM;
    scan->last = code;
    memcpy(scan->texts + state[NAMES_USED], head->name, (size_t)head->length);
    scan->texts[state[NAMES_USED] + head->length] = 0;
    row[NAME] = state[NAMES_USED];
    row[KEY] = dot ? key_number(scan, head->name, dot) : -1;
    state[NAMES_USED] += head->length + 1;
    row[CODE] = code;
    row[OFFSET] = at;
    row[SIZE] = head->size;
    row[CRC] = row[FACTS] = -1;
    row[KEPT] = kept ? state[KEPT_USED] : -1;
    if (kept) state[KEPT_USED] += head->size;
    state[COUNT]++;
    return TAKEN;
}

static void walk(struct scan *scan) {
    struct head head;
    int64_t *state = scan->state;
    for (;;) {
        int64_t at = state[POSITION];
        int got = next_head(scan, &at, &head) ? take(scan, &head, at) : STRANGE;
        if (got >= NO_ROOM) {
            state[STOPPED] = got == NO_ROOM ? FULL : UNUSUAL;
            return;
        }
        state[POSITION] = at + (got == TAKEN ? head.size + (-head.size & (BLOCK - 1)) : 0);
    }
}

// -- data

struct work {
    const struct scan *scan;
    int32_t level;
    int64_t next;  // the first member that no thread has taken
};

static int is_read(const struct work *work, const int64_t *row) {
    int action = work->scan->actions[row[CODE]];
    return action == KEEP ? row[KEPT] >= 0 : action != SKIP && row[SIZE] <= MAX_WHOLE;
}

// Some neighbours that no thread has taken, together no longer than a span unless it is one alone; 0 at the end.
static int64_t next_group(struct work *work, int64_t *first) {
    const int64_t *rows = work->scan->rows, count = work->scan->state[COUNT];
    int64_t start = __atomic_load_n(&work->next, __ATOMIC_RELAXED), stop;
    do {
        if (start >= count) return 0;
        const int64_t *row = rows + FIELDS * start;
        int64_t limit = row[OFFSET] + SPAN;
        for (stop = start + 1, row += FIELDS; stop < count && row[OFFSET] + row[SIZE] <= limit; row += FIELDS) stop++;
    } while (!__atomic_compare_exchange_n(&work->next, &start, stop, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    *first = start;
    return stop - start;
}

static void look(struct work *work, int64_t *row, const uint8_t *data) {
    int action = work->scan->actions[row[CODE]];
    if (action == KEEP) memcpy(work->scan->kept + row[KEPT], data, (size_t)row[SIZE]);
    if (action >= SUM) row[CRC] = dl_crc32c(work->level, 0, data, row[SIZE]);
    if (action == PICTURE) row[FACTS] = dl_image_facts(data, row[SIZE]);
}

static void look_at_group(struct work *work, int64_t *rows, int64_t count, uint8_t *buffer) {
    int64_t first = -1, end = 0;
    for (int64_t i = 0; i < count; i++) {
        const int64_t *row = rows + FIELDS * i;
        if (!is_read(work, row)) continue;
        if (first < 0) first = row[OFFSET];
        end = row[OFFSET] + row[SIZE];
    }
    int whole = first >= 0 && read_whole((int)work->scan->state[FD], buffer, end - first, first);
    for (int64_t i = 0; i < count; i++) {
        int64_t *row = rows + FIELDS * i;
        if (whole && is_read(work, row))
            look(work, row, buffer + row[OFFSET] - first);
        else if (!whole)
            row[KEPT] = -1;  // not to be had: the caller reads it again, and says why
    }
}

static void one_thread(void *context, int64_t item) {
    struct work *work = context;
    int64_t first, count;
    (void)item;
    uint8_t *buffer = malloc(MAX_WHOLE);  // touched only as far as the longest member goes
    while ((count = next_group(work, &first))) {
        int64_t *rows = work->scan->rows + FIELDS * first;
        if (buffer) look_at_group(work, rows, count, buffer);
        else
            for (int64_t i = 0; i < count; i++) rows[FIELDS * i + KEPT] = -1;
    }
    free(buffer);
}

// 0, or 1 where the arguments do not fit together. `extensions` holds state[EXTENSIONS] texts that each end with a NUL.
DL_EXPORT int32_t dl_scan_tar(int32_t level, int64_t *state, uint8_t *extensions, uint8_t *actions, int64_t *rows,
                              uint8_t *names, uint8_t *keys, uint8_t *kept, int32_t threads) {
    struct scan scan = {.state = state, .rows = rows, .texts = names, .keys = keys, .kept = kept, .extensions = extensions, .actions = actions};
    if (state[EXTENSIONS] < 1 || state[EXTENSIONS] > MAX_EXTENSIONS || state[POSITION] < 0) return 1;
    for (int i = 0; i < state[EXTENSIONS]; i++) {
        const uint8_t *text = extensions + scan.extension_bytes;
        const uint8_t *end = memchr(text, 0, (size_t)(state[EXTENSION_ROOM] - scan.extension_bytes));
        if (!end) return 1;
        scan.names[i] = text;
        scan.lengths[i] = end - text;
        scan.extension_bytes += end - text + 1;
    }
    state[COUNT] = state[NAMES_USED] = state[KEYS_USED] = state[KEYS] = state[KEPT_USED] = 0;
    walk(&scan);
    struct work work = {&scan, level, 0};
    dl_parallel(threads < 1 ? 1 : threads, threads, one_thread, &work);
    return 0;
}
