// A product of two float32 matrices in eight-bit integers, for training: rounds each row of the left and each column of the right
// by a scale of its own, sums exactly in int32, and gives float32 (see int8.py, whose arithmetic this is, bit by bit).
//
// For processors that have no instruction for eight bits: two terms stand side by side in 16 bits each, so that one instruction
// multiplies sixteen of them and adds them to eight sums of 32 bits, twice as many as of float32.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>

namespace {

typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel(work, data, threads, flags)

constexpr long ROWS = 6, COLUMNS = 16;  // of a tile whose sums stay in registers
constexpr long HIGH = 96;               // rows that one thread rounds and multiplies at a time: they stay in the second cache
constexpr long SLAB = 64;               // terms of all columns that one thread rounds at a time
constexpr long DEEP = 512;              // terms of a tile's operands that stay in the first cache
constexpr long AHEAD = 12;              // rows that are fetched before they are read, where the steps between them are long
constexpr long BLOCK = 16;              // terms that are rounded at a time

inline long up(long number, long step) { return (number + step - 1) / step * step; }

struct Room {  // of one thread, kept from call to call
    char* data = nullptr;
    size_t size = 0;
    ~Room() { std::free(data); }
    template <class T> T* of(size_t count) {
        size_t wanted = up(count * sizeof(T), 4096);
        if (wanted > size) {
            std::free(data);
            size = 0;
            data = (char*)std::aligned_alloc(64, wanted);
            if (data) size = wanted;
        }
        return (T*)data;
    }
};

struct Lines {  // rows of the left matrix or columns of the right one: what has a scale each
    const float* data;
    long count, terms, line, term;  // steps from one line to the next, and from one term to the next; one of both is 1
};

// ---- scales: the largest of a line over 127 -----------------------------------------------------------------------------------

inline __m256i magnitude(const float* x) {
    return _mm256_and_si256(_mm256_loadu_si256((const __m256i*)x), _mm256_set1_epi32(0x7fffffff));
}

// Magnitudes are compared as integers, which order like the numbers and put NaN above all.
inline int32_t largest_of(const float* x, long count) {
    __m256i most[4] = {};
    long i = 0;
    for (; i + 32 <= count; i += 32)
        for (int j = 0; j < 4; j++) most[j] = _mm256_max_epi32(most[j], magnitude(x + i + 8 * j));
    for (; i + 8 <= count; i += 8) most[0] = _mm256_max_epi32(most[0], magnitude(x + i));
    for (int j = 1; j < 4; j++) most[0] = _mm256_max_epi32(most[0], most[j]);
    alignas(32) int32_t parts[8];
    _mm256_store_si256((__m256i*)parts, most[0]);
    for (; i < count; i++) {
        int32_t bits;
        std::memcpy(&bits, x + i, 4);
        parts[0] = std::max(parts[0], bits & 0x7fffffff);
    }
    return *std::max_element(parts, parts + 8);
}

inline void lift(int32_t* largest, const float* x, long count) {  // number by number
    long i = 0;
    for (; i + 8 <= count; i += 8) {
        __m256i* most = (__m256i*)(largest + i);
        _mm256_storeu_si256(most, _mm256_max_epi32(_mm256_loadu_si256(most), magnitude(x + i)));
    }
    for (; i < count; i++) {
        int32_t bits;
        std::memcpy(&bits, x + i, 4);
        largest[i] = std::max(largest[i], bits & 0x7fffffff);
    }
}

inline void scale_of(int32_t largest, float& scale, float& inverse) {
    float most;
    std::memcpy(&most, &largest, 4);
    scale = most / 127.0f;
    inverse = 1.0f / (scale < 1e-30f ? 1e-30f : scale);
}

// ---- rounding -----------------------------------------------------------------------------------------------------------------

// To the nearest whole number, of two equally near ones to the even one; what is not a number (infinity times zero) to 0.
inline __m256i whole(__m256 x, __m256 inverse) {
    x = _mm256_mul_ps(x, inverse);
    return _mm256_cvtps_epi32(_mm256_and_ps(x, _mm256_cmp_ps(x, x, _CMP_ORD_Q)));
}

inline void transpose(__m256i (&v)[8]) {  // 8 × 8 of 32 bits
    __m256i a[8], b[8];
    for (int i = 0; i < 8; i += 2) a[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]), a[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
    for (int i = 0; i < 8; i += 4) {
        b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]), b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]), b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (int i = 0; i < 4; i++)
        v[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20), v[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
}

