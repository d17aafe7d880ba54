// One step of a decoder of the GPT family over the tokens of several requests: from ids to logits in one call, by threads of its own.
//
// Every output is summed up by one thread in one order, whatever other rows the step holds and however many threads there are: a
// reply does not depend on what is decoded beside it, nor on the cuts of its prompt.
//
// Matrices lie in tiles of 16 outputs (see packing.py), so that sums stand in the lanes of registers and are never added across them.
// Activations before an integer matrix are rounded to int8 by parts of 32. Of the cache, keys lie in blocks of 8 tokens, [head][8],
// so that scores stand in lanes, too; values as [token][head]. Intrinsics are used where the processor has them; vectors of the
// compiler elsewhere.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace {

constexpr int TILE = 16, GROUP = 64, PART = 32, LANES = 8;  // activations, and weights in int4, are rounded by halves of a group
#if defined(__AVX512F__)
constexpr int W = 16;
#else
constexpr int W = 8;
#endif
constexpr int FLOAT_ROWS = W == 16 ? 12 : 6, WHOLE_ROWS = 4, QUERIES = 4;  // rows that one pass over a tile serves
constexpr int PANEL = 96;                                                   // rows whose activations stay in the second cache
constexpr int WIDE = 16;                                                    // rows from which bfloat16 tiles are widened first
constexpr int INT4_BLOCK = TILE * GROUP / 2 + TILE * 8;  // bytes: sixteen rows of a group, and for each half scales and least numbers

typedef float vf __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef float v8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t i8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef int8_t c8 __attribute__((vector_size(8), aligned(1), may_alias));

enum Format : int32_t { FLOAT32, BFLOAT16, INT8, INT4 };
enum Kind : int32_t { NOTHING, RMS, LAYER };
enum Activation : int32_t { SILU, GELU, GELU_TANH, RELU, RELU_SQUARED };
enum Placement : int32_t { PRE, POST, BOTH };

}  // namespace

extern "C" {

struct Matrix {
    const uint8_t* data;
    const float* scale;  // int8: one for each output, tile by tile
    const float* bias;   // or null; tile by tile
    int32_t format, inputs, tiles;  // inputs with what the format fills up
};

struct Norm {
    const float *weight, *bias;
    float epsilon;
    int32_t kind;
};

struct Layer {
    Matrix qkv, output, up, down;
    Norm attention_norm, attention_output_norm, feed_forward_norm, feed_forward_output_norm, query_norm, key_norm;
    int32_t window;  // 0: sees everything
    int32_t local;   // turns by the local table
};

struct Shape {
    int32_t layers, width, heads, kv, head, hidden, vocabulary, slots, length, threads;
    int32_t activation, gated, placement, residual, short_cache, rotary;
    float attention_scale, attention_cap, logit_cap, embedding_scale;  // a cap of 0 is none
    const float *embedding, *position, *cosines, *sines, *local_cosines, *local_sines;
    const Layer* layer;
    Norm norm;
    Matrix table;
    // The threads of PyTorch's own OpenMP, where it has them: its GOMP_parallel(work, data, threads, flags) and omp_get_num_threads().
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
    int (*together)(void);
};

}  // extern "C"

namespace {

// ---- numbers ------------------------------------------------------------------------------------------------------------------

// a * b + c with one rounding, said outright: compilers take it apart again where they believe that it pays, in some sums and not in
// others, and results would depend on how many rows are computed together.
#if defined(__FMA__)
inline v8 fused(v8 a, v8 b, v8 c) { return (v8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
#else
inline v8 fused(v8 a, v8 b, v8 c) { return a * b + c; }
#endif
#if defined(__AVX512F__)
inline vf fused(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
#endif
#if defined(__AVX2__) && defined(__FMA__)
#define CHATTUNE_AVX2 1
#endif


inline v8 pick(i8 mask, v8 yes, v8 no) { return (v8)(((i8)yes & mask) | ((i8)no & ~mask)); }
inline v8 full(float x) { return x - v8{}; }
inline float top(v8 x) { return std::max(std::max(std::max(x[0], x[1]), std::max(x[2], x[3])), std::max(std::max(x[4], x[5]), std::max(x[6], x[7]))); }
inline float total(v8 x) { return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7])); }
inline v8 larger(v8 a, v8 b) { return pick(a > b, a, b); }

// Cephes' polynomial; relative error about 1e-7; 0 below -87.
inline v8 exponential(v8 x) {
    const v8 magic = full(12582912.0f);  // 1.5 * 2^23: adding it rounds to whole numbers
    const i8 tiny = x < -87.0f;
    x = pick(x > 88.0f, full(88.0f), pick(tiny, full(-87.0f), x));
    const v8 shifted = x * 1.44269504088896341f + magic;
    const v8 n = shifted - magic;
    const v8 r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    v8 p = full(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const i8 power = ((i8)shifted - (i8)magic + 127) << 23;
    return pick(tiny, v8{}, p * (v8)power);
}

inline v8 hyperbolic(v8 x) { return 1.0f - 2.0f / (exponential(x * 2.0f) + 1.0f); }
inline float capped(float x, float cap) { return cap * std::tanh(x / cap); }

inline v8 activated(v8 x, int32_t activation) {
    switch (activation) {
        case SILU: return x / (1.0f + exponential(-x));
        case GELU: {
            v8 y;
            for (int i = 0; i < 8; i++) y[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.70710678118654752f));
            return y;
        }
        case GELU_TANH: return 0.5f * x * (1.0f + hyperbolic(0.7978845608028654f * (x + 0.044715f * x * x * x)));
        case RELU: return larger(x, v8{});
        default: { const v8 y = larger(x, v8{}); return y * y; }
    }
}

inline float widened(uint16_t half) {  // IEEE half precision
#if defined(__F16C__)
    return _cvtsh_ss(half);
#else
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    uint32_t bits;
    if (rest < 0x400) {
        const float value = rest * 5.9604644775390625e-8f;
        std::memcpy(&bits, &value, 4);
    } else {
        bits = (rest << 13) + (112u << 23);
    }
    bits |= sign;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
#endif
}

inline uint16_t shortened(float x) {  // to the nearest; beyond the range the largest
    x = std::min(65504.0f, std::max(-65504.0f, x));
#if defined(__F16C__)
    return _cvtss_sh(x, 0);
#else
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest < 0x38800000) {
        float value;
        std::memcpy(&value, &rest, 4);
        return (uint16_t)(sign | (uint32_t)std::nearbyint(value * 16777216.0f));
    }
    return (uint16_t)(sign | ((rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13));
#endif
}

inline void keep(float* place, float x) { *place = x; }
inline void keep(uint16_t* place, float x) { *place = shortened(x); }
inline v8 taken(const float* place) { return *(const v8*)place; }
inline v8 taken(const uint16_t* place) {
#if defined(__F16C__)
    return (v8)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)place));
