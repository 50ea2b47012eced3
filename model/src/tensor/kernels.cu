// What candle's kernels lack: attention of a serving step over keys and values in blocks, and a few others.
// Compiled by NVRTC when they are first used.
// Defined from outside: ELEMENT, HELD (types of activations and of keys and values), HEAD_DIM (even), GROUP (query
// heads of a key head), BLOCK (positions of a block). No headers: none may be there.
//
// `words` holds, for `rows` rows: the slot that each writes to, how many positions it sees, where its
// list of blocks begins; then the rotary frequencies; then all lists of blocks.

struct f16 { unsigned short bits; };
struct bf16 { unsigned short bits; };

__device__ inline float load(float x) { return x; }
__device__ inline float load(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ inline float load(f16 x) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(x.bits));
    return out;
}
__device__ inline void store(float* to, float x) { *to = x; }
__device__ inline void store(bf16* to, float x) {
    unsigned bits = __float_as_uint(x);
    bits += 0x7fff + (bits >> 16 & 1);
    to->bits = bits >> 16;
}
__device__ inline void store(f16* to, float x) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to->bits) : "f"(x));
}

#define INFINITE __int_as_float(0x7f800000)
constexpr int HALF = HEAD_DIM / 2;
constexpr int WARPS = 8;
// Positions that a warp computes at a time.
constexpr int AHEAD = 4;
// Numbers of a head that a lane holds: neighbours, read at once, where heads divide evenly.
constexpr int E = (HEAD_DIM + 31) / 32;
constexpr bool EVEN = HEAD_DIM % 32 == 0 && (E & (E - 1)) == 0;
constexpr int ALIGN = EVEN ? (E * sizeof(HELD) > 16 ? 16 : E * sizeof(HELD)) : sizeof(HELD);
struct __align__(ALIGN) Pack { HELD x[E]; };

__device__ inline int dim(int lane, int e) { return EVEN ? lane * E + e : lane + 32 * e; }

__device__ inline void read(const HELD* head, int lane, float* out) {
    if (EVEN) {
        const Pack pack = reinterpret_cast<const Pack*>(head)[lane];
        for (int e = 0; e < E; e++) out[e] = load(pack.x[e]);
    } else {
        for (int e = 0; e < E; e++) out[e] = dim(lane, e) < HEAD_DIM ? load(head[dim(lane, e)]) : 0.0f;
    }
}