// One block of 8 lines and 8 pairs of terms: v[i] holds the pairs of line i (BY_LINE) or the lines of pair i. Lines and terms
// beyond the last are zeros. ALONG: the terms of a line lie side by side.
template <bool ALONG, bool BY_LINE>
inline void block(const Lines& x, long first, long lines, long k, const float* inverse, __m256i (&v)[8]) {
    const float* source = x.data + first * x.line + k * x.term;
    long line = x.line, term = x.term;
    const long terms = std::min(BLOCK, x.terms - k);
    alignas(32) float edge[8 * BLOCK], own[8];
    if (lines < 8 || terms < BLOCK) {
        std::memset(edge, 0, sizeof edge);
        const long to_line = ALONG ? BLOCK : 1, to_term = ALONG ? 1 : 8;
        for (long j = 0; j < lines; j++)
            for (long t = 0; t < terms; t++) edge[j * to_line + t * to_term] = source[j * line + t * term];
        for (int j = 0; j < 8; j++) own[j] = j < lines ? inverse[j] : 0.0f;
        source = edge, line = to_line, term = to_term, inverse = own;
    }
    if (ALONG) {
        for (int j = 0; j < 8; j++) {
            const __m256 scale = _mm256_set1_ps(inverse[j]);
            const float* s = source + j * line;
            const __m256i both = _mm256_packs_epi32(whole(_mm256_loadu_ps(s), scale), whole(_mm256_loadu_ps(s + 8), scale));
            v[j] = _mm256_permute4x64_epi64(both, 0xd8);
        }
    } else {
        const __m256 scale = _mm256_loadu_ps(inverse);
        for (int j = 0; j < 8; j++) {
            const float* s = source + 2 * j * term;
            if (source != edge) {
                _mm_prefetch((const char*)(s + BLOCK * term), _MM_HINT_T0);
                _mm_prefetch((const char*)(s + (BLOCK + 1) * term), _MM_HINT_T0);
            }
            const __m256i even = whole(_mm256_loadu_ps(s), scale), odd = whole(_mm256_loadu_ps(s + term), scale);
            v[j] = _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
        }
    }
    if (ALONG != BY_LINE) transpose(v);
}

// ---- sums ---------------------------------------------------------------------------------------------------------------------

// 6 × 16 sums over pairs of terms: `a` holds rows of pairs, `step` bytes apart; `b` 16 columns side by side for each pair.
inline void sums(const char* a, long step, const int32_t* b, long pairs, __m256i (&sum)[ROWS][2]) {
    const char* lower = a + 3 * step;
#pragma GCC unroll 4
    for (long p = 0; p < pairs; p++) {
        const __m256i left = _mm256_load_si256((const __m256i*)(b + 16 * p));
        const __m256i right = _mm256_load_si256((const __m256i*)(b + 16 * p + 8));
        for (int i = 0; i < ROWS; i++) {
            int32_t pair;
            std::memcpy(&pair, (i < 3 ? a + i * step : lower + (i - 3) * step) + 4 * p, 4);
            const __m256i both = _mm256_set1_epi32(pair);
            sum[i][0] = _mm256_add_epi32(sum[i][0], _mm256_madd_epi16(both, left));
            sum[i][1] = _mm256_add_epi32(sum[i][1], _mm256_madd_epi16(both, right));
        }
    }
}

struct Product {
    Lines a, b;
    float* out;  // holds sums in int32 between two pieces of the terms
    Parallel parallel;
    int threads;
    long high = 0, depth = 0;                    // rows of a block; terms, filled up
    int32_t* packed = nullptr;                   // (panels of 16 columns, pairs, 16 columns)
    float *scale = nullptr, *inverse = nullptr;  // of the columns
    int32_t* largest = nullptr;                  // of each column in each slab
    std::atomic<long> next{0};
    std::atomic<bool> failed{false};