#else
    v8 x;
    for (int i = 0; i < 8; i++) x[i] = widened(place[i]);
    return x;
#endif
}

// ---- threads ------------------------------------------------------------------------------------------------------------------

inline void pause_a_little() {
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#endif
}

// All threads run the whole step and meet at barriers; the last to arrive may do what one thread does alone. Who waits first spins,
// then gives its core away: the cores may be shared.
struct Team {
    std::atomic<int> size{1}, arrived{0}, round{0}, next{0};

    template <class F> void meet(F alone) {
        const int size = this->size.load(std::memory_order_relaxed);
        if (size == 1) {
            alone();
            next.store(0, std::memory_order_relaxed);
            return;
        }
        const int now = round.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
            alone();
            arrived.store(0, std::memory_order_relaxed);
            next.store(0, std::memory_order_relaxed);
            round.store(now + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; round.load(std::memory_order_acquire) == now; spins++) {
            if (spins < 4000) pause_a_little();
            else sched_yield();
        }
    }

    template <class F> void each(int items, F work) {  // every item by one thread, whoever comes first
        for (int item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) work(item);
    }
};

// work(0), work(1), … written out, with numbers that the compiler knows: only then does it keep arrays of sums in registers.
#define INLINED __attribute__((always_inline))
template <class F, int... I> INLINED inline void written_out(F& work, std::integer_sequence<int, I...>) { (work(std::integral_constant<int, I>{}), ...); }
template <int N, class F> INLINED inline void times(F work) { written_out(work, std::make_integer_sequence<int, N>{}); }

// ---- products: out[row][TILE] of one tile ---------------------------------------------------------------------------------------

// sum[r][v] += w[v] * x[r * ld] for R rows. Left to themselves, compilers fetch all x first, for which there are not registers enough,
// and put sums into memory.
template <int R, int V, class Vector>
INLINED inline void add_products(Vector (&sum)[R][V], const Vector (&w)[V], const float* x, long ld) {
    times<R>([&](auto r) INLINED {
#if defined(CHATTUNE_AVX2) && !defined(__AVX512F__)
        if constexpr (V == 2) {
            __m256 number;
            asm("vbroadcastss %5, %2\n\tvfmadd231ps %2, %3, %0\n\tvfmadd231ps %2, %4, %1"
                : "+x"(sum[r][0]), "+x"(sum[r][1]), "=&x"(number) : "x"(w[0]), "x"(w[1]), "m"(x[r * ld]));
            return;
        }
#endif
        const Vector number = x[r * ld] - Vector{};  // nothing is computed: subtracting zero changes no number, adding it would
        times<V>([&](auto v) INLINED { sum[r][v] = fused(w[v], number, sum[r][v]); });
    });
}

template <int R, int V, class Vector>
INLINED inline void put(const Vector (&sum)[R][V], float* out, long ld) {
    times<R>([&](auto r) INLINED { times<V>([&](auto v) INLINED { *(Vector*)(out + r * ld + v * (int)(sizeof(Vector) / 4)) = sum[r][v]; }); });
}

template <int R, int T>
inline void product_float(const float* w, int inputs, const float* x, long ld, float* out) {
    constexpr int V = TILE / W * T;
    vf sum[R][V] = {};
    for (int k = 0; k < inputs; k++) {
        vf a[V];
        times<V>([&](auto v) INLINED { a[v] = *(const vf*)(w + ((long)(v * W / TILE) * inputs + k) * TILE + v * W % TILE); });
        add_products<R, V>(sum, a, x + k, ld);
    }
    put<R, V>(sum, out, T * TILE);
}

template <int R, int T>
inline void product_bfloat(const uint8_t* w, int inputs, const float* x, long ld, float* out) {
    constexpr int V = TILE / W * T;
    vf sum[R][V] = {};
    for (int k = 0; k < inputs; k += 2) {
        vf first[V], second[V];
        times<V>([&](auto v) INLINED {
            const vu both = *(const vu*)(w + (((long)(v * W / TILE) * inputs + k) * TILE + v * W % TILE * 2) * 2);
            first[v] = (vf)(both << 16);
            second[v] = (vf)(both & 0xffff0000u);
        });
        add_products<R, V>(sum, first, x + k, ld);
        add_products<R, V>(sum, second, x + k + 1, ld);
    }
    put<R, V>(sum, out, T * TILE);
}

inline void widen_tile(const uint8_t* w, int inputs, float* out) {
    for (int k = 0; k < inputs; k += 2)
        for (int v = 0; v < TILE / W; v++) {
            const vu both = *(const vu*)(w + ((long)k * TILE + v * W * 2) * 2);
            *(vf*)(out + k * TILE + v * W) = (vf)(both << 16);
            *(vf*)(out + (k + 1) * TILE + v * W) = (vf)(both & 0xffff0000u);
        }
}

// Rows of rounded activations: int8 numbers, a scale for each part, and scale times sum of the part.
struct Rounded {
    const int8_t* x;
    const float *scale, *sum;
    long ld, parts;
};

inline int32_t four(const int8_t* x) {
    int32_t word;
    std::memcpy(&word, x, 4);
    return word;
}

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)

template <int R>
inline void product_int8(const uint8_t* w, int parts, const float* scale, const Rounded& a, int row, float* out) {
    __m512 sum[R];
    times<R>([&](auto r) INLINED { sum[r] = _mm512_setzero_ps(); });
    const __m512i flip = _mm512_set1_epi8((char)0x80);  // from signed to unsigned with 128 added, which is taken away below
    for (int g = 0; g < parts; g++) {
        __m512i whole[R];
        times<R>([&](auto r) INLINED { whole[r] = _mm512_setzero_si512(); });
        const int8_t* x = a.x + row * a.ld + g * PART;
        for (int j = 0; j < 8; j++) {
            const __m512i v = _mm512_xor_si512(_mm512_loadu_si512(w + g * 512 + j * 64), flip);
            times<R>([&](auto r) INLINED { whole[r] = _mm512_dpbusd_epi32(whole[r], v, _mm512_set1_epi32(four(x + r * a.ld + j * 4))); });
        }
        times<R>([&](auto r) INLINED {
            const long at = (row + r) * a.parts + g;
            const __m512 part = _mm512_fmsub_ps(_mm512_cvtepi32_ps(whole[r]), _mm512_set1_ps(a.scale[at]), _mm512_set1_ps(128.0f * a.sum[at]));
            sum[r] = _mm512_add_ps(sum[r], part);
        });
    }
    times<R>([&](auto r) INLINED { _mm512_storeu_ps(out + r * TILE, _mm512_mul_ps(sum[r], _mm512_loadu_ps(scale))); });
}