__device__ inline float sum_of_lanes(float x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

// Elements i and i + HALF of a head at a position, turned.
__device__ inline void turn(float& a, float& b, unsigned position, const unsigned* frequency) {
    float sine, cosine;
    sincosf((float)position * __uint_as_float(*frequency), &sine, &cosine);
    const float first = a * cosine - b * sine;
    b = b * cosine + a * sine;
    a = first;
}

// One block of threads a row: keys (turned, where there are frequencies) and values to their slot.
extern "C" __global__ void write_rows(
    const ELEMENT* keys, long long key_stride, const ELEMENT* values, long long value_stride,
    HELD* held_keys, HELD* held_values, int kv_heads,
    const unsigned* words, int rows, int frequencies) {
    const int row = blockIdx.x;
    const unsigned position = words[rows + row] - 1;
    const long long to = (long long)words[row] * kv_heads * HEAD_DIM;
    for (int i = threadIdx.x; i < kv_heads * HALF; i += blockDim.x) {
        const int at = i / HALF * HEAD_DIM + i % HALF;
        float a = load(keys[row * key_stride + at]), b = load(keys[row * key_stride + at + HALF]);
        if (frequencies) turn(a, b, position, words + 3 * rows + i % HALF);
        store(held_keys + to + at, a);
        store(held_keys + to + at + HALF, b);
        store(held_values + to + at, load(values[row * value_stride + at]));
        store(held_values + to + at + HALF, load(values[row * value_stride + at + HALF]));
    }
}

// One block of threads for a row and a key head: each warp takes every WARPS-th position, the sums of the
// warps are added in their order. So a row's result depends on nothing but what it sees.
extern "C" __global__ void __launch_bounds__(32 * WARPS) attend(
    const ELEMENT* queries, long long query_stride, const HELD* keys, const HELD* values, int kv_heads,
    const unsigned* words, int rows, int frequencies, float scale, ELEMENT* out) {
    const int row = blockIdx.x, kv_head = blockIdx.y;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned seen = words[rows + row];
    const unsigned* blocks = words + 3 * rows + frequencies + words[2 * rows + row];
    __shared__ float query[GROUP][HEAD_DIM];
    __shared__ float mixed[WARPS][HEAD_DIM];
    __shared__ float largest_of[WARPS], sum_of[WARPS];

    for (int i = threadIdx.x; i < GROUP * HALF; i += blockDim.x) {
        const int g = i / HALF, at = i % HALF;
        const ELEMENT* head = queries + row * query_stride + (kv_head * GROUP + g) * HEAD_DIM;
        float a = load(head[at]), b = load(head[at + HALF]);
        if (frequencies) turn(a, b, seen - 1, words + 3 * rows + at);
        query[g][at] = a * scale;
        query[g][at + HALF] = b * scale;
    }
    __syncthreads();
    float q[GROUP][E], sum[GROUP], largest[GROUP], acc[GROUP][E];
    for (int g = 0; g < GROUP; g++) {
        sum[g] = 0.0f;
        largest[g] = -INFINITE;
        for (int e = 0; e < E; e++) {
            q[g][e] = dim(lane, e) < HEAD_DIM ? query[g][dim(lane, e)] : 0.0f;
            acc[g][e] = 0.0f;
        }
    }
    for (unsigned first = warp; first < seen; first += WARPS * AHEAD) {
        float score[GROUP][AHEAD], value[AHEAD][E];
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            const unsigned position = first + u * WARPS;
            // What is not seen is read from the last position, and does not count.
            const unsigned from = position < seen ? position : seen - 1;
            const long long slot = (long long)blocks[from / BLOCK] * BLOCK + from % BLOCK;
            const long long at = (slot * kv_heads + kv_head) * HEAD_DIM;
            float key[E];
            read(keys + at, lane, key);
            read(values + at, lane, value[u]);
            for (int g = 0; g < GROUP; g++) {
                float product = 0.0f;
                for (int e = 0; e < E; e++) product += q[g][e] * key[e];
                score[g][u] = product;
            }
        }
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            float top = largest[g];
#pragma unroll
            for (int u = 0; u < AHEAD; u++) {
                const float score_of_all = sum_of_lanes(score[g][u]);
                score[g][u] = first + u * WARPS < seen ? score_of_all : -INFINITE;
                top = fmaxf(top, score[g][u]);
            }
            const float shrink = exp2f(largest[g] - top);
            largest[g] = top;
            sum[g] *= shrink;
            for (int e = 0; e < E; e++) acc[g][e] *= shrink;
#pragma unroll
            for (int u = 0; u < AHEAD; u++) {
                const float weight = exp2f(score[g][u] - top);
                sum[g] += weight;
                for (int e = 0; e < E; e++) acc[g][e] += weight * value[u][e];
            }
        }
    }
    for (int g = 0; g < GROUP; g++) {
        __syncthreads();
        for (int e = 0; e < E; e++)
            if (dim(lane, e) < HEAD_DIM) mixed[warp][dim(lane, e)] = acc[g][e];
        if (lane == 0) {
            largest_of[warp] = largest[g];
            sum_of[warp] = sum[g];
        }
        __syncthreads();
        float top = -INFINITE, all = 0.0f;
        for (int w = 0; w < WARPS; w++) top = fmaxf(top, largest_of[w]);
        for (int w = 0; w < WARPS; w++) all += sum_of[w] * exp2f(largest_of[w] - top);
        for (int i = threadIdx.x; i < HEAD_DIM; i += blockDim.x) {
            float total = 0.0f;
            for (int w = 0; w < WARPS; w++) total += mixed[w][i] * exp2f(largest_of[w] - top);
            store(out + ((long long)row * kv_heads + kv_head) * GROUP * HEAD_DIM + g * HEAD_DIM + i, total / all);
        }
    }
}

// silu(gate) * up, rows of `width` numbers that begin `stride` apart.
extern "C" __global__ void gate_rows(
    const ELEMENT* gate, long long gate_stride, const ELEMENT* up, long long up_stride, int width, ELEMENT* out) {
    const long long row = blockIdx.x;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const float x = load(gate[row * gate_stride + i]);
        store(out + row * width + i, x / (1.0f + expf(-x)) * load(up[row * up_stride + i]));
    }
}

// Of each row of logits the column of the largest, the first of several; none of them, all ones, where one
// is NaN or the largest is not finite.
extern "C" __global__ void best_of_rows(const ELEMENT* logits, int width, unsigned* out) {
    __shared__ float largest_of[32 * WARPS];
    __shared__ unsigned best_of[32 * WARPS];
    __shared__ int nan_of[32 * WARPS];
    const int me = threadIdx.x;
    const ELEMENT* row = logits + (long long)blockIdx.x * width;
    float largest = -INFINITE;
    unsigned best = 0xffffffffu;
    int nan = 0;
    for (int i = me; i < width; i += 32 * WARPS) {
        const float x = load(row[i]);
        nan |= x != x;
        if (x > largest) {
            largest = x;
            best = i;
        }
    }
    largest_of[me] = largest;
    best_of[me] = best;
    nan_of[me] = nan;
    for (int half = 16 * WARPS; half > 0; half /= 2) {
        __syncthreads();
        if (me >= half) continue;
        const float other = largest_of[me + half];
        const unsigned of_other = best_of[me + half];
        if (other > largest_of[me] || (other == largest_of[me] && of_other < best_of[me])) {
            largest_of[me] = other;
            best_of[me] = of_other;
        }
        nan_of[me] |= nan_of[me + half];
    }
    if (me == 0) out[blockIdx.x] = nan_of[0] || largest_of[0] == INFINITE ? 0xffffffffu : best_of[0];
}

// Adds row i of `rows` to row index[i] of `to`, a block of threads each.
extern "C" __global__ void add_rows(const float* rows, const unsigned* index, int width, float* to) {
    const long long from = (long long)blockIdx.x * width, at = (long long)index[blockIdx.x] * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) atomicAdd(to + at + i, rows[from + i]);
}