    template <class Work> void share(long count, Work work) {
        struct Task {
            Product* self;
            Work* work;
            long count;
            static void run(void* given) {
                Task* task = (Task*)given;
                for (long item; (item = task->self->next++) < task->count;) (*task->work)(item);
            }
        } task{this, &work, count};
        next = 0;
        const long team = std::min<long>(threads, count);
        if (team < 2) Task::run(&task);
        else if (parallel) parallel(Task::run, &task, (unsigned)team, 0);
        else {
            std::vector<std::thread> others;
            for (long t = 1; t < team; t++) others.emplace_back(Task::run, &task);
            Task::run(&task);
            for (auto& other : others) other.join();
        }
    }

    void place(long column, long pair, const __m256i* v) const {
        int32_t* to = packed + (column / COLUMNS * (depth / 2) + pair) * COLUMNS + column % COLUMNS;
        for (int i = 0; i < 8; i++) _mm256_store_si256((__m256i*)(to + i * COLUMNS), v[i]);
    }

    void round_columns() {
        if (b.count % COLUMNS && b.count % COLUMNS <= 8)  // the second half of the last panel
            for (long p = 0; p < depth / 2; p++) std::memset(packed + (b.count / COLUMNS * (depth / 2) + p) * COLUMNS + 8, 0, 32);
        if (b.term == 1) {
            share((b.count + 7) / 8, [this](long item) {
                const long column = 8 * item, lines = std::min(8L, b.count - column);
                for (long i = column; i < column + lines; i++)
                    scale_of(largest_of(b.data + i * b.line, b.terms), scale[i], inverse[i]);
                __m256i v[8];
                for (long k = 0; k < b.terms; k += BLOCK)
                    block<true, false>(b, column, lines, k, inverse + column, v), place(column, k / 2, v);
            });
            return;
        }
        const long slabs = (b.terms + SLAB - 1) / SLAB;  // read in the order in which they lie
        share(slabs, [this](long slab) {
            int32_t* most = largest + slab * b.count;
            std::memset(most, 0, b.count * sizeof *most);
            for (long k = slab * SLAB; k < std::min(b.terms, (slab + 1) * SLAB); k++) lift(most, b.data + k * b.term, b.count);
        });
        for (long i = 0; i < b.count; i++) {
            int32_t most = 0;
            for (long slab = 0; slab < slabs; slab++) most = std::max(most, largest[slab * b.count + i]);
            scale_of(most, scale[i], inverse[i]);
        }
        share(slabs, [this](long slab) {
            __m256i v[8];
            for (long k = slab * SLAB; k < std::min(b.terms, (slab + 1) * SLAB); k += BLOCK)
                for (long i = 0; i < b.count; i += 8)
                    block<false, false>(b, i, std::min(8L, b.count - i), k, inverse + i, v), place(i, k / 2, v);
        });
    }

    void round_rows(long from, long count, int32_t* own, long stride, float* own_scale) {
        float own_inverse[HIGH];
        __m256i v[8];
        auto keep = [&](long line, long k) {
            for (int i = 0; i < 8; i++) _mm256_store_si256((__m256i*)(own + (line + i) * stride + k / 2), v[i]);
        };
        if (a.term == 1) {
            for (long i = 0; i < count; i += 8) {
                const long lines = std::min(8L, count - i);
                for (long j = i; j < i + lines; j++)
                    scale_of(largest_of(a.data + (from + j) * a.line, a.terms), own_scale[j], own_inverse[j]);
                for (long k = 0; k < a.terms; k += BLOCK)
                    block<true, true>(a, from + i, lines, k, own_inverse + i, v), keep(i, k);
            }
            return;
        }
        int32_t most[HIGH] = {};
        for (long k = 0; k < a.terms; k++) {
            const float* row = a.data + k * a.term + from;
            for (long i = 0; i < count; i += 16) _mm_prefetch((const char*)(row + AHEAD * a.term + i), _MM_HINT_T0);
            lift(most, row, count);
        }
        for (long i = 0; i < count; i++) scale_of(most[i], own_scale[i], own_inverse[i]);
        for (long k = 0; k < a.terms; k += BLOCK)
            for (long i = 0; i < count; i += 8)
                block<false, true>(a, from + i, std::min(8L, count - i), k, own_inverse + i, v), keep(i, k);
    }