template <int R>
inline void product_int4(const uint8_t* w, int groups, const Rounded& a, int row, float* out) {
    __m512 sum[R];
    times<R>([&](auto r) INLINED { sum[r] = _mm512_setzero_ps(); });
    const __m512i low = _mm512_set1_epi8(15);
    for (int g = 0; g < groups; g++, w += INT4_BLOCK) {
        __m512i first[R], second[R];
        times<R>([&](auto r) INLINED { first[r] = second[r] = _mm512_setzero_si512(); });
        const int8_t* x = a.x + row * a.ld + g * GROUP;
        for (int j = 0; j < 8; j++) {
            const __m512i v = _mm512_loadu_si512(w + j * 64);
            const __m512i lower = _mm512_and_si512(v, low), upper = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
            times<R>([&](auto r) INLINED {
                first[r] = _mm512_dpbusd_epi32(first[r], lower, _mm512_set1_epi32(four(x + r * a.ld + j * 4)));
                second[r] = _mm512_dpbusd_epi32(second[r], upper, _mm512_set1_epi32(four(x + r * a.ld + j * 4 + 32)));
            });
        }
        const auto widened = [](const uint8_t* from) INLINED {
            return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16));
        };
        const __m512 scales[2] = {widened(w + 512), widened(w + 544)}, least[2] = {widened(w + 576), widened(w + 608)};
        times<R>([&](auto r) INLINED {
            const long at = (row + r) * a.parts + g * 2;
            sum[r] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(first[r]), _mm512_set1_ps(a.scale[at])), scales[0], sum[r]);
            sum[r] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(second[r]), _mm512_set1_ps(a.scale[at + 1])), scales[1], sum[r]);
            sum[r] = _mm512_fmadd_ps(_mm512_set1_ps(a.sum[at]), least[0], sum[r]);
            sum[r] = _mm512_fmadd_ps(_mm512_set1_ps(a.sum[at + 1]), least[1], sum[r]);
        });
    }
    times<R>([&](auto r) INLINED { _mm512_storeu_ps(out + r * TILE, sum[r]); });
}

#elif defined(CHATTUNE_AVX2)

// Sums of 16 bits plus pairs of products of unsigned `w` with the four numbers at `x`, for each of eight outputs.
INLINED inline __m256i plus_pairs(__m256i sum, __m256i w, const int8_t* x) {
    __m256i pairs;
    asm("vpbroadcastd %3, %1\n\tvpmaddubsw %1, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(sum), "=&x"(pairs) : "x"(w), "m"(*(const int32_t*)x));
    return sum;
}

// Sums of 32 bits plus products of `w`, whose absolute values are `size`, with the four numbers at `x`. All are within 127, so that
// two products together stay below 2^15.
INLINED inline __m256i plus_fours(__m256i sum, __m256i size, __m256i w, __m256i ones, const int8_t* x) {
#if defined(__AVXVNNI__)
    (void)ones;
    return _mm256_dpbusd_avx_epi32(sum, size, _mm256_sign_epi8(_mm256_set1_epi32(four(x)), w));
#else
    __m256i fours;
    asm("vpbroadcastd %5, %1\n\tvpsignb %3, %1, %1\n\tvpmaddubsw %1, %2, %1\n\tvpmaddwd %4, %1, %1\n\tvpaddd %1, %0, %0"
        : "+x"(sum), "=&x"(fours) : "x"(size), "x"(w), "x"(ones), "m"(*(const int32_t*)x));
    return sum;
#endif
}

template <int R>
inline void product_int8(const uint8_t* w, int parts, const float* scale, const Rounded& a, int row, float* out) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int half = 0; half < 2; half++) {
        __m256 sum[R];
        times<R>([&](auto r) INLINED { sum[r] = _mm256_setzero_ps(); });
        for (int g = 0; g < parts; g++) {
            __m256i whole[R];
            times<R>([&](auto r) INLINED { whole[r] = _mm256_setzero_si256(); });
            const int8_t* x = a.x + row * a.ld + g * PART;
            for (int j = 0; j < 8; j++) {
                const __m256i v = _mm256_loadu_si256((const __m256i*)(w + g * 512 + j * 64 + half * 32));
                const __m256i size = _mm256_abs_epi8(v);
                times<R>([&](auto r) INLINED { whole[r] = plus_fours(whole[r], size, v, ones, x + r * a.ld + j * 4); });
            }
            times<R>([&](auto r) INLINED {
                sum[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[r]), _mm256_set1_ps(a.scale[(row + r) * a.parts + g]), sum[r]);
            });
        }
        times<R>([&](auto r) INLINED { _mm256_storeu_ps(out + r * TILE + half * 8, _mm256_mul_ps(sum[r], _mm256_loadu_ps(scale + half * 8))); });
    }
}

template <int R>
inline void product_int4(const uint8_t* w, int groups, const Rounded& a, int row, float* out) {
    const __m256i ones = _mm256_set1_epi16(1), low = _mm256_set1_epi8(15);
    for (int half = 0; half < 2; half++) {
        __m256 sum[R];
        times<R>([&](auto r) INLINED { sum[r] = _mm256_setzero_ps(); });
        for (int g = 0; g < groups; g++) {
            const uint8_t* block = w + (long)g * INT4_BLOCK;
            const int8_t* x = a.x + row * a.ld + g * GROUP;
            __m256i first[R], second[R];
            times<R>([&](auto r) INLINED { first[r] = second[r] = _mm256_setzero_si256(); });
            for (int j = 0; j < 8; j++) {
                const __m256i v = _mm256_loadu_si256((const __m256i*)(block + j * 64 + half * 32));
                const __m256i lower = _mm256_and_si256(v, low), upper = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
                times<R>([&](auto r) INLINED {  // eight sums of two products up to 15 * 127 stay below 2^15
                    first[r] = plus_pairs(first[r], lower, x + r * a.ld + j * 4);
                    second[r] = plus_pairs(second[r], upper, x + r * a.ld + j * 4 + 32);
                });
            }
            const auto widened = [&](int place) INLINED {
                const __m128i halves = _mm_loadu_si128((const __m128i*)(block + place + half * 16));
                return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
            };
            const __m256 scales[2] = {widened(512), widened(544)}, least[2] = {widened(576), widened(608)};
            times<R>([&](auto r) INLINED {
                const long at = (row + r) * a.parts + g * 2;
                const __m256 lower = _mm256_cvtepi32_ps(_mm256_madd_epi16(first[r], ones));
                const __m256 upper = _mm256_cvtepi32_ps(_mm256_madd_epi16(second[r], ones));
                sum[r] = _mm256_fmadd_ps(_mm256_mul_ps(lower, _mm256_set1_ps(a.scale[at])), scales[0], sum[r]);
                sum[r] = _mm256_fmadd_ps(_mm256_mul_ps(upper, _mm256_set1_ps(a.scale[at + 1])), scales[1], sum[r]);
                sum[r] = _mm256_fmadd_ps(_mm256_set1_ps(a.sum[at]), least[0], sum[r]);
                sum[r] = _mm256_fmadd_ps(_mm256_set1_ps(a.sum[at + 1]), least[1], sum[r]);
            });
        }
        times<R>([&](auto r) INLINED { _mm256_storeu_ps(out + r * TILE + half * 8, sum[r]); });
    }
}

#else

template <int R>
inline void product_int8(const uint8_t* w, int parts, const float* scale, const Rounded& a, int row, float* out) {
    for (int r = 0; r < R; r++) {
        float sum[TILE] = {};
        for (int g = 0; g < parts; g++) {
            int32_t whole[TILE] = {};
            for (int j = 0; j < 8; j++) {
                const int8_t *v = (const int8_t*)w + g * 512 + j * 64, *x = a.x + (row + r) * a.ld + g * PART + j * 4;
                for (int o = 0; o < TILE; o++)
                    for (int i = 0; i < 4; i++) whole[o] += (int32_t)v[o * 4 + i] * x[i];
            }
            for (int o = 0; o < TILE; o++) sum[o] += whole[o] * a.scale[(row + r) * a.parts + g];
        }
        for (int o = 0; o < TILE; o++) out[r * TILE + o] = sum[o] * scale[o];
    }
}

template <int R>
inline void product_int4(const uint8_t* w, int groups, const Rounded& a, int row, float* out) {
    for (int r = 0; r < R; r++) {
        float sum[TILE] = {};
        for (int g = 0; g < groups; g++) {
            const uint8_t* block = w + (long)g * INT4_BLOCK;
            int32_t whole[2][TILE] = {};
            for (int j = 0; j < 8; j++) {
                const int8_t* x = a.x + (row + r) * a.ld + g * GROUP + j * 4;
                for (int o = 0; o < TILE; o++)
                    for (int i = 0; i < 4; i++) {
                        const int v = block[j * 64 + o * 4 + i];
                        whole[0][o] += (v & 15) * x[i];
                        whole[1][o] += (v >> 4) * x[i + 32];
                    }
            }
            const long at = (row + r) * a.parts + g * 2;
            const auto widened = [&](int place) {
                uint16_t half;
                std::memcpy(&half, block + place, 2);
                const uint32_t bits = (uint32_t)half << 16;
                float number;
                std::memcpy(&number, &bits, 4);
                return number;
            };
            for (int o = 0; o < TILE; o++)
                for (int half = 0; half < 2; half++)
                    sum[o] += whole[half][o] * a.scale[at + half] * widened(512 + half * 32 + o * 2) + a.sum[at + half] * widened(576 + half * 32 + o * 2);
        }
        for (int o = 0; o < TILE; o++) out[r * TILE + o] = sum[o];
    }
}

#endif

// ---- attention ------------------------------------------------------------------------------------------------------------------

template <int R, int B, class C>
inline void scores_of(const C* keys, int head, const float* q, float* out, long ld) {
    v8 sum[R][B] = {};
    for (int d = 0; d < head; d++) {
        v8 k[B];
        times<B>([&](auto b) INLINED { k[b] = taken(keys + ((long)b * head + d) * LANES); });
        add_products<R, B>(sum, k, q + d, head);
    }
    put<R, B>(sum, out, ld);
}

template <int R, int D, class C>
inline void mixed_of(const C* values, int head, int count, const float* p, long ld, float* out) {
    v8 sum[R][D] = {};
    for (int t = 0; t < count; t++) {
        v8 v[D];
        times<D>([&](auto d) INLINED { v[d] = taken(values + (long)t * head + d * LANES); });
        add_products<R, D>(sum, v, p + t, ld);
    }
    put<R, D>(sum, out, head);
}

struct Query {
    const float* from;
    float* to;
    int position;
};

// Queries of one key-value head. `q`: (R, head) room for them, `scores`: (R, ld) room.
template <int R, class C>
void attend(const C* keys, const C* values, const Query* queries, const Shape& s, int head, int window, float* q, float* scores, long ld) {
    int first = queries[0].position, last = 0;
    for (int r = 0; r < R; r++) {
        for (int d = 0; d < head; d++) q[r * head + d] = d < s.head ? queries[r].from[d] * s.attention_scale : 0.0f;
        first = std::min(first, window ? std::max(0, queries[r].position - window + 1) : 0);
        last = std::max(last, queries[r].position);
    }
    const int begin = first / LANES, end = last / LANES + 1;
    constexpr int MANY = R == 1 ? 8 : R == 2 ? 4 : 2;
    int b = begin;
    for (; b + MANY <= end; b += MANY) scores_of<R, MANY>(keys + (long)b * head * LANES, head, q, scores + b * LANES, ld);
    for (; b < end; b++) scores_of<R, 1>(keys + (long)b * head * LANES, head, q, scores + b * LANES, ld);
    float over[R];
    for (int r = 0; r < R; r++) {
        float* mine = scores + r * ld;
        const int own = window ? std::max(0, queries[r].position - window + 1) : 0;
        if (s.attention_cap > 0.0f)
            for (int t = begin * LANES; t < end * LANES; t += LANES)
                *(v8*)(mine + t) = hyperbolic(*(v8*)(mine + t) / s.attention_cap) * s.attention_cap;
        for (int t = begin * LANES; t < own; t++) mine[t] = -INFINITY;
        for (int t = queries[r].position + 1; t < end * LANES; t++) mine[t] = -INFINITY;
        v8 high = full(-INFINITY), sum = {};
        for (int t = begin * LANES; t < end * LANES; t += LANES) high = larger(high, *(v8*)(mine + t));
        const float most = top(high);
        for (int t = begin * LANES; t < end * LANES; t += LANES) {
            const v8 p = exponential(*(v8*)(mine + t) - most);
            *(v8*)(mine + t) = p;
            sum += p;
        }
        over[r] = 1.0f / total(sum);
    }
    const float* p = scores + begin * LANES;
    values += (long)begin * LANES * head;
    const int count = last + 1 - begin * LANES;
    constexpr int WIDTH = R == 1 ? 8 : R == 2 ? 4 : 2;
    int d = 0;
    for (; d + WIDTH * LANES <= head; d += WIDTH * LANES) mixed_of<R, WIDTH>(values + d, head, count, p, ld, q + d);
    for (; d < head; d += LANES) mixed_of<R, 1>(values + d, head, count, p, ld, q + d);
    for (int r = 0; r < R; r++)
        for (int i = 0; i < s.head; i++) queries[r].to[i] = q[r * head + i] * over[r];
}