    void rows(long from) {
        static thread_local Room room;
        const long count = std::min(high, a.count - from), filled = up(count, 24), stride = depth / 2 + 16;  // in pairs
        int32_t* own = room.of<int32_t>(filled * stride);
        if (!own) {
            failed = true;
            return;
        }
        float own_scale[HIGH];
        round_rows(from, count, own, stride, own_scale);
        const long pieces = (depth + DEEP - 1) / DEEP, deep = up((depth + pieces - 1) / pieces, BLOCK);
        for (long k = 0; k < depth; k += deep) {
            const long pairs = std::min(deep, depth - k) / 2;
            const bool first = k == 0, last = k + deep >= depth;
            for (long column = 0; column < b.count; column += COLUMNS) {
                const int32_t* panel = packed + column * (depth / 2) + k / 2 * COLUMNS;
                const bool narrow = column + COLUMNS > b.count;
                const char* ahead = (const char*)(panel + COLUMNS * (depth / 2));
                const long slice = up(64 * pairs * ROWS / count, 64);
                for (long row = 0; row < count; row += ROWS) {
                    float* to = out + (from + row) * b.count + column;
                    long ld = b.count;
                    alignas(32) float edge[ROWS * COLUMNS];
                    const long lines = std::min(ROWS, count - row), width = std::min(COLUMNS, b.count - column);
                    const bool cut = narrow || lines < ROWS;
                    if (cut) {
                        if (!first)
                            for (long i = 0; i < lines; i++) std::memcpy(edge + i * COLUMNS, to + i * ld, width * 4);
                        to = edge, ld = COLUMNS;
                    } else {
                        for (int i = 0; i < ROWS; i++) __builtin_prefetch(to + i * ld, 1);
                    }
                    for (long i = 0; i < slice; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T1);
                    ahead += slice;
                    __m256i sum[ROWS][2];
                    for (int i = 0; i < ROWS; i++)
                        for (int j = 0; j < 2; j++)
                            sum[i][j] = first ? _mm256_set1_epi32(0) : _mm256_loadu_si256((const __m256i*)(to + i * ld + 8 * j));
                    sums((const char*)(own + row * stride + k / 2), 4 * stride, panel, pairs, sum);
                    if (last) {
                        alignas(32) float columns[COLUMNS] = {};
                        std::memcpy(columns, scale + column, width * 4);
                        for (int i = 0; i < ROWS; i++) {
                            const __m256 by_row = _mm256_set1_ps(i < lines ? own_scale[row + i] : 0.0f);
                            for (int j = 0; j < 2; j++) {
                                const __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(sum[i][j]), by_row);
                                _mm256_storeu_ps(to + i * ld + 8 * j, _mm256_mul_ps(scaled, _mm256_load_ps(columns + 8 * j)));
                            }
                        }
                    } else {
                        for (int i = 0; i < ROWS; i++)
                            for (int j = 0; j < 2; j++) _mm256_storeu_si256((__m256i*)(to + i * ld + 8 * j), sum[i][j]);
                    }
                    if (cut)
                        for (long i = 0; i < lines; i++)
                            std::memcpy(out + (from + row + i) * b.count + column, edge + i * COLUMNS, width * 4);
                }
            }
        }
    }

    bool run() {
        static thread_local Room room;
        depth = up(a.terms, BLOCK);
        const long columns = up(b.count, COLUMNS);
        const long slabs = b.term == 1 ? 0 : (b.terms + SLAB - 1) / SLAB;
        packed = room.of<int32_t>(columns * (depth / 2 + 2) + slabs * b.count);
        if (!packed) return false;
        scale = (float*)(packed + columns * (depth / 2));
        inverse = scale + columns;
        largest = (int32_t*)(inverse + columns);
        const long blocks = up((a.count + HIGH - 1) / HIGH, threads);
        high = std::min(HIGH, up((a.count + blocks - 1) / blocks, ROWS));
        round_columns();
        share((a.count + high - 1) / high, [this](long item) { rows(item * high); });
        return !failed;
    }
};

}  // namespace

extern "C" int32_t chattune_int8_product(
    const float* a, int64_t a_row, int64_t a_term, const float* b, int64_t b_term, int64_t b_column, float* out, int64_t rows,
    int64_t terms, int64_t columns, int32_t threads, Parallel parallel) {
    Product product{{a, rows, terms, a_row, a_term}, {b, columns, terms, b_column, b_term}, out, parallel, threads};
    return product.run() ? 0 : 1;
}

#endif