// ---- the step -------------------------------------------------------------------------------------------------------------------

inline int up_to(int x, int multiple) { return (x + multiple - 1) / multiple * multiple; }

struct Row {
    int32_t id, slot, position;
};

struct Room {  // aligned memory that grows and is filled with zeros
    char* data = nullptr;
    size_t size = 0;
    template <class T> T* of(size_t count) {
        if (count * sizeof(T) > size) {
            std::free(data);
            data = nullptr;
            size = (count * sizeof(T) + 4095) / 4096 * 4096;
            if (posix_memalign((void**)&data, 64, size)) {
                size = 0;
                throw std::bad_alloc();
            }
            std::memset(data, 0, size);
        }
        return (T*)data;
    }
    ~Room() { std::free(data); }
};

struct Block {  // of queries that see the same keys and values
    int32_t kv, count;
    int32_t query[QUERIES];  // row * group + which of the heads that share the keys
};

struct Decoder {
    Shape s;
    std::vector<Layer> layers;
    int head, group, length, ld_x, ld_qkv, ld_mixed, ld_hidden, ld_act;
    void *keys = nullptr, *values = nullptr;
    size_t cache_bytes = 0;

    std::vector<Row> rows;
    std::vector<int32_t> wanted;  // rows whose logits are asked for
    std::vector<Block> blocks, last_blocks;
    int count = 0;  // rows that are computed now
    bool narrowed = false;
    float* logits = nullptr;
    Room r_x, r_branch, r_qkv, r_mixed, r_hidden, r_act, r_round, r_scale, r_sum;
    float *x, *branch, *qkv, *mixed, *hidden, *act, *scale, *sum;
    int8_t* round;
    std::vector<Room> scratch;

    Team team;
    std::atomic<int> entered{0};
    std::vector<std::thread> workers;
    std::mutex lock;
    std::condition_variable wake;
    std::atomic<int> job{0};
    std::atomic<bool> over{false};
    pid_t owner;

    explicit Decoder(const Shape& shape) : s(shape), layers(shape.layer, shape.layer + shape.layers) {
        head = up_to(s.head, LANES);
        group = s.heads / s.kv;
        length = up_to(s.length, LANES * 8);
        ld_x = up_to(s.width, GROUP);
        ld_qkv = up_to((s.heads + 2 * s.kv) * s.head, TILE);
        ld_mixed = s.heads * s.head;
        ld_hidden = up_to(s.hidden, GROUP);
        ld_act = std::max(std::max(ld_x, up_to(ld_mixed, GROUP)), ld_hidden);
        const size_t one = s.short_cache ? 2 : 4;
        cache_bytes = (size_t)s.slots * s.layers * s.kv * length * head * one;
        keys = mapped(cache_bytes);
        values = mapped(cache_bytes);
        owner = getpid();
        scratch.resize(std::max(1, s.threads));
        for (int t = 1; t < s.threads && !s.parallel; t++) workers.emplace_back([this, t] { serve(t); });
    }

    ~Decoder() {
        if (getpid() == owner) {
            {
                std::lock_guard<std::mutex> hold(lock);
                over = true;
            }
            wake.notify_all();
            for (auto& worker : workers) worker.join();
        } else {
            for (auto& worker : workers) worker.detach();
        }
        if (keys) munmap(keys, cache_bytes);
        if (values) munmap(values, cache_bytes);
    }

    static void* mapped(size_t bytes) {  // memory is taken only where it is written
        void* found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (found == MAP_FAILED) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
        madvise(found, bytes, MADV_HUGEPAGE);
#endif
        return found;
    }

    void serve(int thread) {
        int done = 0;
        for (;;) {
            for (int spins = 0; job.load(std::memory_order_acquire) == done && !over && spins < 3000; spins++) {
                if (spins < 200) pause_a_little();
                else sched_yield();
            }
            if (job.load(std::memory_order_acquire) == done) {
                std::unique_lock<std::mutex> hold(lock);
                wake.wait(hold, [&] { return over || job.load() != done; });
            }
            if (over) return;
            done = job.load(std::memory_order_acquire);
            compute(thread);
        }
    }

    void run() {
        // A forked child has no workers.
        team.size = getpid() == owner ? s.threads : 1;
        if (team.size > 1 && s.parallel) {
            // PyTorch's threads spin for some milliseconds after each of its own operations, as those on the logits between two steps:
            // others beside them would have half a core.
            entered = 0;
            s.parallel([](void* self) { ((Decoder*)self)->enter(); }, this, (unsigned)s.threads, 0);
            return;
        }
        if (team.size > 1) {
            {
                std::lock_guard<std::mutex> hold(lock);
                job.fetch_add(1, std::memory_order_release);
            }
            wake.notify_all();
        }
        compute(0);
    }

    void enter() {
        team.size.store(s.together(), std::memory_order_relaxed);  // the same for all of them, at most what was asked for
        compute(entered.fetch_add(1));
    }

    template <class C> C* key_block(int slot, int layer, int kv) const { return (C*)keys + ((((long)slot * s.layers + layer) * s.kv + kv) * length) * head; }
    template <class C> C* value_block(int slot, int layer, int kv) const { return (C*)values + ((((long)slot * s.layers + layer) * s.kv + kv) * length) * head; }

    // What one row after the other needs between two products; all threads are together afterwards.
    template <class F> void between(F work) {
        if (count <= 2) {
            team.meet([&] { for (int row = 0; row < count; row++) work(row); });
            return;
        }
        team.meet([] {});
        team.each(count, work);
        team.meet([] {});
    }

    static void normed(const float* from, float* to, int n, const Norm& norm) {
        if (norm.kind == NOTHING) {
            if (from != to) std::memcpy(to, from, n * sizeof(float));
            return;
        }
        float mean = 0.0f;
        const int whole = n / LANES * LANES;
        if (norm.kind == LAYER) {
            v8 sums = {};
            for (int i = 0; i < whole; i += LANES) sums += *(const v8*)(from + i);
            mean = total(sums);
            for (int i = whole; i < n; i++) mean += from[i];
            mean /= n;
        }
        v8 squares = {};
        for (int i = 0; i < whole; i += LANES) {
            const v8 a = *(const v8*)(from + i) - mean;
            squares += a * a;
        }
        float square = total(squares);
        for (int i = whole; i < n; i++) square += (from[i] - mean) * (from[i] - mean);
        const float root = 1.0f / std::sqrt(square / n + norm.epsilon);
        for (int i = 0; i < n; i++) {
            const float y = (from[i] - mean) * root;
            to[i] = norm.bias ? y * norm.weight[i] + norm.bias[i] : y * norm.weight[i];
        }
    }

    // What a product reads: the row as it is, or rounded.
    void prepare(int row, const float* from, int n, const Matrix& matrix) {
        if (matrix.format == FLOAT32 || matrix.format == BFLOAT16) {
            float* to = act + (long)row * ld_act;
            if (from != to) std::memcpy(to, from, n * sizeof(float));
            for (int i = n; i < matrix.inputs; i++) to[i] = 0.0f;
            return;
        }
        int8_t* to = round + (long)row * ld_act;
        const int parts = matrix.inputs / PART;
        const v8 magic = full(12582912.0f);
        for (int g = 0; g < parts; g++) {
            alignas(32) float padded[PART];
            const float* own = from + g * PART;
            if ((g + 1) * PART > n) {
                for (int i = 0; i < PART; i++) padded[i] = g * PART + i < n ? own[i] : 0.0f;
                own = padded;
            }
            v8 high = {};
            for (int i = 0; i < PART; i += LANES) {
                const v8 a = *(const v8*)(own + i);
                high = larger(high, (v8)((i8)a & 0x7fffffff));
            }
            const float most = top(high), inverse = most > 0.0f ? 127.0f / most : 0.0f;
            i8 sums = {};
            for (int i = 0; i < PART; i += LANES) {
                v8 scaled = *(const v8*)(own + i) * inverse;
                // Never beyond 127, whatever not finite came in: the products count on it.
                scaled = pick(scaled > 127.0f, full(127.0f), pick(scaled >= -127.0f, scaled, full(-127.0f)));
                const i8 nearest = (i8)(scaled + magic) - (i8)magic;
                sums += nearest;
                *(c8*)(to + g * PART + i) = __builtin_convertvector(nearest, c8);
            }
            int32_t added = 0;
            for (int i = 0; i < LANES; i++) added += sums[i];
            const long at = (long)row * (ld_act / PART) + g;
            scale[at] = most / 127.0f;
            sum[at] = scale[at] * added;
        }
    }

    void norm_and_prepare(int row, const Norm& norm, const Matrix& matrix) {
        float* to = act + (long)row * ld_act;
        normed(x + (long)row * ld_x, to, s.width, norm);
        prepare(row, to, s.width, matrix);
    }

    void joined(int row, const Norm& norm, const Norm& output_norm) {  // only where the product did not add to x itself
        float *to = x + (long)row * ld_x, *own = branch + (long)row * ld_x;
        if (s.placement == BOTH) normed(own, own, s.width, output_norm);
        for (int i = 0; i < s.width; i++) to[i] = s.residual ? to[i] + own[i] : own[i];
        if (s.placement == POST) normed(to, to, s.width, norm);
    }

    bool plain() const { return s.residual && s.placement == PRE; }

    enum Mode { STORE, ADD, GATED, PLAIN, LOGITS };

    void finish(Mode mode, const Matrix& m, int tile, int row, float* o, float* out, long ld) const {
        if (m.bias)
            for (int i = 0; i < TILE; i++) o[i] += m.bias[tile * TILE + i];
        float* to = out + (long)row * ld + tile * (mode == GATED ? TILE / 2 : TILE);
        const v8 first = *(v8*)o, second = *(v8*)(o + 8);
        switch (mode) {
            case STORE: *(v8*)to = first; *(v8*)(to + 8) = second; break;
            case ADD: *(v8*)to += first; *(v8*)(to + 8) += second; break;
            case GATED: *(v8*)to = activated(first, s.activation) * second; break;
            case PLAIN: *(v8*)to = activated(first, s.activation); *(v8*)(to + 8) = activated(second, s.activation); break;
            case LOGITS:
                for (int i = 0; i < std::min(TILE, s.vocabulary - tile * TILE); i++) to[i] = s.logit_cap > 0.0f ? capped(o[i], s.logit_cap) : o[i];
        }
    }

    template <int R> void some_float(Mode mode, const Matrix& m, const float* w, int tile, int row, float* out, long ld) const {
        float o[R * TILE];
        product_float<R, 1>(w, m.inputs, act + (long)row * ld_act, ld_act, o);
        for (int r = 0; r < R; r++) finish(mode, m, tile, row + r, o + r * TILE, out, ld);
    }
    template <int R> void some_bfloat(Mode mode, const Matrix& m, const uint8_t* w, int tile, int row, float* out, long ld) const {
        float o[R * TILE];
        product_bfloat<R, 1>(w, m.inputs, act + (long)row * ld_act, ld_act, o);
        for (int r = 0; r < R; r++) finish(mode, m, tile, row + r, o + r * TILE, out, ld);
    }
    template <int R> void some_whole(Mode mode, const Matrix& m, const uint8_t* w, int tile, int row, float* out, long ld) const {
        float o[R * TILE];
        const Rounded a{round, scale, sum, ld_act, ld_act / PART};
        if (m.format == INT8) product_int8<R>(w, m.inputs / PART, m.scale + tile * TILE, a, row, o);
        else product_int4<R>(w, m.inputs / GROUP, a, row, o);
        for (int r = 0; r < R; r++) finish(mode, m, tile, row + r, o + r * TILE, out, ld);
    }

    void floats(Mode mode, const Matrix& m, const float* w, int tile, int row, int n, float* out, long ld) const {
        switch (n) {
#define CASE(N) case N: return some_float<N>(mode, m, w, tile, row, out, ld);
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if defined(__AVX512F__)
            CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
#undef CASE
        }
    }
    void bfloats(Mode mode, const Matrix& m, const uint8_t* w, int tile, int row, int n, float* out, long ld) const {
        switch (n) {
#define CASE(N) case N: return some_bfloat<N>(mode, m, w, tile, row, out, ld);
            CASE(1) CASE(2) CASE(3) CASE(4)
#undef CASE
        }
    }
    void wholes(Mode mode, const Matrix& m, const uint8_t* w, int tile, int row, int n, float* out, long ld) const {
        switch (n) {
#define CASE(N) case N: return some_whole<N>(mode, m, w, tile, row, out, ld);
            CASE(1) CASE(2) CASE(3) CASE(4)
#undef CASE
        }
    }

    static long tile_bytes(const Matrix& m) {
        switch (m.format) {
            case FLOAT32: return (long)m.inputs * TILE * 4;
            case BFLOAT16: return (long)m.inputs * TILE * 2;
            case INT8: return (long)m.inputs * TILE;
            default: return (long)m.inputs / GROUP * INT4_BLOCK;
        }
    }

    void one_tile(Mode mode, const Matrix& m, int tile, int from, int to, float* out, long ld, int thread) {
        const uint8_t* w = m.data + tile * tile_bytes(m);
        const int rows = to - from;
        const bool wide = m.format == BFLOAT16 && rows >= WIDE;
        int most = m.format == FLOAT32 || wide ? FLOAT_ROWS : WHOLE_ROWS;
        const float* floating = (const float*)w;
        if (wide) {
            float* room = scratch[thread].of<float>((size_t)m.inputs * TILE);
            widen_tile(w, m.inputs, room);
            floating = room;
        }
        const int parts = (rows + most - 1) / most;  // of nearly equal size
        for (int part = 0; part < parts; part++) {
            const int row = from + rows * part / parts, n = from + rows * (part + 1) / parts - row;
            if (m.format == FLOAT32 || wide) floats(mode, m, floating, tile, row, n, out, ld);
            else if (m.format == BFLOAT16) bfloats(mode, m, w, tile, row, n, out, ld);
            else wholes(mode, m, w, tile, row, n, out, ld);
        }
    }

    void two_tiles(Mode mode, const Matrix& m, int tile, float* out, long ld) const {  // one row: two chains of sums hide each other's waiting
        float o[2 * TILE];
        const uint8_t* w = m.data + tile * tile_bytes(m);
        if (m.format == FLOAT32) product_float<1, 2>((const float*)w, m.inputs, act, ld_act, o);
        else product_bfloat<1, 2>(w, m.inputs, act, ld_act, o);
        finish(mode, m, tile, 0, o, out, ld);
        finish(mode, m, tile + 1, 0, o + TILE, out, ld);
    }

    void multiply(Mode mode, const Matrix& m, int rows, float* out, long ld, int thread) {
        const int panels = (rows + PANEL - 1) / PANEL;
        const int chunk = std::max(2, std::min(64, m.tiles / (team.size * 6) / 2 * 2));
        const int chunks = (m.tiles + chunk - 1) / chunk;
        team.each(panels * chunks, [&](int item) {
            const int panel = item / chunks, from = rows * panel / panels, to = rows * (panel + 1) / panels;
            const int begin = item % chunks * chunk, end = std::min(begin + chunk, m.tiles);
            for (int tile = begin; tile < end; tile++) {
                if (rows == 1 && tile + 1 < end && (m.format == FLOAT32 || m.format == BFLOAT16)) two_tiles(mode, m, tile++, out, ld);
                else one_tile(mode, m, tile, from, to, out, ld, thread);
            }
        });
    }

    template <class C> void place(int row, int number) {  // queries and keys normed and turned; keys and values into the cache
        const Layer& layer = layers[number];
        float* own = qkv + (long)row * ld_qkv;
        const Row& at = rows[row];
        const float* cosines = (layer.local ? s.local_cosines : s.cosines) + (long)at.position * (s.head / 2);
        const float* sines = (layer.local ? s.local_sines : s.sines) + (long)at.position * (s.head / 2);
        for (int h = 0; h < s.heads + s.kv; h++) {
            float* v = own + h * s.head;
            const Norm& norm = h < s.heads ? layer.query_norm : layer.key_norm;
            if (norm.kind != NOTHING) normed(v, v, s.head, norm);
            if (s.rotary)
                for (int i = 0, half = s.head / 2; i < half; i++) {
                    const float a = v[i], b = v[i + half];
                    v[i] = a * cosines[i] - b * sines[i];
                    v[i + half] = b * cosines[i] + a * sines[i];
                }
        }
        for (int h = 0; h < s.kv; h++) {
            const float *k = own + (s.heads + h) * s.head, *v = own + (s.heads + s.kv + h) * s.head;
            C* to_key = key_block<C>(at.slot, number, h) + (long)(at.position / LANES) * head * LANES + at.position % LANES;
            C* to_value = value_block<C>(at.slot, number, h) + (long)at.position * head;
            for (int i = 0; i < s.head; i++) {
                keep(to_key + i * LANES, k[i]);
                keep(to_value + i, v[i]);
            }
        }
    }

    template <class C> void attention(int number, const std::vector<Block>& all, int thread) {
        const Layer& layer = layers[number];
        team.each((int)all.size(), [&](int item) {
            const Block& block = all[item];
            Query queries[QUERIES];
            for (int i = 0; i < block.count; i++) {
                const int compact = block.query[i] / group, which = block.kv * group + block.query[i] % group;
                const int row = narrowed ? wanted[compact] : compact;
                queries[i] = {qkv + (long)row * ld_qkv + which * s.head, mixed + (long)compact * ld_mixed + which * s.head, rows[row].position};
            }
            const int slot = rows[narrowed ? wanted[block.query[0] / group] : block.query[0] / group].slot;
            float* room = scratch[thread].of<float>((size_t)QUERIES * (length + head));
            const C *k = key_block<C>(slot, number, block.kv), *v = value_block<C>(slot, number, block.kv);
            float* scores = room + QUERIES * head;
            switch (block.count) {
                case 1: attend<1>(k, v, queries, s, head, layer.window, room, scores, length); break;
                case 2: attend<2>(k, v, queries, s, head, layer.window, room, scores, length); break;
                case 3: attend<3>(k, v, queries, s, head, layer.window, room, scores, length); break;
                default: attend<4>(k, v, queries, s, head, layer.window, room, scores, length);
            }
        });
    }

    // Which queries are computed together: those of one slot's rows that share keys, up to QUERIES.
    void plan(std::vector<Block>& into, int total_rows, bool of_wanted) const {
        into.clear();
        const int most = total_rows * s.kv < 4 * s.threads ? 1 : QUERIES;
        for (int from = 0; from < total_rows;) {
            int to = from + 1;
            const auto slot = [&](int i) { return rows[of_wanted ? wanted[i] : i].slot; };
            while (to < total_rows && slot(to) == slot(from)) to++;
            for (int kv = 0; kv < s.kv; kv++)
                for (int query = from * group; query < to * group;) {
                    Block block{kv, 0, {}};
                    while (query < to * group && block.count < most) block.query[block.count++] = query++;
                    into.push_back(block);
                }
            from = to;
        }
    }

    void embed(int row) {
        float* to = x + (long)row * ld_x;
        const float* from = s.embedding + (long)rows[row].id * s.width;
        const float* place = s.position ? s.position + (long)rows[row].position * s.width : nullptr;
        for (int i = 0; i < s.width; i++) to[i] = from[i] * s.embedding_scale + (place ? place[i] : 0.0f);
    }

    void compute(int thread) {
        const int norm_first = s.placement != POST;
        const Norm none{nullptr, nullptr, 0.0f, NOTHING};
        for (int l = 0; l < s.layers; l++) {
            const Layer& layer = layers[l];
            between([&](int row) {
                if (l == 0) embed(row);
                else if (!plain()) joined(row, layers[l - 1].feed_forward_norm, layers[l - 1].feed_forward_output_norm);
                norm_and_prepare(row, norm_first ? layer.attention_norm : none, layer.qkv);
            });
            multiply(STORE, layer.qkv, count, qkv, ld_qkv, thread);
            between([&](int row) { s.short_cache ? place<uint16_t>(row, l) : place<float>(row, l); });
            const bool last = l == s.layers - 1;
            if (last && wanted.size() < rows.size()) {  // the others have left their keys and values, which is all that is asked of them
                team.meet([&] {
                    narrowed = true;
                    count = (int)wanted.size();
                    for (int i = 0; i < count; i++)
                        if (wanted[i] != i) std::memcpy(x + (long)i * ld_x, x + (long)wanted[i] * ld_x, ld_x * sizeof(float));
                });
                if (wanted.empty()) return;
            }
            s.short_cache ? attention<uint16_t>(l, last ? last_blocks : blocks, thread) : attention<float>(l, last ? last_blocks : blocks, thread);
            between([&](int row) { prepare(row, mixed + (long)row * ld_mixed, ld_mixed, layer.output); });
            multiply(plain() ? ADD : STORE, layer.output, count, plain() ? x : branch, ld_x, thread);
            between([&](int row) {
                if (!plain()) joined(row, layer.attention_norm, layer.attention_output_norm);
                norm_and_prepare(row, norm_first ? layer.feed_forward_norm : none, layer.up);
            });
            multiply(s.gated ? GATED : PLAIN, layer.up, count, hidden, ld_hidden, thread);
            between([&](int row) { prepare(row, hidden + (long)row * ld_hidden, s.hidden, layer.down); });
            multiply(plain() ? ADD : STORE, layer.down, count, plain() ? x : branch, ld_x, thread);
        }
        between([&](int row) {
            if (!plain()) joined(row, layers[s.layers - 1].feed_forward_norm, layers[s.layers - 1].feed_forward_output_norm);
            norm_and_prepare(row, s.norm, s.table);
        });
        multiply(LOGITS, s.table, count, logits, s.vocabulary, thread);
        team.meet([] {});
    }

    void step(int pieces, const int32_t* slots, const int32_t* starts, const int32_t* counts, const int32_t* every, const int32_t* ids, float* out) {
        rows.clear();
        wanted.clear();
        for (int p = 0; p < pieces; p++)
            for (int i = 0; i < counts[p]; i++) {
                if (every[p] == 1 || (every[p] == 0 && i == counts[p] - 1)) wanted.push_back((int32_t)rows.size());
                rows.push_back({*ids++, slots[p], starts[p] + i});
            }
        count = (int)rows.size();
        narrowed = false;
        logits = out;
        const size_t n = rows.size();
        x = r_x.of<float>(n * ld_x);
        branch = plain() ? nullptr : r_branch.of<float>(n * ld_x);
        qkv = r_qkv.of<float>(n * ld_qkv);
        mixed = r_mixed.of<float>(n * ld_mixed);
        hidden = r_hidden.of<float>(n * ld_hidden);
        act = r_act.of<float>(n * ld_act);
        round = r_round.of<int8_t>(n * ld_act);
        scale = r_scale.of<float>(n * (ld_act / PART));
        sum = r_sum.of<float>(n * (ld_act / PART));
        plan(blocks, count, false);
        plan(last_blocks, (int)wanted.size(), true);
        run();
    }

    void copy(int source, int target, int tokens) {
        const size_t one = s.short_cache ? 2 : 4, row = (size_t)head * one, whole = (size_t)length * row;
        const size_t bytes = (size_t)up_to(tokens, LANES) * row;
        for (int i = 0; i < s.layers * s.kv; i++) {
            const size_t per = (size_t)s.layers * s.kv * whole;
            for (char* cache : {(char*)keys, (char*)values}) std::memcpy(cache + target * per + i * whole, cache + source * per + i * whole, bytes);
        }
    }
};

}  // namespace

extern "C" {

int32_t chattune_sizes(int32_t which) {
    const int32_t sizes[] = {(int32_t)sizeof(Matrix), (int32_t)sizeof(Norm), (int32_t)sizeof(Layer), (int32_t)sizeof(Shape)};
    return sizes[which];
}

void* chattune_open(const Shape* shape) {
    try {
        return new Decoder(*shape);
    } catch (...) {
        return nullptr;
    }
}

int32_t chattune_step(void* decoder, int32_t pieces, const int32_t* slots, const int32_t* starts, const int32_t* counts, const int32_t* every,
                      const int32_t* ids, float* logits) {
    try {
        ((Decoder*)decoder)->step(pieces, slots, starts, counts, every, ids, logits);
        return 0;
    } catch (...) {
        return 1;
    }
}

void chattune_copy(void* decoder, int32_t source, int32_t target, int32_t tokens) { ((Decoder*)decoder)->copy(source, target, tokens); }

void chattune_close(void* decoder) { delete (Decoder*)decoder; }
}
